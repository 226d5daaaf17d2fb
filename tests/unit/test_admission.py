"""How many kernels may run: order, refusals, and nothing left behind by who gives up."""

import asyncio
import contextlib
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jupyter_kernelpool.admission import Admission, Turns
from jupyter_kernelpool.errors import PoolExhausted


class House:
    """Kernels that run, behind an `Admission`."""

    def __init__(self, limit: int, exhausted: str = "wait", timeout: float = 30.0) -> None:
        self.running = 0
        self.most = 0
        self.admission = Admission(limit, exhausted, timeout, lambda: self.running)

    async def start(self) -> bool:
        """A start that succeeds at once."""
        temporary = await self.admission.enter()
        self.running += 1
        self.admission.leave()
        self.most = max(self.most, self.running)
        return temporary

    def end(self) -> None:
        self.running -= 1
        self.admission.freed()


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def asked(house: House, count: int) -> list[asyncio.Task[bool]]:
    return [asyncio.create_task(house.start()) for _ in range(count)]


async def stopped(*tasks: asyncio.Task) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_without_a_limit_everybody_is_admitted():
    house = House(0)
    assert await asyncio.gather(*asked(house, 50)) == [False] * 50
    assert house.running == 50


async def test_pending_starts_count_towards_the_limit():
    admission = House(2, "fail").admission
    await admission.enter()
    await admission.enter()
    with pytest.raises(PoolExhausted):
        await admission.enter()
    admission.leave()
    assert await admission.enter() is False


async def test_who_waits_is_admitted_in_order():
    house = House(1)
    await house.start()
    admitted = []

    async def come(name):
        await house.admission.enter()
        admitted.append(name)

    tasks = [asyncio.create_task(come(name)) for name in "abc"]
    await settle()
    assert admitted == []
    house.end()
    await settle()
    assert admitted == ["a"]
    for _ in range(2):
        house.admission.leave()
        await settle()
    assert admitted == ["a", "b", "c"]
    await asyncio.gather(*tasks)


async def test_nobody_overtakes_who_waits():
    house = House(1)
    await house.start()
    (first,) = asked(house, 1)
    await settle()
    house.running -= 1  # a place is there, and who waits was not told yet
    (second,) = asked(house, 1)
    await settle()
    assert not second.done()
    house.admission.freed()
    await settle()
    assert first.done()
    assert not second.done()
    await stopped(second)


async def test_cancelled_waiter_loses_no_place():
    house = House(1)
    await house.start()
    first, second = asked(house, 2)
    await settle()
    await stopped(first)
    assert house.admission.waiting == 1
    house.end()
    assert await second is False
    assert house.admission.pending == 0


async def test_place_given_to_a_waiter_that_is_cancelled_in_that_moment_goes_to_the_next():
    house = House(1)
    await house.start()
    first, second = asked(house, 2)
    await settle()
    house.end()  # gives the place to the first
    first.cancel()
    assert await second is False
    assert first.cancelled()
    assert house.admission.pending == 0
    assert house.running == 1


async def test_waiter_that_times_out_is_refused_and_loses_no_place():
    house = House(1, timeout=0.01)
    await house.start()
    with pytest.raises(PoolExhausted, match=r"1 kernels \(KernelPool.max_kernels\).*within 0.01 s") as refused:
        await house.start()
    assert refused.value.status == 503
    assert refused.value.facts["retry_after"] > 0
    assert refused.value.facts["limit"] == 1
    assert house.admission.waiting == 0
    house.end()
    assert house.admission.pending == 0
    assert await house.start() is False


async def test_failing_start_lets_the_next_in():
    house = House(1)
    await house.admission.enter()
    (waiting,) = asked(house, 1)
    await settle()
    assert not waiting.done()
    house.admission.leave()  # the first start failed: no kernel runs
    assert await waiting is False


async def test_fail_refuses_at_once():
    house = House(1, "fail", timeout=1e9)
    await house.start()
    with pytest.raises(PoolExhausted, match="max_kernels"):
        await house.start()
    assert house.admission.pending == 0


async def test_temporary_admits_beyond_the_limit_and_says_so():
    house = House(1, "temporary")
    assert await house.start() is False
    assert await house.start() is True
    assert house.running == 2
    house.end()
    house.end()
    assert await house.start() is False


async def test_many_at_once_never_exceed_the_limit():
    house = House(3)
    tasks = asked(house, 40)
    ended = 0
    while ended < 40:
        await settle()
        assert house.running + house.admission.pending <= 3
        if house.running:
            house.end()
            ended += 1
    await asyncio.gather(*tasks)
    assert house.most == 3
    assert house.admission.pending == house.admission.waiting == house.running == 0


STEPS = st.lists(
    st.one_of(
        st.sampled_from(["ask", "end", "fail", "run", "turn"]),
        st.tuples(st.just("cancel"), st.integers(0, 20)),
    ),
    max_size=60,
)


@given(STEPS, st.integers(1, 3))
@settings(max_examples=150)
def test_whatever_the_order_no_place_is_lost_or_made_up(steps, limit):
    async def live() -> None:
        house = House(limit)
        admission = house.admission
        tasks: list[asyncio.Task[bool]] = []
        counted: set[asyncio.Task[bool]] = set()

        def pending() -> list[asyncio.Task[bool]]:
            """Starts that were admitted and neither run nor failed."""
            return [t for t in tasks if t.done() and not t.cancelled() and t not in counted]

        for step in steps:
            match step:
                case "ask":
                    tasks.append(asyncio.create_task(admission.enter()))
                case "end" if house.running:
                    house.end()
                case "fail" if pending():
                    counted.add(pending()[0])
                    admission.leave()
                case "run" if pending():
                    counted.add(pending()[0])
                    house.running += 1
                    admission.leave()
                case "turn":
                    await asyncio.sleep(0)
                case ("cancel", place) if place < len(tasks):
                    tasks[place].cancel()
            assert house.running + admission.pending <= limit
        await settle()
        assert admission.pending == len(pending())
        assert not admission.waiting or house.running + admission.pending == limit
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    with asyncio.Runner() as runner:
        runner.run(live())


# -- turns ------------------------------------------------------------------------------------------


async def test_one_start_goes_on_in_each_turn_of_the_loop_in_order():
    turns, order = Turns(), []
    loop = asyncio.get_running_loop()

    async def start(number):
        await turns.mine()
        order.append(number)

    seen = [0]

    def look():
        seen.append(len(order))
        if len(order) < 4:
            loop.call_soon(look)

    loop.call_soon(look)
    await asyncio.gather(*(start(number) for number in range(4)))
    assert order == [0, 1, 2, 3]
    assert {later - earlier for earlier, later in pairwise(seen)} <= {0, 1}


async def test_a_start_alone_does_not_wait_for_its_turn():
    turns = Turns()
    for _ in range(2):
        coroutine = turns.mine()
        with pytest.raises(StopIteration):
            coroutine.send(None)
        await asyncio.sleep(0)
        await asyncio.sleep(0)


async def test_a_cancelled_start_gives_its_turn_to_the_next():
    turns = Turns()
    await turns.mine()
    given_up, next_one = asyncio.create_task(turns.mine()), asyncio.create_task(turns.mine())
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait_for(next_one, 1)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await asyncio.wait_for(turns.mine(), 1)
