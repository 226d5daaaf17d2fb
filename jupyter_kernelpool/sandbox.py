"""What a recipe's sandbox is: what was asked for, and what has to be done to hold it. Pure.

`Sandbox` is what the settings say, `Confinement` what becomes of it on this machine: a command in front of the
kernel's own, and the order that `kernelside.confine` carries out before anything of the kernel's runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from jupyter_kernelpool.errors import NotValid

SANDBOX_SETTINGS = ("sandbox", "launch_prefix", "network", "writable")
NETWORKS = ("host", "none")
# Before it, files outside can still be cut short (truncate(2)), by whoever may write them without the sandbox.
LANDLOCK_NEEDED = 3
# What lets one talk to the server, or to its hub or gateway, in the user's name.
SECRET = re.compile(
    r"(JUPYTER|JUPYTERHUB|JPY|KG|CONFIGPROXY)(_.*)?_(.*(TOKEN|SECRET|PASSWORD|COOKIE|KEY|COOKIES|KEYS))"
)
# Files that a kernel writes to and that keep nothing: null, terminals, shared memory.
DEVICES = "/dev"


@dataclass(frozen=True)
class Sandbox:
    """What the settings of a recipe ask for. *writable* None: everywhere; with the *preset*: the notebooks' folder."""

    launch_prefix: tuple[str, ...] = ()
    network: str = "host"
    writable: tuple[str, ...] | None = None
    preset: bool = False

    @property
    def asked_for(self) -> bool:
        return self != Sandbox()


@dataclass(frozen=True)
class Place:
    """What this server and machine have to do with it.

    *programs* says of each program that could be needed whether it is there; *temporary* is a folder that the
    server made for what confined kernels put into temporary files.
    """

    root_dir: str
    runtime_dir: str
    temporary: str
    landlock: int
    programs: frozenset[str]
    copies_dir: str = ""


@dataclass(frozen=True)
class Confinement:
    """What is done for a sandbox. *lacks* says why it can't be, with what would be needed; then nothing is started."""

    prefix: tuple[str, ...] = ()
    network: bool = False
    hidden: tuple[str, ...] = ()
    writable: tuple[str, ...] | None = None
    temporary: str = ""
    secretive: bool = False
    lacks: str | None = None

    @property
    def order(self) -> dict[str, Any]:
        """What `kernelside.confine` is told."""
        return {
            "prefixed": bool(self.prefix),
            "network": self.network,
            "hidden": list(self.hidden),
            "writable": list(self.writable) if self.writable is not None else None,
            "temporary": self.temporary,
        }

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """The environment *given*, without what a confined kernel is not to know, and with a TMPDIR it can use."""
        env = dict(given)
        if self.secretive:
            env = {name: value for name, value in env.items() if not SECRET.fullmatch(name)}
        if self.temporary:
            env["TMPDIR"] = self.temporary
        return env


def read_sandbox(name: str, given: Mapping[str, Any]) -> Sandbox:
    """The sandbox that the settings *given* of the kernelspec *name* ask for; raises `NotValid`."""
    preset = given.get("sandbox", False)
    if not isinstance(preset, bool):
        raise NotValid(f"{name!r}: sandbox = {preset!r} must be true or false")
    prefix = given.get("launch_prefix", [])
    if not isinstance(prefix, list | tuple) or not all(isinstance(part, str) and part for part in prefix):
        raise NotValid(f"{name!r}: launch_prefix = {prefix!r} must be a list of texts: a program and its arguments")
    network = given.get("network", "none" if preset else "host")
    if network not in NETWORKS:
        raise NotValid(f"{name!r}: network = {network!r} must be one of {', '.join(NETWORKS)}")
    return Sandbox(tuple(prefix), network, read_writable(name, given.get("writable")), preset)


def read_writable(name: str, given: Any) -> tuple[str, ...] | None:
    """The folders that may be written to; raises `NotValid` for what are no paths."""
    if given is None:
        return None
    if not isinstance(given, list | tuple) or not all(isinstance(path, str) for path in given):
        raise NotValid(f"{name!r}: writable = {given!r} must be a list of folders")
    paths = [os.path.expanduser(path) for path in given]
    for path in paths:
        if not os.path.isabs(path):
            raise NotValid(f"{name!r}: writable = {given!r}: {path!r} is no absolute path, nor one that begins with ~")
    return tuple(os.path.normpath(path) for path in paths)


def confine(sandbox: Sandbox, place: Place, *, takes_listeners: bool) -> Confinement | None:
    """What is to be done for *sandbox*; None where it asks for nothing.

    *takes_listeners*: the kernel is one of ours that is handed its sockets, so needs no network to be reached.
    """
    if not sandbox.asked_for:
        return None
    writable = sandbox.writable
    if writable is None and sandbox.preset:
        writable = (place.root_dir,)
    confinement = Confinement(
        prefix=sandbox.launch_prefix,
        network=sandbox.network == "none",
        hidden=(place.runtime_dir,) if sandbox.preset else (),
        secretive=sandbox.preset,
    )
    if confinement.network and not takes_listeners:
        return replace(
            confinement,
            lacks='network = "none" holds for Python kernels that ipykernel starts and that are not handed over '
            '"whole": others open their own ports, which nobody outside could reach. Use a launch_prefix that makes '
            "a network namespace, and a transport that works across it",
        )
    if sandbox.launch_prefix and sandbox.launch_prefix[0] not in place.programs:
        program = sandbox.launch_prefix[0]
        return replace(confinement, lacks=f"launch_prefix: {program!r} is not to be found: install {_package(program)}")
    if writable is None:
        return confinement
    allowed = (*writable, place.temporary, *confinement.hidden, *filter(None, [place.copies_dir]))
    confinement = replace(confinement, temporary=place.temporary)
    if place.landlock >= LANDLOCK_NEEDED:
        return replace(confinement, writable=(*allowed, DEVICES))
    found = f"version {place.landlock}" if place.landlock else "none"
    need = f"writable needs Landlock of version {LANDLOCK_NEEDED} (Linux 6.2; here: {found})"
    if sandbox.launch_prefix:
        return replace(confinement, lacks=f"{need}, or a launch_prefix that binds all else read-only, without writable")
    if "bwrap" not in place.programs:
        return replace(confinement, lacks=f"{need} or bubblewrap: install bubblewrap, or use a kernel with Landlock")
    return replace(confinement, prefix=read_only_prefix(allowed))


def read_only_prefix(writable: tuple[str, ...]) -> tuple[str, ...]:
    """The command with which bubblewrap makes a file system that can be written to below *writable* only."""
    prefix = ["bwrap", "--ro-bind", "/", "/", "--dev-bind", DEVICES, DEVICES, "--bind", "/proc", "/proc"]
    for path in writable:
        prefix += ["--bind", path, path]
    return (*prefix, "--")


def _package(program: str) -> str:
    return "bubblewrap" if os.path.basename(program) == "bwrap" else "it, or name it by its whole path"
