"""The ``PackRepairs`` part of the PostgreSQL index."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from storage.pack_repair import PackRepair
from storage.postgres import pack_repair
from storage.postgres.database import Database
from storage.rows import StoredBlob
from wire.ids import Scheme


class PostgresPackRepairs:
    """See ``storage.pack_repair.PackRepairs`` for what each operation promises."""

    database: Database

    async def complete_pack(
        self,
        repo: int,
        scheme: Scheme,
        objects: Sequence[StoredBlob],
        *,
        brought_by: uuid.UUID | None,
        lease: uuid.UUID | None = None,
    ) -> PackRepair:
        return await self.database.run(pack_repair.complete_pack, repo, scheme, objects, brought_by, lease)

    async def held_packs(self, repo: int, scheme: Scheme, after: bytes, most: int) -> tuple[set[bytes], bytes | None]:
        return await self.database.run(pack_repair.held_packs, repo, scheme, after, most)
