"""The ``Insights`` part of the index over PostgreSQL."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

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
from storage.postgres import insights, insights_scrub
from storage.postgres.database import Database
from wire.ids import Scheme


class PostgresInsights:
    """See ``storage.insights.Insights`` for what each operation promises."""

    database: Database

    async def begin_line(self, repo: int, type_: str, branch: str, now: dt.datetime) -> Line:
        return await self.database.run(insights.begin_line, repo, type_, branch, now)

    async def find_line(self, repo: int, type_: str, branch: str) -> Line | None:
        return await self.database.run(insights.find_line, repo, type_, branch)

    async def write_line(
        self, ticket: LineTicket, standing: LineStanding, now: dt.datetime, paths: PathChanges | None = None
    ) -> bool:
        return await self.database.run(insights.write_line, ticket, standing, now, paths)

    async def clear_paths(self, ticket: LineTicket, most: int) -> int | None:
        return await self.database.run(insights.clear_paths, ticket, most)

    async def copy_paths(self, ticket: LineTicket, source: int, after: bytes, most: int) -> bytes | None:
        return await self.database.run(insights.copy_paths, ticket, source, after, most)

    async def last_commits(self, repo: int, type_: str, branch: str, paths: Sequence[str]) -> LastCommits:
        return await self.database.run(insights.last_commits, repo, type_, branch, paths)

    async def forget_lines(self, repo: int, type_: str, keep: Sequence[str], most: int) -> int:
        return await self.database.run(insights.forget_lines, repo, type_, keep, most)

    async def forget_deleted_lines(self, most: int) -> int:
        return await self.database.run(insights.forget_deleted_lines, most)

    async def stored_after(self, after: tuple[bytes, Scheme] | None, most: int) -> list[StoredPlace]:
        return await self.database.run(insights_scrub.stored_after, after, most)

    async def packs_after(self, after: bytes, most: int) -> list[bytes]:
        return await self.database.run(insights_scrub.packs_after, after, most)

    async def record_findings(self, findings: Sequence[Finding], now: dt.datetime) -> None:
        await self.database.run(insights_scrub.record_findings, findings, now)

    async def forget_findings(self, before: dt.datetime) -> int:
        return await self.database.run(insights_scrub.forget_findings, before)

    async def list_findings(self, most: int) -> list[KeptFinding]:
        return await self.database.run(insights_scrub.list_findings, most)
