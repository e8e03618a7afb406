"""Try temporary failures again, within a budget."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import trio

from storage.environment import Environment
from storage.errors import StorageError
from storage.object_store import ObjectStore, ReadRange, StoreStatistics
from storage.objects.wrapped import WrappedStore

T = TypeVar("T")

_DOUBLINGS_MOST = 100
"""Far above any longest delay, and below where a float ends."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How long to keep trying: exponential back-off with full jitter (the AWS architecture blog's form)."""

    attempts: int = 8
    first_delay_s: float = 0.05
    longest_delay_s: float = 5.0
    budget_s: float = 30.0

    def delay_s(self, attempt: int, jitter: float) -> float:
        """Give the pause after failed attempt number ``attempt`` (from 1)."""
        grown = self.first_delay_s * 2.0 ** min(attempt - 1, _DOUBLINGS_MOST)
        return min(self.longest_delay_s, grown) * (0.5 + 0.5 * jitter)


class RetryingStore(WrappedStore):
    """Repeat calls whose error says it is temporary; every operation of the port may be repeated safely."""

    def __init__(self, inner: ObjectStore, environment: Environment, policy: RetryPolicy | None = None) -> None:
        super().__init__(inner)
        self._environment = environment
        self._policy = policy or RetryPolicy()
        self._retries = 0

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        """See ``ObjectStore``."""
        await self._retry(lambda: self.inner.put_batch(items))

    async def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore``."""
        await self._retry(lambda: self.inner.put_file(key, path))

    async def copy(self, source: str, target: str) -> None:
        """See ``ObjectStore``."""
        await self._retry(lambda: self.inner.copy(source, target))

    async def get(self, key: str, most: int) -> bytes:
        """See ``ObjectStore``."""
        return await self._retry(lambda: self.inner.get(key, most))

    async def get_ranges(self, ranges: Sequence[ReadRange]) -> list[bytes]:
        """See ``ObjectStore``."""
        return await self._retry(lambda: self.inner.get_ranges(ranges))

    @asynccontextmanager
    async def stream(self, key: str, offset: int = 0, size: int | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        """See ``ObjectStore``; only the opening is repeated."""
        async with AsyncExitStack() as stack:
            yield await self._retry(lambda: stack.enter_async_context(self.inner.stream(key, offset, size)))

    async def size(self, key: str) -> int:
        """See ``ObjectStore``."""
        return await self._retry(lambda: self.inner.size(key))

    async def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectStore``."""
        wanted = list(keys)
        await self._retry(lambda: self.inner.delete(wanted))

    def statistics(self) -> StoreStatistics:
        """See ``ObjectStore``."""
        return replace(self.inner.statistics(), retries=self._retries)

    async def _retry(self, call: Callable[[], Awaitable[T]]) -> T:
        policy = self._policy
        give_up_at = trio.current_time() + policy.budget_s
        attempt = 1
        while True:
            try:
                return await call()
            except StorageError as error:
                delay = policy.delay_s(attempt, self._environment.jitter())
                if not error.temporary or attempt >= policy.attempts or trio.current_time() + delay > give_up_at:
                    raise
            self._retries += 1
            attempt += 1
            await trio.sleep(delay)
