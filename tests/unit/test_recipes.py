"""What a warm kernel is made from, and which requests it fits."""

import os
import sys

import pytest

from jupyter_kernelpool.recipes import (
    PythonCommand,
    Settings,
    fingerprint,
    read_python_command,
    resolve_interpreter,
    start_environment,
)
from jupyter_kernelpool.testing import fake_recipe, python_spec

FILE = "{connection_file}"


@pytest.mark.parametrize(
    "argv, expected",
    [
        # ipykernel 6
        (
            ["python", "-m", "ipykernel_launcher", "-f", FILE],
            PythonCommand("python", (), "ipykernel_launcher", ("-f", FILE)),
        ),
        # ipykernel 7
        (
            ["/env/bin/python", "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", FILE],
            PythonCommand("/env/bin/python", ("-Xfrozen_modules=off",), "ipykernel_launcher", ("-f", FILE)),
        ),
        (
            ["/usr/bin/python3.11", "-m", "ipykernel", "-f", FILE],
            PythonCommand("/usr/bin/python3.11", (), "ipykernel", ("-f", FILE)),
        ),
        (
            ["python3", "-E", "-Wignore", "-OO", "-m", "ipykernel_launcher", "-f", FILE, "--profile=mine"],
            PythonCommand("python3", ("-E", "-Wignore", "-OO"), "ipykernel_launcher", ("-f", FILE, "--profile=mine")),
        ),
        (
            ["python", "-m", "ipykernel_launcher", "--matplotlib=inline", "-f", FILE],
            PythonCommand("python", (), "ipykernel_launcher", ("--matplotlib=inline", "-f", FILE)),
        ),
        (
            ["C:/env/python.exe", "-m", "ipykernel_launcher", "-f", FILE],
            PythonCommand("C:/env/python.exe", (), "ipykernel_launcher", ("-f", FILE)),
        ),
    ],
    ids=["ipykernel 6", "ipykernel 7", "python3.11 -m ipykernel", "options", "arguments", "windows"],
)
def test_python_kernel_is_recognised(argv, expected):
    assert read_python_command(argv) == expected


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["python"],
        ["python", "-m"],
        ["python", "-m", "ipykernel_launcher"],
        ["R", "--slave", "-e", "IRkernel::main()", "--args", FILE],
        ["julia", "-i", "--project=@.", "/pkg/IJulia/src/kernel.jl", FILE],
        ["/opt/wrappers/python-with-modules", "-m", "ipykernel_launcher", "-f", FILE],
        ["pypy3", "-m", "ipykernel_launcher", "-f", FILE],
        ["conda", "run", "-n", "env", "python", "-m", "ipykernel_launcher", "-f", FILE],
        ["bash", "-c", "exec python -m ipykernel_launcher -f $0", FILE],
        ["sudo", "python", "-m", "ipykernel_launcher", "-f", FILE],
        ["python", "/opt/wrapper.py", "-m", "ipykernel_launcher", "-f", FILE],
        ["python", "-m", "bash_kernel", "-f", FILE],
        ["python", "-m", "xpython", "-f", FILE],
        ["python", "-c", "import this", "-m", "ipykernel_launcher", "-f", FILE],
        ["python", "-cpass", "-m", "ipykernel_launcher", "-f", FILE],
        ["python", "-Ic", "-m", "ipykernel_launcher", "-f", FILE],
        ["python", "-mkernprof", "-m", "ipykernel_launcher", "-f", FILE],
        ["python", "-", "-m", "ipykernel_launcher", "-f", FILE],
        ["python", "-m", "ipykernel_launcher", "-f", FILE, "--resources={resource_dir}"],
        ["python", "-X{option}", "-m", "ipykernel_launcher", "-f", FILE],
        ["python", "-m", "ipykernel_launcher", f"--f={FILE}"],
        ["{python}", "-m", "ipykernel_launcher", "-f", FILE],
    ],
    ids=lambda argv: " ".join(argv) or "nothing",
)
def test_any_other_command_is_left_alone(argv):
    assert read_python_command(argv) is None


@pytest.mark.parametrize(
    "name, expected",
    [
        ("python", sys.executable),
        (f"python{sys.version_info[0]}", sys.executable),
        (f"python{sys.version_info[0]}.{sys.version_info[1]}", sys.executable),
        ("python2.7", "python2.7"),
        ("/usr/bin/python", "/usr/bin/python"),
    ],
)
def test_interpreter_is_the_one_that_stock_would_run(name, expected):
    assert resolve_interpreter(name) == expected


START_ONLY = [
    "PYTHONPATH", "PYTHONHASHSEED", "LD_PRELOAD", "MALLOC_ARENA_MAX", "LANG", "LC_ALL", "TZ", "HOME", "VIRTUAL_ENV",
    "CONDA_PREFIX", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "XDG_CACHE_HOME", "SSL_CERT_FILE",
]  # fmt: skip
LOAD_ONLY = ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "MPLCONFIGDIR"]
PER_REQUEST = ["JPY_SESSION_NAME", "JPY_PARENT_PID", "MPLBACKEND", "PWD", "OLDPWD", "SHLVL", "_"]
LATE = ["PATH", "MY_TOKEN", "AWS_PROFILE", "NOT_PYTHONPATH", "XLANG", "LANGUAGES", "HOMEPAGE"]


