"""What every test of the HTTP floor's connections comes back to: a server that answers and holds nothing."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import trio
from trio.testing import wait_all_tasks_blocked

from storage.errors import StoreUnavailable
from storage.memory.index import MemoryIndex
from storage.object_store import ObjectStore
from storage.objects.memory import MemoryStore
from storage.objects.wrapped import WrappedStore
from tests.http_client import PATIENCE_S, ask, connected
from tests.muse import Push, blob_id, frame, last_frame
from tests.servers import Server, serving

PUSH = "/alice/x/push/stream"
MIB = 1024 * 1024


@asynccontextmanager
async def surviving(
    tmp_path: Path, index: MemoryIndex | None = None, store: ObjectStore | None = None, **settings: object
) -> AsyncIterator[Server]:
    """Serve a block that must leave the server as it was: answering, and holding nothing of what was done to it."""
    async with serving(index or MemoryIndex(), store or MemoryStore(), tmp_path, **settings) as server:
        await server.make_repository()
        await settled(server)
        before = resources()
        yield server
        await settled(server)
        assert all(count <= before[name] for name, count in resources().items()), before
        answer = await ask(server, "GET", "/livez")
        assert (answer.status, answer.value) == (200, {"status": "live"})


def resources() -> dict[str, int]:
    return {
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "descriptors": len(os.listdir("/proc/self/fd")),  # noqa: PTH208 - a listing, not paths
    }


async def settled(server: Server, connections: int = 0) -> None:
    """Wait until so many connections are left."""
    with trio.fail_after(PATIENCE_S):
        while server.http.statistics().connections != connections:
            await wait_all_tasks_blocked(0.005)
        await wait_all_tasks_blocked(0.005)


def logged(logs: list[dict], event: str) -> list[dict]:
    return [entry for entry in logs if entry["event"] == event]


class GatedStore(WrappedStore):
    """A store whose writes hang until the gate is opened."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.gate = trio.Event()
        self.waiting = trio.Event()

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        self.waiting.set()
        await self.gate.wait()
        await super().put_batch(items)


class StreamingStore(WrappedStore):
    """A store that counts the bytes streamed from it, and may break a stream after its first piece."""

    def __init__(self, breaks: bool = False) -> None:
        super().__init__(MemoryStore())
        self.breaks = breaks
        self.streamed = 0
        self.streams = 0

    @asynccontextmanager
    async def stream(self, key: str, offset: int = 0, size: int | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        async def counted(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
            async for piece in pieces:
                self.streamed += len(piece)
                yield piece
                if self.breaks:
                    raise StoreUnavailable("it broke in the middle")

        self.streams += 1
        async with super().stream(key, offset, size) as pieces, aclosing(counted(pieces)) as watched:
            yield watched


def small_push() -> Push:
    push = Push()
    push.commit({"a.txt": b"hello\n", "empty": b""})
    return push


async def push_blob(server: Server, content: bytes) -> str:
    """Push one large file in chunks; gives its path."""
    oid = blob_id(content)
    push = Push()
    push.commit({"large.bin": content})
    del push.blobs[oid]
    chunks = [content[at : at + MIB] for at in range(0, len(content), MIB)]
    objects = [
        frame("OC", object_id=oid, encoding="raw", seq=seq, last=seq == len(chunks) - 1, content=chunk)
        for seq, chunk in enumerate(chunks)
    ]
    body = b"".join([push.header(), *objects, push.commit_frame(), push.end(n_objects=1)])
    answer = await ask(server, "POST", PUSH, token="alice", body=body)
    assert last_frame(answer.body)["type"] == "R"
    return f"/alice/x/o/{oid}"


async def closed_with(tmp_path: Path, status: int, sent: bytes) -> None:
    """Expect one answer and the end of the connection."""
    async with surviving(tmp_path) as server, connected(server) as connection:
        await connection.send(sent)
        assert (await connection.answer()).status == status
        assert await connection.until_end() == b""
