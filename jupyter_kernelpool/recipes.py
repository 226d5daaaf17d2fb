"""What a warm kernel is made from, and which requests it fits. Pure, but for `fingerprint`, which stats files.

A wrong kernel is never handed out: whatever can only act when an interpreter starts is part of the recipe's
key, and a request that fits no recipe starts cold.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jupyter_kernelpool.sandbox import Confinement, Sandbox

CONNECTION_FILE = "{connection_file}"
PYTHON_NAMES = re.compile(r"python(\d+(\.\d+)?)?(\.exe)?$")
# Options that concern the interpreter alone; what runs something else (-c, -mother) is another command.
PYTHON_OPTION = re.compile(r"-[bBdEIOPqRsSuv]+|-[WX].+")
LAUNCHABLE_MODULES = ("ipykernel_launcher", "ipykernel")

# Read by the interpreter, the dynamic linker, malloc, the C library or IPython before any code of ours runs.
START_ONLY = re.compile(
    r"PYTHON.*|LD_.*|DYLD_.*|MALLOC_.*|GLIBC_TUNABLES|LC_.*|LANG|LANGUAGE|TZ|HOME|USER|LOGNAME|VIRTUAL_ENV|"
    r"CONDA_PREFIX|CONDA_DEFAULT_ENV|IPYTHONDIR|IPYTHON_DIR|JUPYTER_(CONFIG|DATA|RUNTIME)_DIR|JUPYTER_PATH|"
    r"JUPYTER_PREFER_ENV_PATH|XDG_.*|SSL_.*|OPENSSL_.*|PYDEVD_.*|DEBUGPY_.*"
)
# Read by libraries as they load: decided once they are preloaded.
LOAD_ONLY = re.compile(
    r"OMP_.*|GOMP_.*|KMP_.*|MKL_.*|OPENBLAS_.*|GOTO_.*|BLIS_.*|VECLIB_.*|NUMEXPR_.*|NUMBA_.*|NPY_.*|CUDA_.*|"
    r"NVIDIA_.*|TORCH.*|PYTORCH.*|JAX_.*|XLA_.*|TF_.*|HF_.*|MPL.*|ARROW_.*|POLARS_.*|DASK_.*|RAY_.*|JOBLIB_.*|"
    r"PANDAS_.*|SKLEARN_.*"
)
# Says nothing about how a kernel would be: differs from one request to the next by design.
PER_REQUEST = frozenset({"JPY_SESSION_NAME", "JPY_PARENT_PID", "MPLBACKEND", "PWD", "OLDPWD", "SHLVL", "_"})


@dataclass(frozen=True)
class PythonCommand:
    """A kernelspec's argv that launches ipykernel: interpreter, its options, the application's arguments."""

    interpreter: str
    options: tuple[str, ...]
    module: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Settings:
    """What the configuration says about the kernels of one kernelspec."""

    warm: int
    max: int
    preload: tuple[str, ...] = ()
    init_code: str = ""
    launcher: str = "auto"
    load_timeout: float = 60.0
    limits: tuple[tuple[str, float], ...] = ()  # by name, where they differ from KernelLimits; not part of the key
    sandbox: Sandbox = Sandbox()  # noqa: RUF009 (frozen)
    cull: tuple[tuple[str, float], ...] = ()  # what of KernelCuller differs; not part of the key either
    recovery: str | None = None  # where it differs from KernelHealth's; not part of the key
    on_unresponsive: str | None = None  # likewise
    restore: bool | None = None  # likewise


@dataclass(frozen=True)
class Recipe:
    """The pool's key. Two equal recipes give kernels that nobody can tell apart.

    *environment* is the whole environment that templates and spawned kernels start with; only the part of it
    that acts at start is compared. *cwd* counts where a kernel can't be moved after its start (`whole`).
    *confinement* is what the settings' sandbox comes to on this machine.
    """

    name: str
    kernel_name: str
    argv: tuple[str, ...]
    content: str
    resource_dir: str
    command: PythonCommand | None
    settings: Settings
    start_environment: tuple[tuple[str, str], ...]
    cwd: str = ""
    transport: str = ""
    confinement: Confinement | None = None
    environment: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    @property
    def key(self) -> str:
        """A short digest of all that counts."""
        parts = [
            self.kernel_name, self.argv, self.content, self.settings.preload, self.settings.init_code,
            self.settings.launcher, self.start_environment, self.cwd, self.transport, repr(self.confinement),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, default=list).encode()).hexdigest()[:12]

    @property
    def adoptable(self) -> bool:
        """Whether its kernels can take cwd, environment and identity at the claim (else: handed over whole)."""
        return self.command is not None and self.settings.launcher != "whole"


def read_python_command(argv: list[str]) -> PythonCommand | None:
    """Recognise `python [options] -m ipykernel_launcher [arguments] -f {connection_file} [arguments]`.

    None for anything else: another language, a wrapper script, further placeholders.
    """
    if not argv or not PYTHON_NAMES.match(os.path.basename(argv[0])):
        return None
    if "-m" not in argv:
        return None
    at = argv.index("-m")
    options, rest = argv[1:at], argv[at + 1 :]
    if not rest or rest[0] not in LAUNCHABLE_MODULES:
        return None
    if not all(PYTHON_OPTION.fullmatch(option) for option in options):
        return None
    if CONNECTION_FILE not in rest or any("{" in part for part in [*options, *rest] if part != CONNECTION_FILE):
        return None
    return PythonCommand(argv[0], tuple(options), rest[0], tuple(rest[1:]))


def resolve_interpreter(name: str) -> str:
    """The interpreter that jupyter_client would run for *name* (manager.py `format_kernel_cmd`)."""
    version = sys.version_info
    if name in {"python", f"python{version[0]}", f"python{version[0]}.{version[1]}"}:
        return sys.executable
    return name


def start_environment(env: Mapping[str, str], *, libraries_loaded: bool) -> tuple[tuple[str, str], ...]:
    """The part of *env* that can't be applied to a running kernel, sorted."""
    return tuple(
        sorted(
            (name, value)
            for name, value in env.items()
            if name not in PER_REQUEST
            and (START_ONLY.fullmatch(name) or (libraries_loaded and LOAD_ONLY.fullmatch(name)))
        )
    )


