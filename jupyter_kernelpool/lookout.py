"""Keeps a watch on the server: the settings of the alerts, what the metrics and the log are told of them."""

from __future__ import annotations

import logging
import time
from typing import Any

from traitlets import Float, Integer
from traitlets.config import LoggingConfigurable

from jupyter_kernelpool import metrics
from jupyter_kernelpool.alerts import Alert, Lines, Watch

JUDGE_EVERY = 15.0
SLOW = {"slow_starts": "start", "slow_executions": "execution"}

log = logging.getLogger("jupyter_kernelpool")


class KernelAlerts(LoggingConfigurable):
    """When `GET /alerts` says that something is wrong. Prometheus' rules have thresholds of their own."""

    window = Float(600.0, min=10, config=True, help="Seconds that alerts look back.")
    failures = Float(
        0.1,
        min=0,
        max=1,
        config=True,
        help="""Share of executions and starts that may fail: killed or timed out for a limit, died with their kernel,
        not started. An error in the user's code is none of these.""",
    )
    timeouts = Float(0.05, min=0, max=1, config=True, help="Share of executions that may be ended for their time.")
    reconnects = Float(
        3.0,
        min=0,
        config=True,
        help="""How often one session may connect its websocket anew; what follows a restart of its kernel is not
        counted.""",
    )
    slowness = Float(
        2.0,
        min=1,
        config=True,
        help="How many times the usual (the median of the last 50) starts, and executions of the same code, may take.",
    )
    least = Integer(
        10, min=1, config=True, help="Observations within the window that it takes to conclude anything from them."
    )

    @property
    def lines(self) -> Lines:
        """What is still right, for `alerts.Watch`."""
        return Lines(self.window, self.failures, self.timeouts, self.reconnects, self.slowness, self.least)


class Lookout:
    """Judges what is watched, now and then and when asked; tells when an alert begins and ends."""

    def __init__(self, settings: KernelAlerts) -> None:
        self.watch = Watch(settings.lines)
        self._firing: set[str] = set()

    def judge(self) -> list[Alert]:
        """Every alert as it is now; gauges and log follow."""
        alerts = self.watch.judge(time.time())
        for alert in alerts:
            self._tell(alert)
        return alerts

    async def round(self) -> None:
        """Called by the keeper every `JUDGE_EVERY` seconds."""
        self.judge()

    def _tell(self, alert: Alert) -> None:
        metrics.ALERTS.labels(alert=alert.name).set(alert.firing)
        if alert.name == "reconnects":
            metrics.SESSION_RECONNECTS.set(alert.value or 0)
        elif alert.name in SLOW:
            metrics.SLOWNESS.labels(of=SLOW[alert.name]).set(1.0 if alert.value is None else alert.value)
        if alert.firing and alert.name not in self._firing:
            log.warning("Alert %s: %.3g, more than %g. %s", alert.name, alert.value, alert.threshold, alert.hint)
        elif not alert.firing and alert.name in self._firing:
            log.warning("Alert %s is over", alert.name)
        self._firing = self._firing | {alert.name} if alert.firing else self._firing - {alert.name}


def connected(manager: Any, kernel_id: str, session: str) -> None:
    """A client's websocket is opened on a kernel of *manager*'s; counted where it is a reconnect."""
    lookout = getattr(manager, "lookout", None)
    if isinstance(lookout, Lookout) and lookout.watch.connected(kernel_id, session, time.time()):
        metrics.RECONNECTS.inc()
