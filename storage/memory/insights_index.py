"""The ``Insights`` part of the memory index; see ``storage.memory.insights`` for its tables."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import trio

from storage.insights import (
    Finding,
    KeptFinding,
    LastCommits,
    Line,
    LineStanding,
    LineTicket,
    PathChanges,
    StoredPlace,
)
from storage.memory import insights
from storage.memory.tables import Tables
from wire.ids import Scheme


class MemoryInsights:
    """See ``storage.insights.Insights`` for what each operation promises."""

    tables: Tables

    async def begin_line(self, repo: int, type_: str, branch: str, now: dt.datetime) -> Line:
        del now
        await trio.lowlevel.checkpoint()
        return self.tables.insights.begin(repo, type_, branch)

    async def find_line(self, repo: int, type_: str, branch: str) -> Line | None:
        await trio.lowlevel.checkpoint()
        return self.tables.insights.find(repo, type_, branch)

    async def write_line(
        self, ticket: LineTicket, standing: LineStanding, now: dt.datetime, paths: PathChanges | None = None
    ) -> bool:
        del now
        await trio.lowlevel.checkpoint()
        return self.tables.insights.write(ticket, standing, paths or PathChanges())

    async def clear_paths(self, ticket: LineTicket, most: int) -> int | None:
        await trio.lowlevel.checkpoint()
        return self.tables.insights.clear(ticket, most)

    async def copy_paths(self, ticket: LineTicket, source: int, after: bytes, most: int) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self.tables.insights.copy(ticket, source, after, most)

    async def last_commits(self, repo: int, type_: str, branch: str, paths: Sequence[str]) -> LastCommits:
        await trio.lowlevel.checkpoint()
        return self.tables.insights.last_commits(repo, type_, branch, paths)

    async def forget_lines(self, repo: int, type_: str, keep: Sequence[str], most: int) -> int:
        await trio.lowlevel.checkpoint()
        return self.tables.insights.forget(repo, type_, keep, most)

    async def forget_deleted_lines(self, most: int) -> int:
        await trio.lowlevel.checkpoint()
        return self.tables.insights.forget_deleted(self.tables.repositories, most)

    async def stored_after(self, after: tuple[bytes, Scheme] | None, most: int) -> list[StoredPlace]:
        await trio.lowlevel.checkpoint()
        return insights.stored_after(self.tables.blobs, self.tables.cached, after, most)

    async def packs_after(self, after: bytes, most: int) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        packs = {blob.pack_id for blob in self.tables.blobs.values() if blob.pack_id is not None}
        return sorted(pack_id for pack_id in packs if pack_id > after)[:most]

    async def record_findings(self, findings: Sequence[Finding], now: dt.datetime) -> None:
        await trio.lowlevel.checkpoint()
        self.tables.insights.record_findings(findings, now)

    async def forget_findings(self, before: dt.datetime) -> int:
        await trio.lowlevel.checkpoint()
        return self.tables.insights.forget_findings(before)

    async def list_findings(self, most: int) -> list[KeptFinding]:
        await trio.lowlevel.checkpoint()
        kept = self.tables.insights.findings
        return [kept[at] for at in sorted(kept)][:most]
