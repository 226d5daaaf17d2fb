"""What a kernel is found to be, when it is asked again, and what follows the end of its process: tables of cases."""

import asyncio

import pytest
from jupyter_client.session import Session
from traitlets import TraitError
from traitlets.config import Config

from jupyter_kernelpool.breaker import Breaker
from jupyter_kernelpool.errors import StartsFail
from jupyter_kernelpool.health import (
    GONE,
    WHY,
    Answers,
    Policy,
    Standing,
    Verdict,
    is_told,
    judge,
    note,
    pause,
    split,
)
from jupyter_kernelpool.health_settings import KernelHealth
from jupyter_kernelpool.nudge import SESSION, Places, is_nudge
from jupyter_kernelpool.recovery import Policy as Recoveries
from jupyter_kernelpool.recovery import Recovery, Restart, Stay, decide, describe_end, is_crash
from jupyter_kernelpool.starts import Starts

POLICY = Policy(interval=30.0, backoff=2.0, start_timeout=60.0)


@pytest.mark.parametrize(
    "control, heartbeat, states, running, beside, verdict",
    [
        (True, True, [], False, True, Verdict.RESPONSIVE),
        (True, False, [], False, True, Verdict.RESPONSIVE),  # some kernels have no heartbeat
        (True, True, ["R"], True, True, Verdict.BUSY),
        (True, True, ["T"], False, True, Verdict.RESPONSIVE),  # it answered, then it was stopped
        (False, True, ["S", "S"], True, True, Verdict.WEDGED),
        (False, True, ["S", "S"], False, True, Verdict.WEDGED),
        (False, True, ["S", "S"], False, False, Verdict.WEDGED),
        (False, True, ["S", "S"], True, False, Verdict.BUSY),  # it may have one thread for all
        (False, True, [], None, False, Verdict.BUSY),
        (False, True, [], None, True, Verdict.WEDGED),
        (False, False, ["T", "T", "T"], False, True, Verdict.STOPPED),
        (False, False, ["t", "t"], True, False, Verdict.STOPPED),
        (False, False, ["T", "R", "T"], True, True, Verdict.HUNG),  # slowed down, not stopped
        (False, False, ["S", "S"], True, True, Verdict.HUNG),
        (False, False, [], False, False, Verdict.HUNG),
        (False, True, ["S", GONE], True, True, Verdict.DEAD),
        (False, False, ["T", GONE], True, True, Verdict.DEAD),
        (False, False, ["Z"], False, True, Verdict.DEAD),
        (False, False, [GONE, "S"], False, True, Verdict.HUNG),  # another process by now
    ],
)
def test_what_answers_tells_what_a_kernel_is(control, heartbeat, states, running, beside, verdict):
    assert judge(Answers(control, heartbeat, states, running), beside=beside) is verdict


def seen(standing, verdict, *, age=1000.0, now=0.0):
    return note(standing, verdict, age=age, policy=POLICY, now=now, wall=1e9 + now)


def test_a_silent_kernel_is_asked_less_and_less_and_told_of_once_in_ten():
    standing, now, told, pauses = Standing(answered=True), 0.0, 0, []
    for _ in range(20):
        standing = seen(standing, Verdict.HUNG, now=now)
        pauses.append(standing.due - now)
        now = standing.due
        told += is_told(standing.failures)
    assert pauses[:4] == [60.0, 120.0, 240.0, 480.0]
    assert set(pauses[4:]) == {600.0}
    assert told == 2
    assert (standing.failures, standing.total) == (20, 1)
    standing = seen(standing, Verdict.RESPONSIVE, now=now)
    assert (standing.failures, standing.total, standing.why, standing.due - now) == (0, 1, "", 30.0)
    assert seen(standing, Verdict.HUNG, now=now).total == 2


def test_busy_is_no_failure_however_long():
    standing = Standing(answered=True)
    for turn in range(1000):
        standing = seen(standing, Verdict.BUSY, now=30.0 * turn)
    assert (standing.failures, standing.total, standing.verdict) == (0, 0, Verdict.BUSY)


@pytest.mark.parametrize(
    "verdict, age, answered, found",
    [
        (Verdict.HUNG, 1.0, False, Verdict.STARTING),
        (Verdict.WEDGED, 59.0, False, Verdict.STARTING),
        (Verdict.HUNG, 61.0, False, Verdict.HUNG),
        (Verdict.HUNG, 1.0, True, Verdict.HUNG),
        (Verdict.STOPPED, 1.0, False, Verdict.STOPPED),
        (Verdict.DEAD, 1.0, False, Verdict.DEAD),
    ],
)
def test_a_kernel_is_given_time_to_start(verdict, age, answered, found):
    standing = seen(Standing(answered=answered), verdict, age=age)
    assert standing.verdict is found
    assert standing.why == WHY[found]
    assert (standing.failures == 0) == (found is Verdict.STARTING)


