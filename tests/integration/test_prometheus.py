"""Prometheus itself evaluates the rules that are shipped for it: each is driven just past its line and just under."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow  # not for their time: ./dev test does not need promtool

CASES = Path(__file__).parent / "prometheus-rules-test.yml"
RULES = Path(__file__).parents[2] / "docs" / "operators" / "prometheus-rules.yml"


@pytest.fixture(scope="module")
def kp_promtool() -> str:
    """Prometheus' tool, without which a test fails: CI has it."""
    program = shutil.which("promtool")
    assert program is not None, "promtool is not on PATH: install Prometheus (on Debian: apt-get install prometheus)"
    return program


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_rules_are_what_prometheus_takes(kp_promtool: str) -> None:
    checked = run(kp_promtool, "check", "rules", RULES)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_rule_fires_just_past_its_line_and_not_just_under(kp_promtool: str) -> None:
    tested = run(kp_promtool, "test", "rules", CASES)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_each_rule_is_driven() -> None:
    rules = [rule["alert"] for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    driven = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in test["alert_rule_test"]]
    for rule in rules:
        expected = [bool(case["exp_alerts"]) for case in driven if case["alertname"] == rule]
        assert set(expected) == {True, False}, rule
