"""The metrics as a file for node_exporter's textfile collector: one for each server, where there are too many of them
to ask each.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, write_to_textfile
from prometheus_client.registry import Collector

from jupyter_kernelpool import metrics

WRITE_EVERY = 15.0
SUFFIX = ".prom"  # node_exporter reads no others

log = logging.getLogger("jupyter_kernelpool")


class Labelled(Collector):
    """What *collectors* give, with the label `server` besides: node_exporter refuses the same series in two files."""

    def __init__(self, collectors: Iterable[Collector], server: str) -> None:
        self._collectors = list(collectors)
        self._server = server

    def collect(self) -> Iterable[Metric]:
        """Called when the file is written."""
        for collector in self._collectors:
            for metric in collector.collect():
                metric.samples = [
                    sample._replace(labels={**sample.labels, "server": self._server}) for sample in metric.samples
                ]
                yield metric


class MetricsFile:
    """Writes our metrics to *path*, and nothing where that is empty. Its name without the suffix is the label."""

    def __init__(self, path: str) -> None:
        self.path = find_path(path)
        self._failing = self._written = False
        self._registry = CollectorRegistry()
        self._registry.register(Labelled(metrics.own(), Path(self.path).stem))

    async def write(self) -> None:
        """Replace the file, off the event loop; whoever reads it sees the old one or the new one."""
        try:
            await asyncio.to_thread(write_to_textfile, self.path, self._registry)
        except OSError as error:
            if not self._failing:
                log.warning("The metrics can't be written to %s: %s", self.path, error)
            self._failing = True
        else:
            self._failing, self._written = False, True

    async def remove(self) -> None:
        """The server stops: what it told is true no more."""
        if self._written:
            try:
                await asyncio.to_thread(os.unlink, self.path)
            except FileNotFoundError:
                pass
            except OSError as error:  # the kernels are still to be shut down
                log.warning("The metrics file %s can't be removed: %s", self.path, error)


def find_path(path: str) -> str:
    """*path* with `~` and variables of the environment replaced."""
    return os.path.expandvars(os.path.expanduser(path))
