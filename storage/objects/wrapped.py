"""A store that passes everything on: the base of the wrappers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from storage.object_store import ObjectStore, ReadRange, StoredObject, StoreStatistics, UrlSigning


class WrappedStore:
    """``ObjectStore`` that delegates to ``inner``; subclasses override what they change."""

    def __init__(self, inner: ObjectStore) -> None:
        self.inner = inner

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        """See ``ObjectStore``."""
        await self.inner.put_batch(items)

    async def put_file(self, key: str, path: Path) -> None:
        """See ``ObjectStore``."""
        await self.inner.put_file(key, path)

    async def copy(self, source: str, target: str) -> None:
        """See ``ObjectStore``."""
        await self.inner.copy(source, target)

    async def get(self, key: str, most: int) -> bytes:
        """See ``ObjectStore``."""
        return await self.inner.get(key, most)

    async def get_ranges(self, ranges: Sequence[ReadRange]) -> list[bytes]:
        """See ``ObjectStore``."""
        return await self.inner.get_ranges(ranges)

    def stream(
        self, key: str, offset: int = 0, size: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """See ``ObjectStore``."""
        return self.inner.stream(key, offset, size)

    async def size(self, key: str) -> int:
        """See ``ObjectStore``."""
        return await self.inner.size(key)

    async def delete(self, keys: Iterable[str]) -> None:
        """See ``ObjectStore``."""
        await self.inner.delete(keys)

    def scan(self, prefix: str) -> AsyncIterator[StoredObject]:
        """See ``ObjectStore``."""
        return self.inner.scan(prefix)

    async def sweep_temporary(self, older_than_s: float) -> int:
        """See ``ObjectStore``."""
        return await self.inner.sweep_temporary(older_than_s)

    def statistics(self) -> StoreStatistics:
        """See ``ObjectStore``."""
        return self.inner.statistics()

    def signing(self) -> UrlSigning | None:
        """See ``ObjectStore``."""
        return self.inner.signing()
