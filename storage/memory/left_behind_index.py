"""The ``LeftBehind`` part of the memory index."""

from __future__ import annotations

import datetime as dt
import itertools

import trio

from storage.memory.tables import Tables

_EVER = dt.datetime.min.replace(tzinfo=dt.UTC)


class MemoryLeftBehind:
    """See ``storage.left_behind.LeftBehind`` for what each operation promises."""

    tables: Tables

    async def left_behind(self, repo: int, most: int) -> set[bytes]:
        await trio.lowlevel.checkpoint()
        _, until = self.tables.collection.swept.get(repo, (_EVER, _EVER))
        log = self.tables.branch_log[repo]
        left = dict.fromkeys(e.old for e in log if e.old is not None and (e.forced or e.new is None) and e.at > until)
        return set(itertools.islice(left, most))
