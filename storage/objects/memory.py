"""The object store's memory twin: for deterministic simulation, held to the same behaviour suite."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from storage.environment import Environment, SystemEnvironment
from storage.errors import ObjectDamaged, ObjectMissing, StoreUnavailable
from storage.layout import check_key
from storage.object_store import ReadRange, StoredObject, StoreStatistics, UrlSigning

_PIECE_BYTES = 256 * 1024


class MemoryStore:
    """``ObjectStore`` in a dictionary."""

    def __init__(self, environment: Environment | None = None) -> None:
        self._environment = environment or SystemEnvironment()
        self._contents: dict[str, tuple[bytes, float]] = {}
        self._statistics = StoreStatistics()

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        """See ``ObjectStore``."""
        await trio.lowlevel.checkpoint()
        for key, content in items:
            self._put(key, bytes(content))

    async def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore``."""
        await trio.lowlevel.checkpoint()
        try:
            content = path.read_bytes()  # noqa: ASYNC240 - the twin blocks nobody
        except FileNotFoundError as error:
            if check_key(key) not in self._contents:
                raise StoreUnavailable(str(error), temporary=False) from error
            return
        self._put(key, content)
        path.unlink()  # noqa: ASYNC240

    async def copy(self, source: str, target: str) -> None:
        """See ``ObjectStore``."""
        await trio.lowlevel.checkpoint()
        content = self._find(source)
        self._contents[check_key(target)] = (content, self._environment.now().timestamp())
        self._statistics.puts += 1

    async def get(self, key: str, most: int) -> bytes:
        """See ``ObjectStore``."""
        await trio.lowlevel.checkpoint()
        content = self._find(key)
        if len(content) > most:
            raise ValueError(f"{key} has {len(content)} bytes, at most {most} were expected")
        self._count_get(len(content))
        return content

    async def get_ranges(self, ranges: Sequence[ReadRange]) -> list[bytes]:
        """See ``ObjectStore``."""
        await trio.lowlevel.checkpoint()
        return [self._cut(r.key, r.offset, r.size) for r in ranges]

    @asynccontextmanager
    async def stream(self, key: str, offset: int = 0, size: int | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        """See ``ObjectStore``."""
        await trio.lowlevel.checkpoint()
        total = len(self._find(key))
        wanted = self._cut(key, offset, total - offset if size is None else size)

        async def pieces() -> AsyncGenerator[bytes, None]:
            for at in range(0, len(wanted), _PIECE_BYTES):
                await trio.lowlevel.checkpoint()
                yield wanted[at : at + _PIECE_BYTES]

        async with aclosing(pieces()) as given:
            yield given

    async def size(self, key: str) -> int:
        """See ``ObjectStore``."""
        await trio.lowlevel.checkpoint()
        return len(self._find(key))

    async def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectStore``."""
        await trio.lowlevel.checkpoint()
        for key in keys:
            self._contents.pop(check_key(key), None)
            self._statistics.deletes += 1

    async def scan(self, prefix: str) -> AsyncIterator[StoredObject]:
        """See ``ObjectStore``."""
        await trio.lowlevel.checkpoint()
        under = check_key(prefix.rstrip("/")) + "/" if prefix else ""
        for key, (content, modified) in sorted(self._contents.items()):
            if key.startswith(under):
                yield StoredObject(key, len(content), modified)

    async def sweep_temporary(self, older_than_s: float) -> int:  # noqa: ARG002 - the port's
        """See ``ObjectStore``; nothing is ever half done."""
        await trio.lowlevel.checkpoint()
        return 0

    def statistics(self) -> StoreStatistics:
        """See ``ObjectStore``."""
        return replace(self._statistics)

    def signing(self) -> UrlSigning | None:
        """See ``ObjectStore``; it is reached through the daemon."""
        return None

    def _put(self, key: str, content: bytes) -> None:
        self._contents[check_key(key)] = (content, self._environment.now().timestamp())
        self._statistics.puts += 1
        self._statistics.put_bytes += len(content)

    def _find(self, key: str) -> bytes:
        found = self._contents.get(check_key(key))
        if found is None:
            raise ObjectMissing(key)
        return found[0]

    def _cut(self, key: str, offset: int, size: int) -> bytes:
        content = self._find(key)
        if offset < 0 or size < 0 or offset + size > len(content):
            raise ObjectDamaged(f"{key} has {len(content)} bytes, {offset}+{size} were asked for")
        self._count_get(size)
        return content[offset : offset + size]

    def _count_get(self, size: int) -> None:
        self._statistics.gets += 1
        self._statistics.get_bytes += size
