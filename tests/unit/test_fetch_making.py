"""Answers to fetches are made once for all who ask, on while the client is told to come again, and not for nobody."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from actors.fetch.making import UNWANTED_S, FetchAnswer, FetchMakers
from actors.supervisor import Supervisor
from wire.errors import Code, Refusal

ANSWER = FetchAnswer(bytes(32), 1, 2, 3)


@pytest.fixture
async def supervisor(nursery, autojump_clock) -> AsyncIterator[Supervisor]:
    made = Supervisor()
    await nursery.start(made.run, [])
    return made


class Work:
    def __init__(self, seconds: float, error: Exception | None = None) -> None:
        self.seconds, self.error = seconds, error
        self.begun = self.cut = 0

    async def __call__(self) -> FetchAnswer:
        self.begun += 1
        try:
            await trio.sleep(self.seconds)
        except trio.Cancelled:
            self.cut += 1
            raise
        if self.error is not None:
            raise self.error
        return ANSWER


async def test_identical_requests_are_worked_on_once(supervisor, autojump_clock):
    """Eight ask for the same at once: it is made once, and remembered for those who come a little later."""
    makers, work = FetchMakers(), Work(5)
    got = []

    async def ask() -> None:
        got.append(await makers.answer("key", work, supervisor.start, 60))

    async with trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(ask)
    assert (got, work.begun, len(makers)) == ([ANSWER] * 8, 1, 0)
    assert makers.made("key") == ANSWER
    await trio.sleep(601)
    assert makers.made("key") is None


async def test_who_asks_again_finds_it_under_way(supervisor, autojump_clock):
    """Longer than the client is kept waiting: told to come again, by the same name, until it is made (protocol §8)."""
    makers, work = FetchMakers(), Work(50)
    names = set()
    for _ in range(2):
        with pytest.raises(Refusal) as told:
            await makers.answer("key", work, supervisor.start, 20)
        assert told.value.code is Code.PREPARING
        names.add(told.value.facts["preparing_id"])
    assert len(names) == 1
    assert await makers.answer("key", work, supervisor.start, 20) == ANSWER
    assert work.begun == 1


async def test_one_who_leaves_does_not_end_it_for_the_others(supervisor, autojump_clock):
    """A client that goes away is not waited for; whoever asked the same gets the answer all the same."""
    makers, work = FetchMakers(), Work(5)
    with trio.move_on_after(1):
        await makers.answer("key", work, supervisor.start, 60)
    assert await makers.answer("key", work, supervisor.start, 60) == ANSWER
    assert (work.begun, work.cut) == (1, 0)


async def test_what_nobody_waits_for_is_given_up(supervisor, autojump_clock):
    """After a while without anybody; the next request begins anew."""
    makers, work = FetchMakers(), Work(10_000)
    with pytest.raises(Refusal):
        await makers.answer("key", work, supervisor.start, 1)
    await trio.sleep(UNWANTED_S + 10)
    assert work.cut == 1
    work.seconds = 1
    assert await makers.answer("key", work, supervisor.start, 60) == ANSWER
    assert work.begun == 2


async def test_an_error_is_everybodys_and_is_not_kept(supervisor, autojump_clock):
    """All who waited get it; the next request tries again."""
    makers, work = FetchMakers(), Work(5, ValueError("no"))

    async def ask() -> None:
        with pytest.raises(ValueError, match="no"):
            await makers.answer("key", work, supervisor.start, 60)

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
    assert work.begun == 1
    work.error = None
    assert await makers.answer("key", work, supervisor.start, 60) == ANSWER


@pytest.mark.parametrize("error", [None, ValueError("no")])
async def test_what_nobody_came_back_for_is_not_given_for_ever(supervisor, autojump_clock, error):
    """Made after its client had been told to come again: remembered for a while like any other, an error not at all."""
    makers, work = FetchMakers(), Work(50, error)
    with pytest.raises(Refusal):
        await makers.answer("key", work, supervisor.start, 20)
    await trio.sleep(40)
    assert len(makers) == 0
    assert makers.made("key") == (ANSWER if error is None else None)
    await trio.sleep(601)
    assert makers.made("key") is None
    work.error, work.seconds = None, 1
    assert await makers.answer("key", work, supervisor.start, 20) == ANSWER
    assert work.begun == 2
