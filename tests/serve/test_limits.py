"""Admission: order, bounds, time limits, and that no slot is lost or doubled."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import product
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.serve.limits import AdmissionError, Limits
from virtual_time import run_virtual


async def hold(limits: Limits, seconds: float, log: list[Any], name: Any, model: str = "m") -> None:
    async with limits.admit(model):
        log.append(name)
        await asyncio.sleep(seconds)


def test_requests_run_in_order_of_arrival() -> None:
    async def main() -> list[int]:
        limits, log = Limits(2, 100, 1e6), []
        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(hold(limits, 1 + number % 3, log, number))
            await asyncio.sleep(0.5)
            assert (limits.running("m"), limits.waiting("m")) == (2, 18)
        assert (limits.running("m"), limits.waiting("m")) == (0, 0)
        return log

    assert run_virtual(main()) == list(range(20))


def test_models_do_not_share_slots() -> None:
    async def main() -> None:
        limits = Limits(1, 0, 1.0)
        async with limits.admit("a"), limits.admit("b"):
            with pytest.raises(AdmissionError):
                async with limits.admit("a"):
                    pass

    run_virtual(main())


def test_a_full_queue_refuses_with_an_estimate() -> None:
    async def main() -> None:
        limits = Limits(1, 2, 1e6)
        tasks = [asyncio.create_task(hold(limits, 100, [], number)) for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(AdmissionError, match="queue of m is full") as error:
            await hold(limits, 1, [], 0)
        assert error.value.status == 429
        assert 1 <= error.value.retry_after <= 60
        await asyncio.gather(*tasks)

    run_virtual(main())


@pytest.mark.parametrize(("seconds", "bounds"), [(0.0, (1, 1)), (4.0, (11, 13)), (1000.0, (60, 60))])
def test_retry_after_follows_recent_requests(
    monkeypatch: pytest.MonkeyPatch, seconds: float, bounds: tuple[int, int]
) -> None:
    async def main() -> int:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr("meditron.serve.limits.time.monotonic", loop.time)
        limits = Limits(1, 2, 1e6)
        await hold(limits, seconds, [], 0)
        tasks = [asyncio.create_task(hold(limits, 1, [], number)) for number in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(AdmissionError) as error:
            await hold(limits, 1, [], 0)
        await asyncio.gather(*tasks)
        return error.value.retry_after

    assert bounds[0] <= run_virtual(main()) <= bounds[1]  # three requests of this length are ahead


def test_a_long_wait_ends() -> None:
    async def main() -> None:
        limits = Limits(1, 2, 5.0)
        holder = asyncio.create_task(hold(limits, 100, [], 0))
        await asyncio.sleep(0)
        start = asyncio.get_running_loop().time()
        with pytest.raises(AdmissionError, match="within 5 s") as error:
            await hold(limits, 1, [], 1)
        assert (error.value.status, asyncio.get_running_loop().time() - start) == (503, 5.0)
        assert (limits.running("m"), limits.waiting("m")) == (1, 0)
        await holder

    run_virtual(main())


def test_a_cancelled_waiter_leaves_at_once() -> None:
    async def main() -> None:
        limits, log = Limits(1, 1, 1e6), []
        holder = asyncio.create_task(hold(limits, 10, log, "holder"))
        await asyncio.sleep(0)
        waiter = asyncio.create_task(hold(limits, 1, log, "gone"))
        await asyncio.sleep(0)
        waiter.cancel()
        await asyncio.gather(waiter, return_exceptions=True)
        assert limits.waiting("m") == 0
        await asyncio.gather(holder, hold(limits, 1, log, "next"))
        assert log == ["holder", "next"]

    run_virtual(main())


def test_an_exception_frees_the_slot() -> None:
    async def main() -> None:
        limits = Limits(1, 0, 1.0)
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with limits.admit("m"):
                    raise ZeroDivisionError

    run_virtual(main())


def test_drain_refuses_new_and_waiting_requests_and_waits_for_running_ones() -> None:
    async def main() -> None:
        limits, log = Limits(1, 5, 1e6), []
        holder = asyncio.create_task(hold(limits, 10, log, "holder"))
        waiter = asyncio.create_task(hold(limits, 1, log, "waiter"))
        await asyncio.sleep(0)
        limits.drain()
        for refused in (waiter, hold(limits, 1, log, "new")):
            with pytest.raises(AdmissionError, match="shutting down") as error:
                await refused
            assert error.value.status == 503
        assert not await limits.drained(5.0)
        assert await limits.drained(6.0)
        await holder
        assert log == ["holder"]

    run_virtual(main())


def test_an_idle_server_is_drained_at_once() -> None:
    async def main() -> None:
        limits = Limits(1, 5, 1.0)
        limits.drain()
        assert await limits.drained(0.1)

    run_virtual(main())


Operation = tuple[str, float]
"""Start a request that runs for some seconds, cancel one of the newest, let time pass, or drain.

Zero seconds are one turn of the event loop. They put a cancellation into the same turn as the end of another
request, between the moment at which a slot is handed over and the moment at which it is taken.
"""


async def check_slots(slots: int, queue: int, patience: float, operations: Sequence[Operation]) -> None:
    """Run operations, and check after each that no slot was lost or doubled."""
    limits, inside, served = Limits(slots, queue, patience), set[int](), list[int]()

    async def request(number: int, seconds: float) -> None:
        async with limits.admit("m"):
            inside.add(number)
            served.append(number)
            assert len(inside) <= limits.running("m") <= slots
            try:
                await asyncio.sleep(seconds)
            finally:
                inside.discard(number)

    tasks: list[asyncio.Task[None]] = []
    for kind, value in operations:
        if kind == "start":
            tasks.append(asyncio.create_task(request(len(tasks), value)))
        elif kind == "cancel" and tasks:
            tasks[-1 - int(value) % len(tasks)].cancel()
        elif kind == "wait":
            await asyncio.sleep(value)
        elif kind == "drain":
            limits.drain()
        assert limits.running("m") <= slots
        assert limits.waiting("m") <= queue
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert result is None or isinstance(result, AdmissionError | asyncio.CancelledError), result
    assert served == sorted(served)
    assert (limits.running("m"), limits.waiting("m")) == (0, 0)
    assert await limits.drained(0.1)
    if ("drain", 0.0) not in operations:  # every slot can be taken again, and not one more
        async with AsyncExitStack() as stack:
            for _ in range(slots):
                await stack.enter_async_context(limits.admit("m"))
            assert limits.running("m") == slots


_EACH = [("start", 0.0), ("start", 1.0), ("cancel", 0.0), ("cancel", 1.0), ("wait", 0.0), ("wait", 1.0)]


@pytest.mark.parametrize("patience", [1.0, 10.0])
def test_no_slot_is_lost_or_doubled_in_any_order(patience: float) -> None:
    """Every order of four operations after two requests have begun to compete for one slot."""

    async def main() -> None:
        for order in product([*_EACH, ("drain", 0.0)], repeat=4):
            await check_slots(1, 2, patience, [("start", 1.0), ("start", 1.0), *order])

    run_virtual(main())


@settings(max_examples=100)
@given(
    st.integers(1, 3),
    st.integers(0, 3),
    st.sampled_from((1.0, 2.0, 10.0)),
    st.lists(st.sampled_from([*_EACH, ("cancel", 2.0), ("wait", 2.0), ("start", 3.0)]), max_size=40),
)
def test_no_slot_is_lost_or_doubled_in_long_histories(
    slots: int, queue: int, patience: float, operations: list[Operation]
) -> None:
    run_virtual(check_slots(slots, queue, patience, operations))
