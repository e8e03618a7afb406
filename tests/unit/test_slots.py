"""``Slots``: several at once, first come first served, nothing lost to cancellation."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import assert_checkpoints, wait_all_tasks_blocked

from storage.slots import Slots, SlotStatistics


async def take(slots: Slots, count: int, order: list[object], name: object) -> None:
    await slots.acquire(count)
    order.append(name)


async def test_slots_are_held_for_the_length_of_a_block() -> None:
    slots = Slots(10)
    async with slots.hold(3), slots.hold(4):
        assert slots.statistics() == SlotStatistics(10, 7, 0)
    assert slots.statistics() == SlotStatistics(10, 0, 0)


async def test_slots_are_given_back_when_the_block_raises() -> None:
    slots = Slots(2)
    with pytest.raises(ZeroDivisionError):
        async with slots.hold(2):
            raise ZeroDivisionError
    assert slots.statistics().taken == 0


async def test_who_finds_none_waits_until_enough_are_given_back(autojump_clock: trio.testing.MockClock) -> None:
    slots = Slots(4)
    order: list[object] = []
    await slots.acquire(4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, slots, 3, order, "three")
        await wait_all_tasks_blocked()
        slots.release(2)
        await wait_all_tasks_blocked()
        assert order == []
        assert slots.statistics() == SlotStatistics(4, 2, 1)
        slots.release(1)
    assert order == ["three"]


async def test_first_come_first_served_also_for_small_requests_behind_a_large_one() -> None:
    slots = Slots(4)
    order: list[object] = []
    await slots.acquire(3)
    async with trio.open_nursery() as nursery:
        for name, count in enumerate([4, 1, 4, 1]):
            nursery.start_soon(take, slots, count, order, name)
            await wait_all_tasks_blocked()
        assert order == []  # one slot is free, and the one who wants four is not overtaken
        slots.release(3)
        await wait_all_tasks_blocked()
        assert order == [0]
        slots.release(4)
        await wait_all_tasks_blocked()
        assert order == [0, 1]
        slots.release(1)
        await wait_all_tasks_blocked()
        assert order == [0, 1, 2]
        slots.release(4)
    assert order == [0, 1, 2, 3]


async def test_a_request_for_more_than_all_waits_for_all() -> None:
    slots = Slots(3)
    await slots.acquire(1)
    async with trio.open_nursery() as nursery:
        taken: list[int] = []

        async def take_all() -> None:
            taken.append(await slots.acquire(1000))

        nursery.start_soon(take_all)
        await wait_all_tasks_blocked()
        assert taken == []
        slots.release(1)
    assert taken == [3]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(take_all)
        slots.release(taken[0])
    assert slots.statistics() == SlotStatistics(3, 3, 0)


async def test_none_are_to_be_had_at_once() -> None:
    slots = Slots(1)
    async with slots.hold(1), slots.hold(0):
        assert slots.statistics().taken == 1


async def test_taking_is_a_checkpoint() -> None:
    slots = Slots(2)
    with assert_checkpoints():
        await slots.acquire(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await slots.acquire(1)
    assert scope.cancelled_caught
    assert slots.statistics().taken == 1


async def test_who_leaves_the_line_lets_the_next_one_through() -> None:
    slots = Slots(4)
    order: list[object] = []
    await slots.acquire(2)
    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as impatient:
                impatient.start_soon(take, slots, 4, order, "impatient")
                await wait_all_tasks_blocked()
                nursery.start_soon(take, slots, 2, order, "behind")
                await wait_all_tasks_blocked()
                scope.cancel()
        await wait_all_tasks_blocked()
        assert order == ["behind"]
    assert slots.statistics() == SlotStatistics(4, 4, 0)


@pytest.mark.parametrize("first", ["the slots", "the cancellation"])
async def test_slots_that_come_together_with_a_cancellation_are_not_lost(first: str) -> None:
    slots = Slots(1)
    await slots.acquire(1)

    async def hold() -> None:
        async with slots.hold(1):
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        if first == "the slots":
            slots.release(1)
            nursery.cancel_scope.cancel()
        else:
            nursery.cancel_scope.cancel()
            slots.release(1)
    assert slots.statistics() == SlotStatistics(1, 0, 0)


@pytest.mark.parametrize("seed", range(5))
async def test_never_more_than_all_are_taken_and_all_come_back(
    seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    rng = random.Random(seed)
    slots = Slots(7)
    held = most = 0

    async def use() -> None:
        nonlocal held, most
        count, patience, length = rng.randrange(10), rng.uniform(0, 20), rng.uniform(0, 2)
        await trio.sleep(rng.uniform(0, 10))
        with trio.move_on_after(patience):
            async with slots.hold(count):
                held += min(count, 7)
                most = max(most, held)
                try:
                    await trio.sleep(length)
                finally:
                    held -= min(count, 7)

    async with trio.open_nursery() as nursery:
        for _ in range(100):
            nursery.start_soon(use)
    assert most == 7
    assert slots.statistics() == SlotStatistics(7, 0, 0)
