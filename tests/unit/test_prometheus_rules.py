"""The rules that are shipped for Prometheus are made of metrics that there are, with labels that these have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from jupyter_kernelpool import metrics
from jupyter_kernelpool.alerts import BAD, HINTS, Lines

OPERATORS = Path(__file__).parents[2] / "docs" / "operators"
RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load((OPERATORS / "prometheus-rules.yml").read_text())["groups"]
    for rule in group["rules"]
}
SAMPLES = {
    sample: set(metric._labelnames)
    for metric in metrics.own()
    for family in metric.describe()
    for sample in (
        {"counter": [f"{family.name}_total"], "histogram": [f"{family.name}_count", f"{family.name}_bucket"]}
    ).get(family.type, [family.name])
}
TARGET = {"job", "instance", "server"}
SELECTOR = re.compile(r'(jupyter_kernelpool_\w+)(?:\{(\w+)=~?"([^"]*)"\})?')


def selectors(rule):
    found = SELECTOR.findall(rule["expr"])
    assert found, rule
    return found


@pytest.mark.parametrize("name", RULES)
def test_rule_names_metrics_and_labels_that_there_are(name):
    for metric, label, _ in selectors(RULES[name]):
        assert metric in SAMPLES
        assert not label or label in SAMPLES[metric]
    for by in re.findall(r"by \(([^)]*)\)", RULES[name]["expr"]):
        assert set(by.split(", ")) <= TARGET


@pytest.mark.parametrize("name", RULES)
def test_rule_names_values_that_there_are_from_the_start(name):
    there = {
        (sample.name, label, value)
        for metric in metrics.own()
        for family in metric.collect()
        for sample in family.samples
        for label, value in sample.labels.items()
    }
    for metric, label, values in selectors(RULES[name]):
        if label and "slowness" not in metric:  # a gauge, which is there once it was judged
            assert all((metric, label, value) in there for value in values.split("|"))


@pytest.mark.parametrize("name", RULES)
def test_rule_is_balanced_and_says_what_it_is_about(name):
    rule = RULES[name]
    for opens, closes in ("()", "[]", "{}"):
        assert rule["expr"].count(opens) == rule["expr"].count(closes)
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["annotations"]["summary"]
    assert f"`{name}`" in (OPERATORS / "operating.md").read_text()


def test_rules_draw_the_lines_where_the_server_does():
    lines = Lines()
    failures = RULES["JupyterKernelExecutionFailures"]["expr"]
    assert set(re.findall(r'outcome=~"([^"]*)"', failures)) == {"|".join(sorted(BAD, key=failures.index))}
    thresholds = {
        "JupyterKernelExecutionFailures": lines.failures,
        "JupyterKernelExecutionTimeouts": lines.timeouts,
        "JupyterKernelReconnects": lines.reconnects,
        "JupyterKernelSlowStarts": lines.slowness,
        "JupyterKernelSlowExecutions": lines.slowness,
    }
    assert len(thresholds) == len(HINTS)
    for name, threshold in thresholds.items():
        assert re.search(rf" > {threshold:g}\b", RULES[name]["expr"]), name
        assert all(f"[{lines.window / 60:g}m]" == span for span in re.findall(r"\[\w+\]", RULES[name]["expr"]))