@pytest.mark.parametrize("name", START_ONLY)
def test_what_acts_at_the_start_of_an_interpreter_is_compared(name):
    assert start_environment({name: "x"}, libraries_loaded=False) == ((name, "x"),)


@pytest.mark.parametrize("name", LOAD_ONLY)
def test_what_libraries_read_as_they_load_is_compared_once_they_are_loaded(name):
    assert start_environment({name: "x"}, libraries_loaded=False) == ()
    assert start_environment({name: "x"}, libraries_loaded=True) == ((name, "x"),)


@pytest.mark.parametrize("name", PER_REQUEST + LATE)
@pytest.mark.parametrize("loaded", [False, True])
def test_what_can_be_given_to_a_running_kernel_is_not_compared(name, loaded):
    assert start_environment({name: "x"}, libraries_loaded=loaded) == ()


def test_order_of_variables_does_not_count():
    one = start_environment({"TZ": "UTC", "LANG": "C"}, libraries_loaded=False)
    assert one == start_environment({"LANG": "C", "TZ": "UTC"}, libraries_loaded=False)


BASE = {"env": {"HOME": "/home/me", "PATH": "/bin", "OMP_NUM_THREADS": "2"}}


@pytest.mark.parametrize(
    "changes",
    [
        {"spec": python_spec(["/other/python", "-m", "ipykernel_launcher", "-f", FILE])},
        {"spec": python_spec(env={"A": "1"})},
        {"spec": python_spec(metadata={"debugger": True})},
        {"spec": python_spec(interrupt_mode="message")},
        {"env": {**BASE["env"], "HOME": "/home/you"}},
        {"env": {**BASE["env"], "PYTHONPATH": "/lib"}},
        {"preload": ("numpy",)},
        {"init_code": "x = 1"},
        {"launcher": "spawn"},
        {"launcher": "whole"},
    ],
    ids=[
        "interpreter", "kernelspec's environment", "kernelspec's metadata", "interrupt mode", "home", "PYTHONPATH",
        "preload", "init code", "launcher", "whole",
    ],
)  # fmt: skip
def test_key_changes_with(changes):
    assert fake_recipe(**{**BASE, **changes}).key != fake_recipe(**BASE).key


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"warm": 5, "most": 20},
        {"cwd": "/somewhere"},
        {"env": {**BASE["env"], "PATH": "/sbin", "JPY_SESSION_NAME": "a.ipynb"}},
        {"env": {**BASE["env"], "OMP_NUM_THREADS": "4"}},
    ],
    ids=["nothing", "numbers", "cwd", "what can be given later", "libraries that are not loaded yet"],
)
def test_key_stays_with(changes):
    assert fake_recipe(**{**BASE, **changes}).key == fake_recipe(**BASE).key


@pytest.mark.parametrize("how", [{"preload": ("numpy",)}, {"init_code": "import numpy"}])
def test_library_settings_count_once_libraries_are_loaded_beforehand(how):
    other = {**BASE["env"], "OMP_NUM_THREADS": "4"}
    assert fake_recipe(env=BASE["env"], **how).key != fake_recipe(env=other, **how).key


def test_cwd_counts_where_a_kernel_cannot_be_moved():
    one, two = (fake_recipe(launcher="whole", cwd=cwd) for cwd in ("/one", "/two"))
    assert one.key != two.key
    assert not one.adoptable


def test_kernel_of_another_language_is_not_adoptable():
    spec = python_spec(["R", "-e", "IRkernel::main()", "--args", FILE])
    spec.language = "R"
    assert not fake_recipe(spec=spec).adoptable


def test_environment_is_a_copy_and_not_shown():
    env = {"SECRET_TOKEN": "hush"}
    recipe = fake_recipe(env=env)
    env["SECRET_TOKEN"] = "changed"
    assert recipe.environment == {"SECRET_TOKEN": "hush"}
    assert "hush" not in repr(recipe)


def test_settings_of_equal_content_are_equal():
    assert Settings(1, 2) == Settings(1, 2)
    assert hash(fake_recipe(env={})) == hash(fake_recipe(env={}))


def test_fingerprint_changes_when_a_file_is_touched(tmp_path):
    file = tmp_path / "ipython_config.py"
    file.write_text("c = 1")
    before = fingerprint([str(file)])
    assert fingerprint([str(file)]) == before
    os.utime(file, ns=(1, 1))
    assert fingerprint([str(file)]) != before


def test_fingerprint_changes_when_a_file_appears_and_goes(tmp_path):
    file = tmp_path / "ipython_config.py"
    absent = fingerprint([str(file)])
    file.write_text("c = 1")
    present = fingerprint([str(file)])
    file.unlink()
    assert present != absent
    assert fingerprint([str(file)]) == absent


def test_fingerprint_changes_when_a_package_is_installed(tmp_path):
    os.utime(tmp_path, ns=(1, 1))
    before = fingerprint([str(tmp_path)])
    (tmp_path / "new_package").mkdir()
    assert fingerprint([str(tmp_path)]) != before


def test_fingerprint_changes_when_a_file_is_replaced_within_one_tick_of_the_clock(tmp_path):
    file, new = tmp_path / "python", tmp_path / "python.new"
    file.write_text("old")
    new.write_text("new")
    for each in (file, new):
        os.utime(each, ns=(1, 1))
    before = fingerprint([str(file)])
    new.replace(file)
    assert fingerprint([str(file)]) != before
