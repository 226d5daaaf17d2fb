"""What a sandbox's settings mean, and what is done for them on which machine."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_kernelpool.errors import NotValid
from jupyter_kernelpool.recipes import Settings, build_recipe
from jupyter_kernelpool.sandbox import Confinement, Place, Sandbox, confine, read_sandbox
from jupyter_kernelpool.settings import read_settings
from jupyter_kernelpool.testing import python_spec

HERE = Place(
    root_dir="/notebooks",
    runtime_dir="/run/jupyter",
    temporary="/tmp/kernelpool-1",
    landlock=7,
    programs=frozenset({"bwrap"}),
)
WITHOUT_LANDLOCK = Place("/notebooks", "/run/jupyter", "/tmp/kernelpool-1", 0, frozenset({"bwrap"}))
WITH_AN_OLD_ONE = Place("/notebooks", "/run/jupyter", "/tmp/kernelpool-1", 2, frozenset())


def confined(given: dict[str, Any], place: Place = HERE, *, takes_listeners: bool = True) -> Confinement:
    confinement = confine(read_sandbox("python3", given), place, takes_listeners=takes_listeners)
    assert confinement is not None
    return confinement


# -- reading ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, sandbox",
    [
        ({}, Sandbox()),
        ({"sandbox": False}, Sandbox()),
        ({"network": "host"}, Sandbox()),
        ({"network": "none"}, Sandbox(network="none")),
        ({"sandbox": True}, Sandbox(network="none", preset=True)),
        ({"sandbox": True, "network": "host"}, Sandbox(preset=True)),
        ({"launch_prefix": ["bwrap", "--"]}, Sandbox(launch_prefix=("bwrap", "--"))),
        ({"writable": []}, Sandbox(writable=())),
        ({"writable": ["/data/"]}, Sandbox(writable=("/data",))),
    ],
)
def test_settings_are_read(given: dict[str, Any], sandbox: Sandbox) -> None:
    assert read_sandbox("python3", given) == sandbox
    assert sandbox.asked_for == (sandbox != Sandbox())


def test_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert read_sandbox("python3", {"writable": ["~/work"]}).writable == ("/home/ada/work",)


@pytest.mark.parametrize(
    "given, named",
    [
        ({"sandbox": "yes"}, "sandbox = 'yes'"),
        ({"network": "lan"}, "network = 'lan'"),
        ({"network": None}, "network = None"),
        ({"launch_prefix": "bwrap --"}, "launch_prefix = 'bwrap --'"),
        ({"launch_prefix": ["bwrap", ""]}, "launch_prefix"),
        ({"launch_prefix": [1]}, "launch_prefix"),
        ({"writable": "/data"}, "writable = '/data'"),
        ({"writable": ["data"]}, "'data' is no absolute path"),
        ({"writable": [1]}, "writable = "),
    ],
)
def test_wrong_settings_are_refused_by_name(given: dict[str, Any], named: str) -> None:
    with pytest.raises(NotValid) as caught:
        read_settings("python3", given, Settings(1, 2))
    assert named in str(caught.value)


# -- what is done -----------------------------------------------------------------------------------


def test_nothing_asked_for_is_nothing_done() -> None:
    assert confine(Sandbox(), WITH_AN_OLD_ONE, takes_listeners=False) is None


def test_preset_hides_denies_and_binds_to_the_notebooks_folder() -> None:
    confinement = confined({"sandbox": True})
    assert confinement.network
    assert confinement.hidden == ("/run/jupyter",)
    assert confinement.writable == ("/notebooks", "/tmp/kernelpool-1", "/run/jupyter", "/dev")
    assert confinement.prefix == ()
    assert confinement.lacks is None
    assert not confinement.order["prefixed"]


def test_preset_leaves_what_is_said_besides() -> None:
    confinement = confined({"sandbox": True, "network": "host", "writable": ["/data"]})
    assert not confinement.network
    assert confinement.writable is not None
    assert confinement.writable[0] == "/data"
    assert "/notebooks" not in confinement.writable


def test_copies_of_working_directories_can_be_written_to() -> None:
    place = Place("/notebooks", "/run/jupyter", "/tmp/kernelpool-1", 7, frozenset(), copies_dir="/copies")
    assert "/copies" in (confined({"sandbox": True}, place).writable or ())


def test_without_landlock_bubblewrap_binds_all_else_read_only() -> None:
    confinement = confined({"writable": ["/data"]}, WITHOUT_LANDLOCK)
    assert confinement.lacks is None
    assert confinement.prefix[:4] == ("bwrap", "--ro-bind", "/", "/")
    text = " ".join(confinement.prefix)
    assert "--bind /data /data" in text
    assert "--bind /tmp/kernelpool-1 /tmp/kernelpool-1" in text
    assert confinement.order["writable"] is None  # not by Landlock
    assert confinement.order["prefixed"]


@pytest.mark.parametrize(
    "given, place, takes_listeners, named",
    [
        ({"writable": ["/data"]}, WITH_AN_OLD_ONE, True, "install bubblewrap"),
        ({"writable": ["/data"]}, WITH_AN_OLD_ONE, True, "here: version 2"),
        ({"sandbox": True}, WITH_AN_OLD_ONE, True, "install bubblewrap"),
        ({"writable": ["/data"], "launch_prefix": ["bwrap"]}, WITHOUT_LANDLOCK, True, "binds all else read-only"),
        ({"launch_prefix": ["bwrap", "--"]}, WITH_AN_OLD_ONE, True, "install bubblewrap"),
        ({"launch_prefix": ["runsc", "do"]}, HERE, True, "'runsc' is not to be found"),
        ({"network": "none"}, HERE, False, "ipykernel"),
        ({"sandbox": True}, HERE, False, "ipykernel"),
    ],
)
def test_what_cannot_be_held_says_what_would_be_needed(
    given: dict[str, Any], place: Place, takes_listeners: bool, named: str
) -> None:
    assert named in (confined(given, place, takes_listeners=takes_listeners).lacks or "")


# -- the environment --------------------------------------------------------------------------------


SECRETS = (
    "JUPYTER_TOKEN",
    "JPY_API_TOKEN",
    "JUPYTERHUB_API_TOKEN",
    "JUPYTERHUB_CRYPT_KEY",
    "JPY_COOKIE_SECRET",
    "JUPYTER_GATEWAY_AUTH_TOKEN",
    "JUPYTER_GATEWAY_HTTP_PWD_PASSWORD",
    "KG_AUTH_TOKEN",
    "CONFIGPROXY_AUTH_TOKEN",
    "JUPYTERHUB_COOKIE_SECRET",
)
NO_SECRETS = ("PATH", "JUPYTER_PATH", "JUPYTER_RUNTIME_DIR", "JPY_SESSION_NAME", "JPY_PARENT_PID", "TOKENIZERS", "HOME")


@pytest.mark.parametrize("name", SECRETS)
def test_preset_takes_the_servers_secrets_from_the_environment(name: str) -> None:
    assert name not in confined({"sandbox": True}).environment({name: "x"})
    assert confined({"network": "none"}).environment({name: "x"})[name] == "x"


@pytest.mark.parametrize("name", NO_SECRETS)
def test_preset_leaves_all_else_in_the_environment(name: str) -> None:
    assert confined({"sandbox": True}).environment({name: "x"})[name] == "x"


def test_temporary_files_have_a_place_where_writing_is_limited() -> None:
    assert confined({"writable": []}).environment({"TMPDIR": "/tmp"})["TMPDIR"] == "/tmp/kernelpool-1"
    assert confined({"network": "none"}).environment({"TMPDIR": "/tmp"})["TMPDIR"] == "/tmp"


# -- the recipe -------------------------------------------------------------------------------------


def test_a_sandbox_is_another_recipe() -> None:
    def key(given: dict[str, Any]) -> str:
        recipe = build_recipe(
            kernel_name="python3",
            spec=python_spec(),
            env={},
            settings=read_settings("python3", given, Settings(1, 2)),
            confine=lambda sandbox, adoptable: confine(sandbox, HERE, takes_listeners=adoptable),
        )
        return recipe.key

    given: list[dict[str, Any]] = [
        {},
        {"sandbox": True},
        {"network": "none"},
        {"writable": ["/data"]},
        {"writable": ["/other"]},
        {"launch_prefix": ["bwrap", "--"]},
    ]
    assert len({key(one) for one in given}) == len(given)
    assert key({"sandbox": True}) == key({"sandbox": True})
