"""Alerts fire just past their line and not just under it, and nothing that they go by grows for ever."""

from __future__ import annotations

import pytest

from jupyter_kernelpool import alerts
from jupyter_kernelpool.alerts import HINTS, PARDON, USUAL_FROM, Lines, Usual, Watch

NOW = 1_000_000.0


def watch(**lines):
    return Watch(Lines(**lines))


def ended(watched, outcome, count, now=NOW, seconds=1.0, code=None):
    for _ in range(count):
        watched.ended(outcome, seconds, code, now)


def alert(watched, name, now=NOW):
    return next(one for one in watched.judge(now) if one.name == name)


@pytest.mark.parametrize("bad", ["timeout", "killed", "died"])
@pytest.mark.parametrize("good, fires", [(9, False), (8, True)], ids=["a tenth", "more"])
def test_failures_fire_beyond_a_tenth(bad, good, fires):
    watched = watch(least=5)
    ended(watched, "ok", good)
    ended(watched, bad, 1)
    found = alert(watched, "execution_failures")
    assert (found.firing, found.value) == (fires, pytest.approx(1 / (good + 1)))


@pytest.mark.parametrize("outcome", ["error", "cancelled"])
def test_what_the_user_did_is_no_failure(outcome):
    watched = watch()
    ended(watched, outcome, 100)
    assert [one.name for one in watched.judge(NOW) if one.firing] == []
    assert alert(watched, "execution_failures").value == 0


@pytest.mark.parametrize("good, fires", [(18, False), (17, True)])
def test_starts_that_failed_are_failures(good, fires):
    watched = watch()
    ended(watched, "ok", good)
    watched.start_failed(NOW)
    watched.start_failed(NOW)
    assert alert(watched, "execution_failures").firing is fires
    assert alert(watched, "execution_timeouts").value == 0


@pytest.mark.parametrize("good, fires", [(19, False), (18, True)], ids=["a twentieth", "more"])
def test_timeouts_fire_beyond_a_twentieth(good, fires):
    watched = watch()
    ended(watched, "ok", good)
    ended(watched, "timeout", 1)
    assert alert(watched, "execution_timeouts").firing is fires


@pytest.mark.parametrize("count, concluded", [(9, False), (10, True)])
def test_nothing_is_concluded_from_too_little(count, concluded):
    watched = watch(least=10)
    ended(watched, "died", count)
    assert (alert(watched, "execution_failures").value is not None) is concluded


def test_what_is_older_than_the_window_no_longer_counts():
    watched = watch(window=600)
    ended(watched, "died", 20)
    assert alert(watched, "execution_failures", NOW + 599).firing
    assert alert(watched, "execution_failures", NOW + 601).value is None


def test_an_alert_says_since_when_it_fires_and_begins_anew():
    watched = watch(window=600)
    ended(watched, "died", 20)
    assert alert(watched, "execution_failures", NOW + 1).since == NOW + 1
    assert alert(watched, "execution_failures", NOW + 100).since == NOW + 1
    assert alert(watched, "execution_failures", NOW + 700).since is None
    ended(watched, "died", 20, NOW + 800)
    assert alert(watched, "execution_failures", NOW + 801).since == NOW + 801


# -- reconnects -------------------------------------------------------------------------------------


@pytest.mark.parametrize("reconnects, fires", [(3, False), (4, True)])
def test_reconnects_fire_beyond_three_of_one_session(reconnects, fires):
    watched = watch()
    for session in ("one", "two"):
        assert not watched.connected("k", session, NOW)
    assert all(watched.connected("k", "one", NOW) for _ in range(reconnects))
    found = alert(watched, "reconnects")
    assert (found.firing, found.value) == (fires, reconnects)


def test_many_sessions_that_connect_once_are_no_reconnects():
    watched = watch()
    for number in range(100):
        assert not watched.connected("k", str(number), NOW)
    assert alert(watched, "reconnects").value == 0


def test_one_session_id_on_several_kernels_is_a_session_of_each():
    watched = watch()
    for number in range(10):
        assert not watched.connected(f"k{number}", "lab", NOW)
    assert alert(watched, "reconnects").value == 0


