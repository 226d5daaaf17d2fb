"""GET /alerts: what is not as it usually is on this server."""

from __future__ import annotations

from typing import Any

from jupyter_server.auth.decorator import authorized
from tornado import web

from jupyter_kernelpool.alerts import Alert
from jupyter_kernelpool.rest.base import PREFIX, KernelPoolHandler
from jupyter_kernelpool.rest.models import Model, rfc3339


class AlertsHandler(KernelPoolHandler):
    """Every alert, judged now."""

    @web.authenticated
    @authorized
    async def get(self) -> None:
        alerts = self.our_manager().lookout.judge()
        self.reply({"alerts": [alert_model(alert) for alert in alerts], "next": None})


def alert_model(alert: Alert) -> Model:
    """The contract's alert."""
    return {
        "name": alert.name,
        "firing": alert.firing,
        "value": alert.value,
        "threshold": alert.threshold,
        "since": rfc3339(alert.since) if alert.since is not None else None,
        "hint": alert.hint,
    }


ROUTES: list[tuple[Any, ...]] = [(PREFIX + "/alerts", AlertsHandler)]
