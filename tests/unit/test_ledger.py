"""What a kernel's iopub says of what runs in it: tables of messages. All times are seconds, passed in."""

from __future__ import annotations

from typing import Any

import pytest

from jupyter_kernelpool.ledger import Execution, Ledger


def request(msg_id: str, **more: Any) -> dict[str, Any]:
    return {"msg_id": msg_id, "msg_type": "execute_request", **more}


def play(ledger: Ledger, *messages: tuple[float, str, dict[str, Any]]) -> None:
    """Let *ledger* hear (time, what, parent): a status by its state, else a message of that type of 10 bytes."""
    for now, what, parent in messages:
        state = what if what in ("busy", "idle", "starting") else None
        ledger.heard("status" if state else what, parent, 10, state, now)


class Heard:
    """What the listeners of a ledger were told."""

    def __init__(self, ledger: Ledger) -> None:
        self.story: list[str] = []
        self.ended: list[Execution] = []
        ledger.on_begin.append(lambda one: self.story.append(f"{one.msg_id} begins"))
        ledger.on_end.append(lambda one: self.story.append(f"{one.msg_id} ends"))
        ledger.on_end.append(self.ended.append)
        ledger.on_pause.append(
            lambda one: self.story.append(f"{one.msg_id} {'waits' if one.waits_since else 'goes on'}")
        )
        ledger.on_output.append(lambda one, kind, size, display: self.story.append(f"{one.msg_id} {kind} {size}"))


A, B = request("a"), request("b")
SUB = request("s", subshell_id="1")
INFO = {"msg_id": "i", "msg_type": "kernel_info_request"}
COMM = {"msg_id": "c", "msg_type": "comm_msg"}

CASES: dict[str, tuple[list[tuple[float, str, dict[str, Any]]], list[str]]] = {
    "an execution begins with busy and ends with idle": ([(1, "busy", A), (2, "idle", A)], ["a begins", "a ends"]),
    "two after each other": (
        [(1, "busy", A), (2, "idle", A), (3, "busy", B), (4, "idle", B)],
        ["a begins", "a ends", "b begins", "b ends"],
    ),
    "a question for the kernel's info is none": ([(1, "busy", INFO), (2, "idle", INFO)], []),
    "a comm's message is none": ([(1, "busy", COMM), (2, "stream", COMM), (3, "idle", COMM)], []),
    "neither is what has no parent": ([(1, "starting", {}), (2, "idle", {})], []),
    "a comm's idle ends no execution": ([(1, "busy", A), (2, "busy", COMM), (3, "idle", COMM)], ["a begins"]),
    "busy twice begins once": ([(1, "busy", A), (2, "busy", A), (3, "idle", A)], ["a begins", "a ends"]),
    "idle of one that was not seen to begin": ([(1, "idle", A)], []),
    "output is told with its type and size": (
        [(1, "busy", A), (2, "stream", A), (3, "idle", A)],
        ["a begins", "a stream 10", "a ends"],
    ),
    "output after the end begins nothing": (
        [(1, "busy", A), (2, "idle", A), (3, "stream", A)],
        ["a begins", "a ends"],
    ),
    "the next one's busy ends one whose idle was lost": (
        [(1, "busy", A), (2, "busy", B), (3, "idle", B)],
        ["a begins", "a ends", "b begins", "b ends"],
    ),
    "a subshell's busy ends nothing in the main shell": (
        [(1, "busy", A), (2, "busy", SUB), (3, "idle", SUB), (4, "idle", A)],
        ["a begins", "s begins", "s ends", "a ends"],
    ),
    "nor the main shell's what runs in a subshell": (
        [(1, "busy", SUB), (2, "busy", A), (3, "idle", A)],
        ["s begins", "a begins", "a ends"],
    ),
}


@pytest.mark.parametrize("messages, story", CASES.values(), ids=CASES)
def test_what_messages_tell(messages, story):
    ledger = Ledger()
    heard = Heard(ledger)
    play(ledger, *messages)
    assert heard.story == story


