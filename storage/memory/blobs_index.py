"""The blobs: what pushes bring, what is held for a repository, and where they lie, of the memory index."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable, Sequence

import trio

from storage.layout import Place
from storage.memory import held, usage
from storage.memory.collection_marks import lease_begun, meet_marks
from storage.memory.content_cache import store_row
from storage.memory.open_pushes import current
from storage.memory.tables import Tables
from storage.rows import Known, PushTicket, StoredBlob
from wire.ids import Scheme


class MemoryBlobs:
    """See ``storage.index.Index`` for what each operation promises."""

    tables: Tables
    _owner_quota: int

    async def known_blobs(
        self, repo: int, scheme: Scheme, object_ids: Sequence[bytes], push: int | None = None
    ) -> Known:
        del scheme  # a repository has one
        await trio.lowlevel.checkpoint()
        pushes = self.tables.pushes_of(repo)
        asking = None if push is None else self.tables.pushes.get(push)
        return Known(
            frozenset(i for i in object_ids if asking is not None and asking.repo == repo and i in asking.blobs),
            frozenset(i for i in object_ids if any(i in p.blobs for p in pushes)),
        )

    async def record_blobs(self, ticket: PushTicket, scheme: Scheme, stored: Sequence[StoredBlob]) -> int:
        await trio.lowlevel.checkpoint()
        entry = current(self.tables, ticket)
        new = {blob.object_id: blob.size for blob in stored if blob.object_id not in entry.blobs}
        usage.count(self.tables, entry, sum(new.values()), self._owner_quota)
        entry.size -= sum(new.values())
        return self._record_blobs(ticket, scheme, stored)

    def _record_blobs(self, ticket: PushTicket, scheme: Scheme, stored: Sequence[StoredBlob]) -> int:
        entry = current(self.tables, ticket)
        meet_marks(self.tables, scheme, stored, self.tables.collection.begun.get(ticket.number, 0))
        before = len(entry.blobs)
        entry.size += sum({b.object_id: b.size for b in stored if b.object_id not in entry.blobs}.values())
        for blob in stored:
            store_row(self.tables, scheme, blob)
            entry.blobs.add(blob.object_id)
        return len(entry.blobs) - before

    async def lacking_blobs(self, ticket: PushTicket, object_ids: Sequence[bytes]) -> list[bytes]:
        await trio.lowlevel.checkpoint()
        pushes = self.tables.pushes_of(ticket.repo, ticket)
        return [i for i in dict.fromkeys(object_ids) if not any(i in p.blobs for p in pushes)]

    async def stored_blobs(
        self,
        repo: int,
        scheme: Scheme,
        object_ids: Sequence[bytes],
        now: dt.datetime,
        push: tuple[uuid.UUID, str] | None = None,
    ) -> set[bytes]:
        await trio.lowlevel.checkpoint()
        return held.stored_blobs(self.tables, repo, scheme, object_ids, now, push)

    async def hold_blobs(
        self,
        repo: int,
        scheme: Scheme,
        stored: Sequence[StoredBlob],
        expires: dt.datetime,
        lease: uuid.UUID | None = None,
    ) -> None:
        await trio.lowlevel.checkpoint()
        meet_marks(self.tables, scheme, stored, 0 if lease is None else lease_begun(self.tables, lease))
        held.hold_blobs(self.tables, repo, scheme, stored, expires)

    async def claim_blobs(
        self, ticket: PushTicket, scheme: Scheme, object_ids: Sequence[bytes], now: dt.datetime
    ) -> set[bytes]:
        await trio.lowlevel.checkpoint()
        entry = current(self.tables, ticket)
        claimed = held.claim_blobs(self.tables, entry, scheme, object_ids, now)
        usage.count_claimed(self.tables, entry, scheme, claimed)
        return claimed

    async def forget_held(self, now: dt.datetime, most: int) -> int:
        await trio.lowlevel.checkpoint()
        return held.forget_held(self.tables, now, most)

    async def places(self, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:
        await trio.lowlevel.checkpoint()
        return self._places(scheme, object_ids)

    async def held_places(self, repo: int, scheme: Scheme, object_ids: Sequence[bytes]) -> dict[bytes, Place]:
        await trio.lowlevel.checkpoint()
        pushes = self.tables.pushes_of(repo)
        return self._places(scheme, [i for i in object_ids if any(i in p.blobs for p in pushes)])

    def _places(self, scheme: Scheme, object_ids: Iterable[bytes]) -> dict[bytes, Place]:
        rows = {i: self.tables.blobs.get((scheme, i)) for i in object_ids}
        cached = self.tables.cached
        return {
            i: Place(i, row.size, row.pack_id, row.offset, (scheme, i) in cached)
            for i, row in rows.items() if row is not None
        }  # fmt: skip