def test_a_nudge_that_could_not_be_sent_says_nothing_of_the_kernel():
    before = seen(Standing(answered=True), Verdict.HUNG)
    after = seen(before, Verdict.UNKNOWN, now=60.0)
    assert (after.verdict, after.failures, after.due) == (Verdict.HUNG, 1, 90.0)


def test_pauses_never_shrink_below_a_long_interval():
    assert pause(5, Policy(interval=3600.0)) == 3600.0
    assert pause(10_000, POLICY) == 600.0


def test_questions_are_split_over_the_whole_timeout():
    waits = split(10.0, 3, 2.0)
    assert sum(waits) == pytest.approx(10.0)
    assert [wait / waits[0] for wait in waits] == pytest.approx([1, 2, 4, 8])
    assert split(10.0, 0, 2.0) == [10.0]
    assert split(9.0, 2, 1.0) == [3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    "recovery, failed, what",
    [
        (Recovery.ALWAYS, True, Restart),
        (Recovery.ALWAYS, False, Restart),
        (Recovery.ON_FAILURE, True, Restart),
        (Recovery.ON_FAILURE, False, Stay),
        (Recovery.NEVER, True, Stay),
        (Recovery.NEVER, False, Stay),
    ],
)
def test_recovery_says_which_ends_are_followed_by_a_restart(recovery, failed, what):
    assert isinstance(decide([], failed=failed, policy=Recoveries(recovery), now=0.0), what)


def test_a_crash_loop_is_slowed_down_and_capped():
    policy = Recoveries(limit=4, fruitless=4, window=100.0, first=1.0, factor=2.0)
    ends, now, pauses = [], 0.0, []
    while isinstance(decision := decide(ends, failed=True, policy=policy, now=now), Restart):
        pauses.append(decision.pause)
        ends.append(now)
        now += decision.pause + 0.1
    assert pauses == [0.0, 1.0, 2.0, 4.0]
    assert "5 times within 100 s" in decision.why
    assert "restart_limit is 4" in decision.why
    assert decide(ends, failed=True, policy=policy, now=now + 200.0) == Restart(0.0), "that was long ago"


def test_without_a_limit_pauses_are_bounded_and_jupyter_counts():
    decision = decide([0.0] * 99, failed=True, policy=Recoveries(), now=1.0)
    assert decision == Restart(60.0)


def test_processes_that_never_answer_are_slowed_down_and_capped_however_long_each_takes():
    policy = Recoveries(limit=3, fruitless=3, window=60.0, first=1.0, factor=2.0)
    ends, pauses, now = [], [], 0.0
    for fruitless in range(1, 5):
        now += 73.0
        decision = decide(ends, failed=True, policy=policy, now=now, fruitless=fruitless)
        ends.append(now)
        pauses.append(getattr(decision, "pause", None))
    assert pauses == [0.0, 1.0, 2.0, None]
    assert "none of its last 4 processes answered" in decision.why
    assert "KernelHealth.restart_limit is 3" in decision.why
    assert decide(ends, failed=True, policy=policy, now=now + 73.0, fruitless=0) == Restart(0.0), "one answered"


def test_limit_of_jupyters_that_allows_no_restart_allows_none_here():
    decision = decide([], failed=True, policy=Recoveries(limit=0, source="KernelRestarter.restart_limit"), now=0.0)
    assert "KernelRestarter.restart_limit is 0" in decision.why


@pytest.mark.parametrize(
    "code, words",
    [(0, "with exit code 0"), (1, "with exit code 1"), (-11, "by the signal SIGSEGV"), (-9, "by the signal SIGKILL"),
     (-250, "by signal 250"), (None, "for a reason unknown")],
)  # fmt: skip
def test_an_end_is_told_in_words(code, words):
    assert describe_end(code) == words


@pytest.mark.parametrize(
    "code, crashed",
    [(None, False), (0, False), (1, True), (-11, True), (-6, True), (-2, False), (-9, False), (-15, False)],
)
def test_what_somebody_ended_did_not_crash(code, crashed):
    assert is_crash(code) == crashed


