"""Completions that come at once are one statement.

What a daemon's jobs come to is recorded one call at a time. Calls that come while one is on its way are taken together
by the next one: so jobs that take long are recorded as they end, and quick ones cost one statement for several.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from storage.errors import IndexUnavailable
from storage.job_rows import Claim
from storage.postgres.jobs_endings import Completion

RECORDED_AT_ONCE = 64
"""Completions of one statement."""


@dataclass(slots=True, eq=False)
class _Waiting:
    completion: Completion
    held: bool | None = None
    """Whether its claim held; ``None`` while nobody knows."""
    error: IndexUnavailable | None = None


class GroupedCompletions:
    """The completions of one process on their way to the index."""

    def __init__(self, write: Callable[[Sequence[Completion]], Awaitable[set[Claim]]]) -> None:
        self._write = write
        self._line: list[_Waiting] = []
        self._turn = trio.Lock()

    async def record(self, completion: Completion) -> bool:
        """Record a completion; gives whether its claim held.

        Raises:
            IndexUnavailable: it may or may not be recorded.
        """
        mine = _Waiting(completion)
        self._line.append(mine)
        try:
            async with self._turn:  # whoever has it first writes for all who have come by then
                while mine in self._line:
                    await self._write_line()
        finally:
            if mine in self._line:
                self._line.remove(mine)
        if mine.error is not None:
            raise IndexUnavailable(str(mine.error)) from mine.error
        assert mine.held is not None
        return mine.held

    async def _write_line(self) -> None:
        group, self._line = self._line[:RECORDED_AT_ONCE], self._line[RECORDED_AT_ONCE:]
        try:
            held = await self._write([one.completion for one in group])
        except IndexUnavailable as error:
            for one in group:
                one.error = error
            return
        except BaseException:  # this caller's own end: what is not known is written again by the next one
            self._line = group + self._line
            raise
        for one in group:
            one.held = one.completion.claim in held
