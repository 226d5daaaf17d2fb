"""The script that a launcher starts with the kernel's interpreter: `python launch.py '<settings as JSON>'`.

Settings: `mode` (`template` or `warm`), `orders` and `lifeline` (inherited descriptors; lifeline may be -1),
`arguments` (for the kernel's application), `preload`, `init_code`, and `confine`: null or an order to
`confine`, to which `prefixed` adds that another program stands between the supervisor (`supervisor`) and us.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys


def load_package() -> None:
    """Import this folder as a package by its path, leaving no trace on `sys.path`."""
    folder = os.path.dirname(os.path.abspath(__file__))
    if sys.path and os.path.abspath(sys.path[0]) == folder:
        del sys.path[0]
    spec = importlib.util.spec_from_file_location(
        "_jupyter_kernelpool", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    sys.modules["_jupyter_kernelpool"] = package
    spec.loader.exec_module(package)


def main() -> None:
    settings = json.loads(sys.argv[1])
    load_package()
    import socket

    from _jupyter_kernelpool import confine, lifeline, wire  # type: ignore[import-not-found]

    orders = socket.socket(fileno=settings["orders"])
    os.set_inheritable(orders.fileno(), False)
    order = settings.get("confine") or {}
    try:
        if order.get("prefixed"):
            confine.stand_alone(settings["supervisor"])
        if settings["lifeline"] >= 0:
            os.set_inheritable(settings["lifeline"], False)
            lifeline.hold(settings["lifeline"])
        if order.get("prefixed"):
            wire.send(orders, {"event": "here", "pid": os.getpid()})
            confine.let_prefix_end()
        confine.confine(order)
        sys.argv[:] = [sys.argv[0]]
        check_versions()
    except confine.CannotConfine as error:
        wire.send(orders, {"event": "unfit", "kind": "not_enforceable", "reason": str(error), "traceback": ""})
        confine.let_prefix_end()
        os._exit(1)
    except BaseException as error:
        wire.send(orders, {"event": "unfit", "reason": str(error), "traceback": ""})
        os._exit(1)
    from _jupyter_kernelpool import lives

    if settings["mode"] == "template":
        from _jupyter_kernelpool import template

        lives.live(template.run(settings, orders, settings["lifeline"]))
    else:
        from _jupyter_kernelpool import spawned

        lives.live(spawned.run(settings, orders))


def check_versions() -> None:
    """Refuse what was not tried: the kernel then starts cold."""
    if sys.version_info < (3, 10):
        raise RuntimeError(f"Python {sys.version.split()[0]} is older than 3.10")
    from importlib.metadata import version

    found = version("ipykernel")
    parts = tuple(int(part) for part in found.split(".")[:2])
    if not (6, 29) <= parts < (8, 0):
        raise RuntimeError(f"ipykernel {found} is not between 6.29 and 7.x")


if __name__ == "__main__":
    main()
