"""The ``Labels`` part of the memory index."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import trio

from storage.labels import LISTED_LABELS, TagRow
from storage.memory.tables import Tables


class MemoryLabels:
    """See ``storage.labels.Labels`` for what each operation promises."""

    tables: Tables

    async def put_tags(self, repo: int, tags: Sequence[TagRow]) -> int:
        await trio.lowlevel.checkpoint()
        changed = [row for row in tags if self.tables.tags.get((repo, row.tag)) != row]
        self.tables.tags.update({(repo, row.tag): row for row in changed})
        return len(changed)

    async def list_tags(self, repo: int) -> list[TagRow]:
        await trio.lowlevel.checkpoint()
        found = [row for (of, _), row in self.tables.tags.items() if of == repo]
        return sorted(found, key=lambda row: row.tag.encode())[:LISTED_LABELS]

    async def put_release(self, repo: int, release_id: str, record: bytes, now: dt.datetime) -> bool:
        await trio.lowlevel.checkpoint()
        before = self.tables.releases.get((repo, release_id))
        self.tables.releases[repo, release_id] = (record, now if before is None else before[1], None)
        return before is None

    async def list_releases(self, repo: int) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        found = [
            (created, release_id, record)
            for (of, release_id), (record, created, retracted) in self.tables.releases.items()
            if of == repo and retracted is None
        ]
        return [record for _, _, record in sorted(found, reverse=True)][:LISTED_LABELS]

    async def retract_release(self, repo: int, release_id: str, at: dt.datetime) -> bool:
        await trio.lowlevel.checkpoint()
        found = self.tables.releases.get((repo, release_id))
        if found is None or found[2] is not None:
            return False
        self.tables.releases[repo, release_id] = (found[0], found[1], at)
        return True
