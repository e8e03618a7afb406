"""Turns of transactions that are work for a core: one core fewer than there are, which is the interpreter's.

Such a transaction holds a connection and locks while it waits for a core, and its thread for the interpreter, after
each statement. More of them than cores do no more work, they only wait longer for each other, and for the rest. Who
waits for something else, another transaction's lock or a slow server, gives its turn to the next one, so that a few
of them cannot keep everybody waiting.
"""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

import trio

LONG_S = 0.1
"""What takes longer than this does not wait for a core, but for a lock or a server far away."""


def turns_at_once() -> int:
    """Give how many such transactions may run at once in one process."""
    return max(1, len(os.sched_getaffinity(0)) - 1)


class Turn:
    """A turn that can be given up before its end; a context manager, used once."""

    def __init__(self, turns: trio.CapacityLimiter) -> None:
        self._turns = turns
        self._is_held = False

    def give_up(self) -> None:
        """Let the next one go ahead."""
        if self._is_held:
            self._is_held = False
            self._turns.release_on_behalf_of(self)

    async def __aenter__(self) -> Self:
        await self._turns.acquire_on_behalf_of(self)
        self._is_held = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.give_up()
