"""Reading what is stored at a steady pace and hashing it, without keeping it."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import trio

from storage.errors import ObjectDamaged, ObjectMissing, ObjectUnreadable
from storage.layout import verifier
from storage.object_store import ObjectStore
from wire.ids import Kind, Scheme, hasher_for

_LEAST_WAIT_S = 0.05
UNREADABLE_MOST = 100
"""Keys in a row that cannot be read: above it, it is the store that is unavailable."""


class Condition(enum.Enum):
    """What was found at a key, or in a part of it."""

    SOUND = "sound"
    MISSING = "missing"
    DAMAGED = "damaged"
    UNREADABLE = "unreadable"
    """The store fails for good: a sector that cannot be read, a file with wrong rights."""


class Pace:
    """Spreads reading over time; what was not used is not saved up."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = trio.current_time()
        self.read_bytes = 0
        self.waited_s = 0.0

    async def take(self, count: int) -> None:
        """Account for bytes that were read, and wait until more may be; 0 bytes per second are no limit."""
        self.read_bytes += count
        now = trio.current_time()
        if self._bytes_per_s > 0:
            self._free_at = max(self._free_at, now) + count / self._bytes_per_s
        wait_s = self._free_at - now
        if wait_s >= _LEAST_WAIT_S:
            self.waited_s += wait_s
            await trio.sleep(wait_s)


@dataclass(slots=True)
class StoreReader:
    """Finds out in which condition stored bytes are."""

    store: ObjectStore
    pace: Pace
    _unreadable: int = 0

    async def whole(self, key: str, size: int = 0) -> Condition:
        """Look at all of a key; ``size`` in bytes is what it should have, where its name depends on that.

        Raises:
            StoreUnavailable: the store cannot be read at the moment, or nothing in it.
        """
        check = verifier(key, size)
        return await self._condition(self.store.stream(key), check.update, check.matches)

    async def blob_in(self, key: str, offset: int, size: int, blob_id: bytes, scheme: Scheme) -> Condition:
        """Look at one blob in a pack; raises like :meth:`whole`."""
        hasher = hasher_for(Kind.BLOB, size, scheme)
        stream = self.store.stream(key, offset, size)
        return await self._condition(stream, hasher.update, lambda: hasher.digest() == blob_id)

    async def _condition(
        self, stream: AbstractAsyncContextManager[AsyncIterator[bytes]], update: Callable[[bytes], None],
        matches: Callable[[], bool],
    ) -> Condition:  # fmt: skip
        try:
            async with stream as pieces:
                async for piece in pieces:
                    update(piece)
                    await self.pace.take(len(piece))
        except ObjectUnreadable:
            self._unreadable += 1
            if self._unreadable > UNREADABLE_MOST:
                raise
            return Condition.UNREADABLE
        except ObjectMissing:
            return self._answered(Condition.MISSING)
        except ObjectDamaged:
            return self._answered(Condition.DAMAGED)
        return self._answered(Condition.SOUND if matches() else Condition.DAMAGED)

    def _answered(self, condition: Condition) -> Condition:
        self._unreadable = 0
        return condition