@pytest.mark.parametrize("after, counts", [(PARDON - 1, False), (PARDON + 1, True)])
def test_a_reconnect_for_a_restart_is_pardoned(after, counts):
    watched = watch()
    watched.connected("k", "s", NOW)
    watched.restarted("k", NOW)
    assert watched.connected("k", "s", NOW + after) is counts


def test_reconnects_are_forgotten_after_the_window():
    watched = watch(window=600)
    for _ in range(6):
        watched.connected("k", "s", NOW)
    assert alert(watched, "reconnects").firing
    assert alert(watched, "reconnects", NOW + 601).value == 0


# -- the usual time ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds, fires", [(1.99, False), (2.0, False), (2.02, True)])
def test_slow_starts_fire_beyond_twice_the_usual(seconds, fires):
    watched = watch(least=1)
    for _ in range(USUAL_FROM):
        watched.started("template", 1.0, NOW - 1000)
    watched.started("template", seconds, NOW)
    found = alert(watched, "slow_starts")
    assert (found.firing, found.value) == (fires, pytest.approx(seconds))


@pytest.mark.parametrize("seconds, fires", [(19.9, False), (20.2, True)])
def test_slow_executions_fire_beyond_twice_the_usual_of_the_same_code(seconds, fires):
    watched = watch(least=1)
    ended(watched, "ok", USUAL_FROM, NOW - 1000, 10.0, code=1)
    ended(watched, "ok", USUAL_FROM, NOW - 1000, 500.0, code=2)
    ended(watched, "ok", 1, NOW, seconds, code=1)
    assert alert(watched, "slow_executions").firing is fires


def test_ways_to_start_are_compared_each_with_itself():
    watched = watch(least=1)
    for _ in range(USUAL_FROM):
        watched.started("template", 0.1, NOW - 1000)
    watched.started("cold", 5.0, NOW)
    assert alert(watched, "slow_starts").value is None


@pytest.mark.parametrize("outcome, code", [("error", 1), ("died", 1), ("ok", None)])
def test_only_known_code_that_ended_well_is_compared(outcome, code):
    watched = watch(least=1)
    ended(watched, outcome, 20, NOW, code=code)
    assert alert(watched, "slow_executions").value is None


def test_one_slow_run_among_many_is_not_slowness():
    watched = watch(least=5)
    ended(watched, "ok", 20, NOW, 1.0, code=1)
    ended(watched, "ok", 1, NOW, 60.0, code=1)
    assert not alert(watched, "slow_executions").firing


def test_the_noise_of_quick_cells_is_no_slowness():
    usual = Usual(10)
    for _ in range(USUAL_FROM):
        usual.compare("x", 0.001)
    assert usual.compare("x", 0.04) == 1.0


def test_what_goes_on_for_long_becomes_the_usual():
    usual = Usual(10)
    for _ in range(USUAL_FROM):
        usual.compare("x", 1.0)
    assert usual.compare("x", 10.0) == 10.0
    for _ in range(60):
        last = usual.compare("x", 10.0)
    assert last == 1.0


# -- bounds -----------------------------------------------------------------------------------------


def test_everything_that_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(alerts, "MOST", 50)
    watched = watch()
    for number in range(2000):
        watched.ended("ok", 1.0, number, NOW)
        watched.connected(f"k{number}", "s", NOW)
        watched.restarted(f"k{number}", NOW)
        watched.started(number, 1.0, NOW)
        watched.connected("k", "s", NOW + 60)
    assert len(watched._ends) == len(watched._slow["slow_starts"]) + 50 == 50
    assert len(watched._sessions) == len(watched._restarts) == 50
    assert len(watched._usual["slow_executions"]._known) == 1000
    assert len(watched._usual["slow_starts"]._known) == 100


def test_every_alert_has_a_hint():
    assert [one.name for one in watch().judge(NOW)] == list(HINTS)
    assert all(one.hint for one in watch().judge(NOW))