def test_running_is_what_the_main_shell_runs():
    ledger = Ledger()
    assert ledger.running is None
    play(ledger, (1, "busy", SUB))
    assert ledger.running is None
    play(ledger, (2, "busy", A))
    assert ledger.running is ledger.find("a")
    assert ledger.find("s").subshell == "1"
    play(ledger, (3, "idle", A))
    assert ledger.running is None


def test_output_is_counted_for_its_own_execution():
    ledger = Ledger()
    play(ledger, (1, "busy", SUB), (2, "busy", A), (3, "stream", A), (4, "stream", A), (5, "stream", SUB))
    assert (ledger.find("a").output, ledger.find("s").output) == (20, 10)


def test_waiting_for_input_does_not_count():
    ledger = Ledger()
    heard = Heard(ledger)
    play(ledger, (10, "busy", A))
    ledger.waits("a", 12)
    assert ledger.find("a").ran(100) == 2
    ledger.waits("a", 50)
    ledger.goes_on(112)
    assert ledger.find("a").ran(113) == 3
    ledger.waits("a", 113)
    ledger.goes_on(200)
    assert ledger.find("a").ran(201) == 4
    assert heard.story == ["a begins", "a waits", "a goes on", "a waits", "a goes on"]


def test_input_that_nobody_waits_for_changes_nothing():
    ledger = Ledger()
    heard = Heard(ledger)
    play(ledger, (10, "busy", A))
    ledger.goes_on(12)
    assert ledger.find("a").ran(13) == 3
    assert heard.story == ["a begins"]


def test_question_that_is_heard_before_its_execution_began_is_heeded():
    ledger = Ledger()
    ledger.waits("a", 9.9)
    play(ledger, (10, "busy", A))
    assert ledger.find("a").ran(100) < 0.2
    ledger.goes_on(100)
    assert ledger.find("a").ran(103) == pytest.approx(3, abs=0.2)


def test_question_that_was_answered_before_its_execution_was_heard_of_pauses_nothing():
    ledger = Ledger()
    ledger.waits("a", 9.8)
    ledger.goes_on(9.9)
    play(ledger, (10, "busy", A))
    assert ledger.find("a").ran(13) == 3


def test_end_of_the_process_ends_all_and_says_so():
    ledger = Ledger()
    heard = Heard(ledger)
    play(ledger, (1, "busy", SUB), (2, "busy", A))
    ledger.waits("b", 3)
    ledger.clear()
    assert heard.story == ["s begins", "a begins", "s ends", "a ends"]
    assert all(one.lost for one in heard.ended)
    assert ledger.executions == {}
    play(ledger, (4, "busy", B), (5, "idle", B))
    assert not heard.ended[-1].lost
    assert heard.ended[-1].waited == 0


def test_listener_that_clears_while_it_is_told_tells_each_end_once():
    ledger = Ledger()
    heard = Heard(ledger)
    ledger.on_end.append(lambda _: ledger.clear())
    play(ledger, (1, "busy", SUB), (2, "busy", A), (3, "idle", A))
    assert heard.story == ["s begins", "a begins", "a ends", "s ends"]


# -- what was asked for, and not heard of -----------------------------------------------------------

PATIENCE = 1.0


def awake() -> tuple[Ledger, Heard]:
    """A ledger whose kernel has said something."""
    ledger = Ledger()
    play(ledger, (0, "busy", INFO), (0, "idle", INFO))
    return ledger, Heard(ledger)


def test_execution_of_which_the_kernel_says_nothing_is_presumed_to_have_begun_when_it_was_asked_for():
    ledger, heard = awake()
    ledger.expect(A, 10)
    assert ledger.presume(PATIENCE, 10.4) == pytest.approx(0.6)
    assert heard.story == []
    assert ledger.presume(PATIENCE, 11) is None
    assert heard.story == ["a begins"]
    assert ledger.running.presumed
    assert ledger.running.ran(12) == 2


def test_presumed_execution_that_is_heard_of_begins_then():
    ledger, heard = awake()
    ledger.expect(A, 10)
    ledger.presume(PATIENCE, 11)
    play(ledger, (15, "busy", A))
    assert not ledger.running.presumed
    assert ledger.running.ran(16) == 1
    play(ledger, (17, "idle", A))
    assert heard.story == ["a begins", "a goes on", "a ends"]


