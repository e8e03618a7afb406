"""Small uploads that arrive together are stored together, and each of their clients hears what became of its own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from museworkd.http.small_uploads import BATCH_BYTES, BATCH_OBJECTS, BATCHES_AT_ONCE, MEMORY_BYTES, SmallUploads
from storage.errors import StoreUnavailable
from storage.objects.memory import MemoryStore


class Held(MemoryStore):
    """A store whose puts wait to be let go, or fail."""

    def __init__(self) -> None:
        super().__init__()
        self.go = trio.Event()
        self.fails = False
        self.batches: list[list[str]] = []

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        self.batches.append([key for key, _ in items])
        await self.go.wait()
        if self.fails:
            raise StoreUnavailable("injected")
        await super().put_batch(items)


def key(number: int) -> str:
    return f"staging/1/object/{number}"


async def test_what_arrives_while_the_store_is_busy_is_one_batch():
    store = Held()
    uploads = SmallUploads(store)
    async with trio.open_nursery() as nursery:
        for number in range(BATCHES_AT_ONCE):
            nursery.start_soon(uploads.put, key(number), b"x")
            await wait_all_tasks_blocked()
        for number in range(BATCHES_AT_ONCE, BATCHES_AT_ONCE + BATCH_OBJECTS + 1):
            nursery.start_soon(uploads.put, key(number), b"x")
        await wait_all_tasks_blocked()
        store.go.set()
    assert [len(batch) for batch in store.batches] == [1] * BATCHES_AT_ONCE + [BATCH_OBJECTS, 1]
    assert len({k for batch in store.batches for k in batch}) == BATCHES_AT_ONCE + BATCH_OBJECTS + 1
    assert uploads.waiting == 0


async def test_T16_a_batch_has_few_bytes():
    store = Held()
    uploads = SmallUploads(store)
    content = bytes(BATCH_BYTES // 4)
    async with trio.open_nursery() as nursery:
        for number in range(BATCHES_AT_ONCE + 9):
            nursery.start_soon(uploads.put, key(number), content)
            await wait_all_tasks_blocked()
        store.go.set()
    assert [len(batch) for batch in store.batches] == [1] * BATCHES_AT_ONCE + [4, 4, 1]


async def test_each_of_a_batch_is_told_that_it_failed_and_the_next_one_may_succeed():
    store = Held()
    store.fails = True
    uploads, failed = SmallUploads(store), []

    async def put(number: int) -> None:
        with pytest.raises(StoreUnavailable):
            await uploads.put(key(number), b"x")
        failed.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(put, number)
        await wait_all_tasks_blocked()
        store.go.set()
    assert sorted(failed) == list(range(20))
    store.fails = False
    await uploads.put(key(1), b"y")
    assert await store.get(key(1), 9) == b"y"


async def test_F25_one_that_goes_away_takes_nobody_else_along():
    """Whoever stores for others may be cancelled: somebody else does it then."""
    store = Held()
    uploads, done = SmallUploads(store), []

    async def put(number: int, scope: trio.CancelScope) -> None:
        with scope:
            await uploads.put(key(number), b"x")
            done.append(number)

    scopes = [trio.CancelScope() for _ in range(40)]
    async with trio.open_nursery() as nursery:
        for number, scope in enumerate(scopes):
            nursery.start_soon(put, number, scope)
        await wait_all_tasks_blocked()
        for number in (0, 1, 2, 5, 39):
            scopes[number].cancel()
            await wait_all_tasks_blocked()
        store.go.set()
    assert sorted(done) == [n for n in range(40) if n not in {0, 1, 2, 5, 39}]
    assert uploads.waiting == 0
    for number in done:
        assert await store.get(key(number), 9) == b"x"


async def test_T16_memory_is_given_to_those_who_have_room():
    uploads = SmallUploads(MemoryStore())
    taken = [await uploads.reserve(MEMORY_BYTES // 4 - 4096) for _ in range(4)]
    with trio.move_on_after(0) as scope:
        await uploads.reserve(10)
    assert scope.cancelled_caught
    uploads.release(taken.pop())
    uploads.release(await uploads.reserve(10))
