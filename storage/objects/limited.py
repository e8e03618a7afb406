"""Bound what one daemon asks of its store: how many objects at once, and how long a call may take."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import trio

from storage.errors import StoreUnavailable
from storage.object_store import ObjectStore, ReadRange, StoreStatistics
from storage.objects.wrapped import WrappedStore
from storage.slots import Slots

PARALLEL_PUTS = 100
"""Objects being written at once (protocol §12)."""
PARALLEL_GETS = 64
CALL_TIMEOUT_S = 60.0
"""For one call on small contents; a large file gets more, by its size."""
SLOWEST_BYTES_PER_S = 1024 * 1024


class LimitedStore(WrappedStore):
    """Hold slots for every call, one for each object of a batch, and time out calls that hang."""

    def __init__(
        self, inner: ObjectStore, puts: int = PARALLEL_PUTS, gets: int = PARALLEL_GETS,
        call_timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:  # fmt: skip
        super().__init__(inner)
        self._puts = Slots(puts)
        self._gets = Slots(gets)
        self._call_timeout_s = call_timeout_s

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        """See ``ObjectStore``."""
        async with self._puts.hold(len(items)), self._timed(sum(len(content) for _, content in items)):
            await self.inner.put_batch(items)

    async def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore``."""
        try:
            size = path.stat().st_size  # noqa: ASYNC240 - one look at a local inode
        except FileNotFoundError:  # consumed by a call before this one, or the store will say so
            size = 0
        async with self._puts.hold(1), self._timed(size):
            await self.inner.put_file(key, path)

    async def copy(self, source: str, target: str) -> None:
        """See ``ObjectStore``."""
        async with self._puts.hold(1), self._timed(0):
            await self.inner.copy(source, target)

    async def get(self, key: str, most: int) -> bytes:
        """See ``ObjectStore``."""
        async with self._gets.hold(1), self._timed(most):
            return await self.inner.get(key, most)

    async def get_ranges(self, ranges: Sequence[ReadRange]) -> list[bytes]:
        """See ``ObjectStore``."""
        async with self._gets.hold(1), self._timed(sum(r.size for r in ranges)):
            return await self.inner.get_ranges(ranges)

    async def size(self, key: str) -> int:
        """See ``ObjectStore``."""
        async with self._gets.hold(1), self._timed(0):
            return await self.inner.size(key)

    async def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectStore``."""
        async with self._puts.hold(1), self._timed(0):
            await self.inner.delete(keys)

    def statistics(self) -> StoreStatistics:
        """See ``ObjectStore``; running and waiting count calls at this limit."""
        puts, gets = self._puts.statistics(), self._gets.statistics()
        return replace(self.inner.statistics(), running=puts.taken + gets.taken, waiting=puts.waiting + gets.waiting)

    @asynccontextmanager
    async def _timed(self, size: int) -> AsyncIterator[None]:
        limit_s = self._call_timeout_s + size / SLOWEST_BYTES_PER_S
        try:
            with trio.fail_after(limit_s):
                yield
        except trio.TooSlowError:
            raise StoreUnavailable(f"the object store did not answer within {limit_s:.0f} s") from None
