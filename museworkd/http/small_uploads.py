"""Small uploads: taken into memory whole, and stored together with those that arrive at the same time.

A client sends many small objects at once, and a store takes a batch at little more cost than one object. Whoever
finds the store idle stores everything that waits; what arrives meanwhile is the next batch, like transactions that
share a log flush.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import trio

from storage.object_store import ObjectStore
from storage.slots import Slots
from wire.limits import KIB, MIB

SMALL_BYTES = 256 * KIB
"""Larger uploads go by way of a file, where they can be taken up again."""
MEMORY_BYTES = 32 * MIB
"""Of all small uploads of a daemon together, while they arrive and until they are stored."""
BATCH_OBJECTS = 64
BATCH_BYTES = 2 * MIB
BATCHES_AT_ONCE = 3
_SLOT_BYTES = 4 * KIB


@dataclass(slots=True, eq=False)
class _Upload:
    key: str
    content: bytes
    waiting: bool = True
    done: bool = False
    error: Exception | None = None
    woken: trio.Event = field(default_factory=trio.Event)


class SmallUploads:
    """Store small contents, several at once in each call of the store."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._memory = Slots(MEMORY_BYTES // _SLOT_BYTES)
        self._queue: deque[_Upload] = deque()
        self._batches = 0

    async def reserve(self, size: int) -> int:
        """Wait for room for ``size`` bytes; gives what :meth:`release` is told."""
        return await self._memory.acquire(1 + size // _SLOT_BYTES)

    def release(self, reserved: int) -> None:
        """Give room back."""
        self._memory.release(reserved)

    @property
    def waiting(self) -> int:
        """Contents that are not being stored yet."""
        return len(self._queue)

    async def put(self, key: str, content: bytes) -> None:
        """Store a content; durable when this returns. Raises what the store raises for its batch."""
        mine = _Upload(key, content)
        self._queue.append(mine)
        try:
            while not mine.done:
                if mine.waiting and self._batches < BATCHES_AT_ONCE:
                    await self._store_some()
                else:
                    await mine.woken.wait()
                    mine.woken = trio.Event()
        finally:
            if mine.waiting:
                self._queue.remove(mine)
                mine.waiting = False
            self._wake_next()
        if mine.error is not None:
            raise mine.error

    async def _store_some(self) -> None:
        batch = self._take()
        self._batches += 1
        try:
            await self._store.put_batch([(upload.key, upload.content) for upload in batch])
        except trio.Cancelled:  # of the one who stores: the others are as they were
            for upload in reversed(batch):
                upload.waiting = True
                self._queue.appendleft(upload)
            raise
        except Exception as error:  # noqa: BLE001 - each of the batch is told
            for upload in batch:
                upload.error = error
        finally:
            self._batches -= 1
        for upload in batch:
            upload.done = True
            upload.woken.set()

    def _take(self) -> list[_Upload]:
        batch: list[_Upload] = []
        size = 0
        while self._queue and len(batch) < BATCH_OBJECTS and size < BATCH_BYTES:
            upload = self._queue.popleft()
            upload.waiting = False
            batch.append(upload)
            size += len(upload.content)
        return batch

    def _wake_next(self) -> None:
        if self._queue and self._batches < BATCHES_AT_ONCE:
            self._queue[0].woken.set()
