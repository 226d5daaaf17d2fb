"""Every trait, state, error and metric is in the docs; routes are compared in tests/rest/test_documents.py."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.metrics import MetricWrapperBase
from traitlets.config import LoggingConfigurable

from jupyter_kernelpool import errors, metrics
from jupyter_kernelpool.alerts import HINTS
from jupyter_kernelpool.culler import KernelCuller
from jupyter_kernelpool.events import read_types
from jupyter_kernelpool.health import Verdict
from jupyter_kernelpool.health_settings import KernelHealth
from jupyter_kernelpool.lifecycle import State
from jupyter_kernelpool.limits.settings import KernelLimits
from jupyter_kernelpool.lookout import KernelAlerts
from jupyter_kernelpool.pool import KernelPool

DOCS = Path(__file__).parents[2] / "docs"
CONFIGURATION = (DOCS / "users" / "configuration.md").read_text()
OPERATING = (DOCS / "operators" / "operating.md").read_text()
MIB = 1024 * 1024
OWN_TRAITS = [
    (owner, name)
    for owner in (KernelPool, KernelLimits, KernelHealth, KernelCuller, KernelAlerts)
    for name in sorted(owner.class_traits(config=True).keys() - LoggingConfigurable.class_traits(config=True).keys())
]
NAMES = [f"{owner.__name__}.{name}" for owner, name in OWN_TRAITS]


def all_errors() -> list[type[errors.KernelPoolError]]:
    found, queue = [], [errors.KernelPoolError]
    while queue:
        found.append(queue.pop())
        queue += found[-1].__subclasses__()
    return [error for error in found if error.__module__ == errors.__name__]


def as_the_page_writes(name: str, default: Any) -> str:
    if name == "parallel_starts":
        assert default == (os.cpu_count() or 1) + 1
        return "cores + 1"
    if name == "launchers":
        return ", ".join(launcher.way for launcher in default)
    if name == "enforcers":
        return ", ".join(enforcer.name for enforcer in default)
    if isinstance(default, bool):
        return f"`{default}`"
    if isinstance(default, int | float):
        return f"{default // MIB} MiB" if default >= MIB else f"{default:g}"
    return f"`{json.dumps(default)}`"


@pytest.mark.parametrize("owner, name", OWN_TRAITS, ids=NAMES)
def test_trait_is_in_the_configuration_page_with_its_default(owner, name):
    full = f"{owner.__name__}.{name}"
    row = next((line for line in CONFIGURATION.splitlines() if line.startswith(f"| `{full}`")), None)
    assert row is not None, f"{full} has no row"
    assert row.split("|")[2].strip() == as_the_page_writes(name, owner.class_traits()[name].default())


def test_the_configuration_page_names_no_trait_that_is_not_there():
    named = re.findall(r"^\| `(Kernel\w+\.\w+)`", CONFIGURATION, re.MULTILINE)
    assert sorted(named) == sorted(NAMES)


@pytest.mark.parametrize("state", list(State))
def test_state_is_in_the_operating_page(state):
    assert f"`{state.value}`" in OPERATING


@pytest.mark.parametrize("verdict", list(Verdict))
def test_verdict_on_a_kernels_health_is_in_the_operating_page(verdict):
    assert f"| `{verdict.value}` |" in OPERATING


@pytest.mark.parametrize("error", all_errors(), ids=lambda error: error.code)
def test_error_is_in_the_operating_page_with_its_status(error):
    assert re.search(rf"^\|[^\n]*`{error.code}`[^\n]*{error.status}", OPERATING, re.MULTILINE), error.code


@pytest.mark.parametrize(
    "metric", [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)], ids=str
)
def test_metric_is_in_the_operating_page(metric):
    assert metric.describe()[0].name in OPERATING


@pytest.mark.parametrize("kind", read_types())
def test_event_is_in_the_operating_page(kind):
    assert re.search(rf"^\| `{kind}` \|", OPERATING, re.MULTILINE)


@pytest.mark.parametrize("alert", HINTS)
def test_alert_is_in_the_operating_page(alert):
    assert re.search(rf"^\| `{alert}` \|", OPERATING, re.MULTILINE)
