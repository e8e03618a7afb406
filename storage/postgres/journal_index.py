"""The ``Journal`` part of the PostgreSQL index."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from storage.journal import Deployment, DeploymentState, Outbox
from storage.postgres import journal
from storage.postgres.database import Database


class PostgresJournal:
    """See ``storage.journal.Journal`` for what each operation promises."""

    database: Database

    async def deployment(self, candidate: uuid.UUID | None) -> Deployment | None:
        return await self.database.run(journal.deployment, candidate)

    async def announce(self, state: DeploymentState) -> None:
        await self.database.run(journal.announce, state)

    async def holds_facts(self) -> bool:
        return await self.database.run(journal.holds_facts)

    async def last_entry(self) -> int:
        return await self.database.run(journal.last_entry)

    async def outbox(self, of: Deployment, most: int, most_bytes: int) -> Outbox:
        return await self.database.run(journal.outbox, of, most, most_bytes)

    async def written_out(self, of: Deployment, numbers: Sequence[int], key: str) -> None:
        await self.database.run(journal.written_out, of, numbers, key)