def spec_content(spec: Any) -> str:
    """The kernelspec's content as text: the key of a recipe, so that an edited kernel.json is another recipe."""
    return json.dumps(spec.to_dict(), sort_keys=True, default=str)


def build_recipe(
    *,
    kernel_name: str,
    spec: Any,
    env: Mapping[str, str],
    settings: Settings,
    cwd: str = "",
    transport: str = "",
    confine: Callable[[Sandbox, bool], Confinement | None] = lambda sandbox, adoptable: None,
) -> Recipe:
    """The recipe that a request for *spec* with environment *env* needs.

    *cwd* and *transport* count only where the kernel can't be moved after its start. *confine* says what is done
    for a sandbox, the kernel being one that takes its listeners at the claim, or not.
    """
    command = read_python_command(list(spec.argv)) if spec.language.lower() == "python" else None
    adoptable = command is not None and settings.launcher != "whole"
    confinement = confine(settings.sandbox, adoptable)
    if confinement is not None:
        env = confinement.environment(env)
    return Recipe(
        name=kernel_name,
        kernel_name=kernel_name,
        argv=tuple(spec.argv),
        content=spec_content(spec),
        resource_dir=spec.resource_dir,
        command=command,
        settings=settings,
        start_environment=start_environment(env, libraries_loaded=bool(settings.preload or settings.init_code)),
        cwd="" if adoptable else cwd,
        transport="" if adoptable else transport,
        confinement=confinement,
        environment=dict(env),
    )


def fingerprint(paths: Iterable[str]) -> str:
    """A digest of the modification times of *paths*: it changes when something was installed or edited."""
    digest = hashlib.sha256()
    for path in paths:
        try:
            status = os.stat(path)
            stamp = f"{status.st_mtime_ns}:{status.st_ino}:{status.st_size if not os.path.isdir(path) else ''}"
        except OSError:
            stamp = "absent"
        digest.update(f"{path}={stamp}\n".encode())
    return digest.hexdigest()
