"""The actor base: a bounded mailbox, statistics, an end that senders notice."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from actors.actor import Actor


class Collector(Actor[int]):
    def __init__(self, most: int = 2) -> None:
        super().__init__("collector", mailbox_size=most)
        self.got: list[int] = []
        self.open = trio.Event()

    async def handle(self, message: int) -> None:
        await self.open.wait()
        if message < 0:
            raise ValueError(message)
        self.got.append(message)


async def test_messages_are_handled_in_order(nursery: trio.Nursery) -> None:
    actor = Collector()
    actor.open.set()
    nursery.start_soon(actor.live)
    for number in range(10):
        await actor.post(number)
    await trio.testing.wait_all_tasks_blocked()
    assert actor.got == list(range(10))
    assert actor.statistics().handled == 10


async def test_a_full_mailbox_makes_senders_wait(nursery: trio.Nursery) -> None:
    actor = Collector(most=2)
    nursery.start_soon(actor.live)
    sent: list[int] = []

    async def send() -> None:
        for number in range(5):
            await actor.post(number)
            sent.append(number)

    nursery.start_soon(send)
    await trio.testing.wait_all_tasks_blocked()
    assert sent == [0, 1, 2]  # one in hand, two in the mailbox
    statistics = actor.statistics()
    assert (statistics.mailbox_used, statistics.mailbox_size, statistics.senders_waiting) == (2, 2, 1)
    with pytest.raises(trio.WouldBlock):
        actor.post_nowait(9)
    actor.open.set()
    await trio.testing.wait_all_tasks_blocked()
    assert sent == actor.got == [0, 1, 2, 3, 4]


async def test_senders_learn_that_an_actor_has_ended() -> None:
    actor = Collector()
    actor.open.set()
    await actor.post(-1)
    with pytest.raises(ValueError, match="-1"):
        await actor.live()
    with pytest.raises(trio.BrokenResourceError):
        await actor.post(1)
    assert actor.statistics().running is False
