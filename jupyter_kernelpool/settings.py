"""Reads what the configuration or a REST request says about one kernelspec's kernels. Pure."""

from __future__ import annotations

from typing import Any

from jupyter_kernelpool.allowance import read_limits
from jupyter_kernelpool.errors import NotValid
from jupyter_kernelpool.health import ON_UNRESPONSIVE
from jupyter_kernelpool.recipes import Settings
from jupyter_kernelpool.recovery import Recovery
from jupyter_kernelpool.sandbox import SANDBOX_SETTINGS, read_sandbox

SETTING_NAMES = (
    "warm", "max", "preload", "init_code", "launcher", "limits", "cull", "recovery", "on_unresponsive", "restore",
    *SANDBOX_SETTINGS,
)  # fmt: skip
CULL_NAMES = ("idle_timeout", "busy_timeout", "max_life", "connected", "warn_before")
LAUNCHER_NAMES = ("auto", "template", "spawn", "whole", "off")


def read_settings(name: str, given: Any, general: Settings) -> Settings:
    """The settings of the kernelspec *name*: *given*, and *general* where it says nothing.

    Raises `NotValid`, naming setting, value and what is allowed.
    """
    if not isinstance(given, dict):
        raise NotValid(f"{name!r}: settings must be a dict, not {given!r}")
    unknown = sorted(set(given) - set(SETTING_NAMES))
    if unknown:
        raise NotValid(f"{name!r} has no setting {unknown[0]!r}; there are: {', '.join(sorted(SETTING_NAMES))}")
    for number in ("warm", "max"):
        value = given.get(number, 0)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise NotValid(f"{name!r}: {number} = {value!r} must be a whole number of 0 or more")
    launcher = given.get("launcher", general.launcher)
    if launcher not in LAUNCHER_NAMES:
        raise NotValid(f"{name!r}: launcher = {launcher!r} must be one of {', '.join(LAUNCHER_NAMES)}")
    init_code = given.get("init_code", general.init_code)
    if not isinstance(init_code, str):
        raise NotValid(f"{name!r}: init_code must be text")
    warm = given.get("warm", min(general.warm, given.get("max", general.warm)))
    most = given.get("max", max(general.max, warm) if general.max else 0)
    if most and warm > most:
        raise NotValid(f"{name!r}: warm = {warm} must not be above max = {most}")
    preload = read_preload(name, given.get("preload", list(general.preload)))
    limits = read_recipe_limits(name, given["limits"]) if "limits" in given else general.limits
    cull = read_recipe_cull(name, given["cull"]) if "cull" in given else general.cull
    recovery = read_recovery(name, given["recovery"]) if "recovery" in given else general.recovery
    silence = given.get("on_unresponsive", general.on_unresponsive)
    if silence is not None and silence not in ON_UNRESPONSIVE:
        allowed = ", ".join(ON_UNRESPONSIVE)
        raise NotValid(f"{name!r}: on_unresponsive = {silence!r} must be one of {allowed}", field="on_unresponsive")
    restore = given.get("restore", general.restore)
    if restore is not None and not isinstance(restore, bool):
        raise NotValid(f"{name!r}: restore = {restore!r} must be true or false", field="restore")
    sandbox = read_sandbox(name, given)
    return Settings(
        min(warm, most), most, preload, init_code, launcher, general.load_timeout, limits, sandbox, cull, recovery,
        silence, restore,
    )  # fmt: skip


def read_recovery(name: str, given: Any) -> str | None:
    """Which ends of its kernels' processes are followed by a restart; None leaves it to KernelHealth."""
    if given is not None and given not in list(Recovery):
        raise NotValid(f"{name!r}: recovery = {given!r} must be one of {', '.join(Recovery)}", field="recovery")
    return str(given) if given is not None else None


def read_recipe_limits(name: str, given: Any) -> tuple[tuple[str, float], ...]:
    """The limits of a kernelspec's kernels by name; raises `NotValid`."""
    try:
        return tuple(read_limits(given).items())
    except NotValid as error:
        raise NotValid(f"{name!r}: limits: {error}", field="limits") from error


def read_recipe_cull(name: str, given: Any) -> tuple[tuple[str, float], ...]:
    """When a kernelspec's kernels are culled, where it differs from `KernelCuller`; raises `NotValid`."""
    if not isinstance(given, dict):
        raise NotValid(f"{name!r}: cull = {given!r} must be an object", field="cull")
    for setting, value in given.items():
        if setting not in CULL_NAMES:
            raise NotValid(f"{name!r}: cull has no {setting!r}; there are: {', '.join(CULL_NAMES)}", field="cull")
        wrong = not isinstance(value, bool) if setting == "connected" else isinstance(value, bool)
        if wrong or not isinstance(value, int | float) or not 0 <= value < float("inf"):
            wanted = "true or false" if setting == "connected" else "seconds, 0 for never"
            raise NotValid(f"{name!r}: cull: {setting} = {value!r} must be {wanted}", field="cull")
    return tuple(given.items())


def read_preload(name: str, given: Any) -> tuple[str, ...]:
    """The modules to preload; raises `NotValid` for what can't be modules' names."""
    if not isinstance(given, list) or not all(isinstance(module, str) for module in given):
        raise NotValid(f"{name!r}: preload = {given!r} must be a list of module names")
    for module in given:
        if not all(part.isidentifier() for part in module.split(".")):
            raise NotValid(f"{name!r}: preload = {given!r}: {module!r} is no module's name")
    return tuple(given)