def test_next_in_the_queue_is_presumed_to_have_begun_when_the_one_before_it_ended():
    ledger, heard = awake()
    ledger.expect(A, 10)
    ledger.expect(B, 10)
    play(ledger, (10, "busy", A))
    assert ledger.presume(PATIENCE, 50) is None, "it waits for its turn"
    play(ledger, (60, "idle", A))
    assert ledger.presume(PATIENCE, 60.5) == pytest.approx(0.5)
    ledger.presume(PATIENCE, 61)
    assert heard.story == ["a begins", "a ends", "b begins"]
    assert ledger.running.ran(62) == 2


@pytest.mark.parametrize("engagement", ["a comm's handler", "a start", "a fork"])
def test_nothing_is_presumed_while_the_kernel_does_something_else(engagement):
    ledger, heard = awake()
    if engagement == "a start":
        ledger.clear()
        play(ledger, (9, "starting", {}))
    elif engagement == "a comm's handler":
        play(ledger, (9, "busy", COMM))
    ledger.expect(A, 10)
    assert ledger.presume(PATIENCE, 50, engaged=engagement == "a fork") == PATIENCE
    play(ledger, (50, "idle", COMM))
    assert heard.story == []
    ledger.presume(PATIENCE, 51.5)
    assert heard.story == ["a begins"]
    assert ledger.running.ran(52) == 2


def test_kernel_is_silent_since_it_last_said_something():
    ledger, heard = awake()
    ledger.expect(A, 10)
    assert ledger.presume(PATIENCE, 10.5, engaged=True) == PATIENCE
    play(ledger, (11.2, "busy", INFO), (11.3, "idle", INFO))
    assert ledger.presume(PATIENCE, 11.5) == pytest.approx(0.8)
    assert heard.story == []


@pytest.mark.parametrize("end", ["answered", "heard of", "process gone", "in a subshell"])
def test_nothing_is_presumed_of_what_is_done_with(end):
    ledger, heard = awake()
    ledger.expect(SUB if end == "in a subshell" else A, 10)
    if end == "answered":
        ledger.answered("a")
    elif end == "heard of":
        play(ledger, (10, "busy", A), (11, "idle", A))
    elif end == "process gone":
        ledger.clear()
        play(ledger, (12, "busy", INFO), (12, "idle", INFO))
    heard.story.clear()
    assert ledger.presume(PATIENCE, 50) is None
    assert heard.story == []


def test_of_a_process_that_crossed_a_limit_the_first_that_was_asked_for_ran():
    ledger = Ledger()
    ledger.blame()
    assert ledger.running is None
    ledger.expect(A, 10)
    ledger.expect(B, 11)
    ledger.blame()
    assert (ledger.running.msg_id, ledger.running.presumed) == ("a", True)
    ledger.blame()
    assert list(ledger.executions) == ["a"], "what runs is not blamed for another"


def test_what_a_kernel_says_nothing_of_is_known_and_can_be_lost():
    ledger, ended = Ledger(), []
    ledger.on_end.append(lambda execution: ended.append(execution.msg_id))
    for number, name in enumerate("abc"):
        ledger.expect({"msg_id": name, "msg_type": "execute_request"}, float(number))
    ledger.expect({"msg_id": "sub", "msg_type": "execute_request", "subshell_id": "s"}, 0.0)
    assert ledger.unheard(1.5) == ["a", "b"]
    ledger.blame()  # the first is presumed to run
    assert ledger.unheard(5.0) == ["a", "b", "c"]
    ledger.lose("a")
    ledger.lose("b")
    assert (ended, ledger.unheard(5.0)) == (["a"], ["c"])
    ledger.heard("status", {"msg_id": "c", "msg_type": "execute_request"}, 1, "busy", 6.0)
    assert ledger.unheard(9.0) == []
    ledger.expect({"msg_id": "d", "msg_type": "execute_request"}, 7.0)
    assert ledger.unheard(9.0) == [], "it waits for its turn"
