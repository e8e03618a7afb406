"""No database connection is held while bytes move or the store is awaited."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import trio
import trio.testing
from trio.testing import wait_all_tasks_blocked

from museworkd.client.transport import Remote
from storage.objects.memory import MemoryStore
from storage.objects.wrapped import WrappedStore
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from tests.acceptance.pushing import push_frames, push_pieces
from tests.http_client import PATIENCE_S
from tests.muse import Push
from tests.servers import TOKENS, serving

PUT_S = 0.2
HELD_MOST_MS = 500


class SlowStore(WrappedStore):
    """Takes 200 ms for every PUT, however many are under way."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.puts = 0

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        self.puts += sum(not key.startswith(("journal/", "deployment/")) for key, _ in items)
        async with trio.open_nursery() as nursery:
            for item in items:
                nursery.start_soon(self._put, item)

    async def _put(self, item: tuple[str, bytes]) -> None:
        await trio.sleep(PUT_S)
        await self.inner.put_batch([item])


def push_of(count: int) -> Push:
    push = Push()
    for part in range(0, count, 50):
        push.commit({f"d{i % 7}/f{i}": b"content %d" % i for i in range(part, part + 50)}, message=f"{part}")
    return push


async def test_a_slow_store_holds_no_connection(tmp_path: Path, database_url: str) -> None:
    store = SlowStore()
    push = push_of(500)
    async with (
        PostgresIndex(DatabaseSettings(database_url)) as index,
        serving(index, store, tmp_path, limits__content_cache_object_bytes=0) as server,
    ):
        await server.make_repository()
        index.database.reset_statistics()
        remote = Remote(f"{server.url}/alice/x", TOKENS["alice"])

        answer = await push_frames(remote, push.frames())

        assert answer["type"] == "R", answer
        assert answer["blobs_written"] == 500
        assert store.puts == 501  # and one record pack
        with trio.fail_after(PATIENCE_S):  # what is journalled is ticked off after the answer
            while (statistics := index.statistics()).running:
                await wait_all_tasks_blocked(0.005)
        assert statistics.hold_max_ms < HELD_MOST_MS, statistics


async def test_a_client_that_stops_in_the_middle_holds_no_connection(tmp_path: Path, database_url: str) -> None:
    push = push_of(200)
    body = push.frames()
    resume = trio.Event()
    async with (
        PostgresIndex(DatabaseSettings(database_url)) as index,
        serving(index, MemoryStore(), tmp_path) as server,
    ):
        await server.make_repository()
        remote = Remote(f"{server.url}/alice/x", TOKENS["alice"])
        answers: list[dict] = []

        class Halting:
            """The body, with a pause in the middle for as long as the test wants."""

            def __init__(self) -> None:
                self.parts = [body[: len(body) // 2], body[len(body) // 2 :]]

            async def __aiter__(self):
                yield self.parts[0]
                await resume.wait()
                yield self.parts[1]

        async def client() -> None:
            answers.append(await push_pieces(remote, Halting()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(client)
            await settled(index)
            for _ in range(20):
                await trio.testing.wait_all_tasks_blocked(0.005)
                assert index.statistics().running == 0
            resume.set()
        assert answers[0]["type"] == "R", answers
        assert index.statistics().hold_max_ms < HELD_MOST_MS


async def settled(index: PostgresIndex) -> None:
    """Wait until the first half has been recorded and nothing more happens."""
    before = -1
    while (now := index.statistics().transactions) != before or now < 3:
        before = now
        await trio.testing.wait_all_tasks_blocked(0.05)
