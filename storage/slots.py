"""A counting semaphore whose users take several slots at once, first come first served."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio


@dataclass(frozen=True, slots=True)
class SlotStatistics:
    """A look at the slots."""

    total: int
    taken: int
    waiting: int


class Slots:
    """``total`` slots; a request for more than all of them waits for all of them."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._queue: deque[tuple[int, trio.Event]] = deque()

    @asynccontextmanager
    async def hold(self, count: int) -> AsyncIterator[None]:
        """Take slots for the length of a block."""
        taken = await self.acquire(count)
        try:
            yield
        finally:
            self.release(taken)

    async def acquire(self, count: int) -> int:
        """Take slots, waiting in line; gives how many to release."""
        count = min(count, self._total)
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._queue and self._free >= count:
            self._free -= count
            await trio.lowlevel.cancel_shielded_checkpoint()
            return count
        entry = (count, trio.Event())
        self._queue.append(entry)
        try:
            await entry[1].wait()
        except trio.Cancelled:
            if entry in self._queue:
                self._queue.remove(entry)
                self._wake()
            else:  # the slots came together with the cancellation
                self.release(count)
            raise
        return count

    def release(self, count: int) -> None:
        """Give slots back."""
        self._free += count
        self._wake()

    def statistics(self) -> SlotStatistics:
        """Give a look at the slots."""
        return SlotStatistics(self._total, self._total - self._free, len(self._queue))

    def _wake(self) -> None:
        while self._queue and self._queue[0][0] <= self._free:
            count, event = self._queue.popleft()
            self._free -= count
            event.set()