class TestBreaker:
    def test_opens_half_opens_and_closes(self):
        breaker = Breaker(threshold=3, pause=10.0)
        assert [breaker.failed("x", 0.0) for _ in range(3)] == [False, False, True]
        assert breaker.state(5.0) == "open"
        assert breaker.refusal(4.0) == 6.0
        assert breaker.state(10.0) == "half-open"
        assert breaker.refusal(10.0) is None, "one may try"
        assert breaker.refusal(10.5) > 0, "and nobody else until that has ended"
        breaker.succeeded()
        assert breaker.state(11.0) == "closed"
        assert breaker.refusal(11.0) is None

    def test_each_trial_that_fails_doubles_the_pause_up_to_a_bound(self):
        breaker, now, pauses = Breaker(threshold=1, pause=10.0), 0.0, []
        for _ in range(8):
            assert breaker.failed("x", now)
            pauses.append(breaker.retry_at - now)
            now = breaker.retry_at
            assert breaker.refusal(now) is None
        assert pauses == [10, 20, 40, 80, 160, 300, 300, 300]

    def test_failures_while_it_is_open_are_the_same_kernels_restarts(self):
        breaker = Breaker(threshold=1, pause=10.0)
        assert breaker.failed("x", 0.0)
        assert not breaker.failed("x", 5.0)
        assert breaker.retry_at == 10.0

    def test_a_trial_that_nobody_tells_of_is_over_some_day(self):
        breaker = Breaker(threshold=1, pause=10.0, patience=60.0)
        breaker.failed("x", 0.0)
        assert breaker.refusal(10.0) is None
        assert breaker.refusal(69.0) is not None
        assert breaker.refusal(70.0) is None

    def test_zero_never_opens_it(self):
        breaker = Breaker(threshold=0, pause=10.0)
        assert not any(breaker.failed("x", 0.0) for _ in range(100))
        assert breaker.state(0.0) == "closed"

    def test_a_success_between_failures_counts_them_anew(self):
        breaker = Breaker(threshold=2, pause=10.0)
        breaker.failed("x", 0.0)
        breaker.succeeded()
        assert not breaker.failed("x", 1.0)


def test_starts_are_refused_by_kernelspec_until_one_answers():
    opened = []
    starts = Starts(lambda: Breaker(threshold=2, pause=10.0))
    starts.on_open = lambda: opened.append(True)
    for _ in range(2):
        starts.admit("broken")
        starts.failed("broken", "exit code 7")
    with pytest.raises(StartsFail, match=r"'broken'.*exit code 7") as refused:
        starts.admit("broken")
    assert 1 <= refused.value.facts["retry_after"] <= 10
    assert opened == [True]
    starts.admit("other")
    starts.succeeded("broken")
    starts.admit("broken")
    assert starts.breakers == {}


@pytest.mark.parametrize(
    "general, own, recovery, expected",
    [
        ("restart", None, None, "restart"),
        ("report", "restart", None, "restart"),
        ("restart", "report", None, "report"),
        ("restart", None, "on_failure", "restart"),
        ("restart", None, "never", "interrupt"),
        ("report", "restart", "never", "interrupt"),
        ("report", None, "never", "report"),
    ],
)
def test_recipe_says_what_becomes_of_silent_kernels_and_one_that_is_never_restarted_is_not_ended(
    general, own, recovery, expected
):
    assert KernelHealth(on_unresponsive=general).silence_of(own, recovery) == expected
    if recovery == "never":
        assert KernelHealth(on_unresponsive=general, recovery="never").silence_of(own, None) == expected


@pytest.mark.parametrize(
    "traits, name",
    [
        ({"interval": -1}, "interval"),
        ({"timeout": 0}, "timeout"),
        ({"retries": 21}, "retries"),
        ({"backoff": 0.5}, "backoff"),
        ({"on_unresponsive": "panic"}, "on_unresponsive"),
        ({"recovery": "sometimes"}, "recovery"),
        ({"grace": 0}, "grace"),
        ({"restart_limit": -1}, "restart_limit"),
        ({"breaker_pause": 0}, "breaker_pause"),
    ],
    ids=str,
)
def test_wrong_trait_stops_the_server_and_is_named(traits, name):
    with pytest.raises(TraitError, match=name):
        KernelHealth(config=Config(KernelHealth=traits))


def test_what_is_published_for_a_nudge_is_told_from_all_else():
    kernel = Session(key=b"k")
    nudge = kernel.msg("kernel_info_request")
    nudge["header"]["session"] = SESSION
    other = kernel.msg("kernel_info_request")

    def published(parent, text):
        return kernel.serialize(kernel.msg("status", {"execution_state": text}, parent=parent), ident=b"kernel.status")

    assert is_nudge(published(nudge, "busy"))
    assert not is_nudge(published(other, "busy"))
    assert not is_nudge(published(other, SESSION)), "a cell may print it"
    assert not is_nudge([])
    assert not is_nudge([b"no message"])


async def holding(places, count):
    """*count* kernels that are asked and stay silent; how many are asked at the same time."""
    asked = []

    async def ask():
        async with places.one():
            asked.append(1)
            await asyncio.sleep(3600)

    tasks = [asyncio.create_task(ask()) for _ in range(count)]
    await asyncio.sleep(0.5)
    return tasks, asked


async def end(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_who_is_silent_holds_no_place_that_others_wait_for():
    places = Places(2, moment=0.01)
    tasks, asked = await holding(places, 20)
    assert len(asked) == 20
    async with asyncio.timeout(5), places.one():
        pass
    await end(tasks)


async def test_as_many_as_there_is_room_for_are_silent_and_places_come_back():
    places = Places(2, silent=3, moment=0.01)
    for _ in range(2):
        tasks, asked = await holding(places, 20)
        assert len(asked) == 5
        await end(tasks)


async def test_few_are_asked_at_the_same_moment():
    places = Places(2, moment=3600)
    tasks, asked = await holding(places, 20)
    assert len(asked) == 2
    await end(tasks)
