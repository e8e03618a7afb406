"""From marks to bytes that are gone.

Steps, and what is left if the process dies after each:

1. what has lost a reference, and stored keys without a row, are marked — marks; they wait for the next collector;
2. marks that have waited for a lease lifetime are reviewed: which of them are referenced after all — the same;
3. the others become tombstones, their rows are gone — tombstones; the next collector takes them over when nobody may be
   at it any more (fault F39), and pushes that meet one come again;
4. their bytes are deleted — the same: deleting again does no harm;
5. they are buried: whoever begins from now on may store the same bytes again;
6. they are forgotten when nobody lives that began before — nothing.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from contextlib import suppress

import trio

from actors.collect.report import Report
from actors.heartbeat import LEASE_S
from storage.collection_rows import TOMBSTONE_S, Mark, Review, ReviewCursor
from storage.environment import Environment
from storage.errors import ObjectMissing, StoreUnavailable
from storage.index import Index
from storage.object_store import ObjectStore
from wire.ids import DIGEST_BYTES, Scheme

ORPHAN_S = 86_400.0
"""How old a stored key without a row has to be: whoever has put it there would have recorded it by now."""
MARKS_AT_ONCE = 1_000
CHOSEN_AT_ONCE = 2_000
CHOSEN_MOST = 200_000
"""Marks of one review: each makes the table of references be read once."""
DELETED_AT_ONCE = 500
DELETE_MOST_S = TOMBSTONE_S / 2
"""A deletion that takes longer is given up, while the tombstones are still this collector's."""


class Burial:
    """Mark, review and delete for one collector."""

    def __init__(
        self, index: Index, store: ObjectStore, environment: Environment, report: Report, lease_s: float = LEASE_S
    ) -> None:
        self._index = index
        self._store = store
        self._environment = environment
        self._report = report
        self._lease_s = lease_s
        self._owner = environment.uuid()

    async def mark_suspects(self) -> None:
        """Mark what has lost a reference."""
        while await self._index.mark_suspects(self._environment.now(), MARKS_AT_ONCE):
            pass

    async def mark_orphans(self, orphan_s: float = ORPHAN_S, *, dry_run: bool = False) -> None:
        """Mark stored keys no row says anything lies at; packs are all looked at, for their rows may be gone."""
        limit = self._environment.now().timestamp() - orphan_s
        for prefix in ("objects", "packs"):
            waiting: list[Mark] = []
            async for stored in self._store.scan(prefix):
                mark = mark_of(stored.key)
                if mark is not None and stored.modified < limit:
                    waiting.append(mark)
                if len(waiting) >= MARKS_AT_ONCE:
                    await self._mark(waiting, dry_run=dry_run)
                    waiting = []
            await self._mark(waiting, dry_run=dry_run)

    async def _mark(self, marks: Sequence[Mark], *, dry_run: bool) -> None:
        if marks and not dry_run:
            found = await self._index.mark_orphans(marks, self._environment.now())
            self._report.orphans += found if marks[0].scheme is not None else 0

    async def review(self) -> uuid.UUID | None:
        """Find out which marks that have waited long enough are needless; gives the review, if there is any."""
        number = self._environment.uuid()
        chosen = 0
        while chosen < CHOSEN_MOST:
            found: Review = await self._index.begin_review(
                number, self._environment.now(), self._lease_s, CHOSEN_AT_ONCE
            )
            chosen += found.objects + found.packs
            self._report.waiting = found.waiting
            if found.objects + found.packs < CHOSEN_AT_ONCE:
                break
        if not chosen:
            return None
        cursor: ReviewCursor | None = ReviewCursor()
        while cursor is not None:
            cursor = await self._index.review(number, cursor)
        return number

    async def condemn(self, number: uuid.UUID) -> None:
        """Turn what a review has found needless into tombstones."""
        while True:
            done = await self._index.condemn(number, DELETED_AT_ONCE, self._environment.now())
            self._report.objects += done.rows
            self._report.object_bytes += done.blob_bytes
            if not done.looked_at:
                return

    async def bury(self) -> None:
        """Delete the bytes of all tombstones that are nobody else's."""
        while True:
            now = self._environment.now()
            until = now + dt.timedelta(seconds=TOMBSTONE_S)
            marks = await self._index.take_tombstones(self._owner, DELETED_AT_ONCE, now, until)
            if not marks:
                return
            sizes = [await self._size(mark) for mark in marks if mark.scheme is None]
            await self._delete(marks, until)
            await self._index.bury(self._owner, marks, self._environment.now())
            self._report.keys += len(marks)
            self._report.packs += len(sizes)
            self._report.pack_bytes += sum(sizes)

    async def forget(self) -> None:
        """Forget tombstones nobody can meet."""
        await self._index.forget_tombstones(self._environment.now(), self._lease_s)

    async def _delete(self, marks: Sequence[Mark], until: dt.datetime) -> None:
        with trio.move_on_after(DELETE_MOST_S) as patience:
            if self._environment.now() > until - dt.timedelta(seconds=DELETE_MOST_S):
                raise StoreUnavailable("what was to be deleted may be somebody else's by now")
            await self._store.delete([mark.key for mark in marks])
        if patience.cancelled_caught:
            raise StoreUnavailable("the store takes too long to delete")

    async def _size(self, mark: Mark) -> int:
        with suppress(ObjectMissing):
            return await self._store.size(mark.key)
        return 0


def mark_of(key: str) -> Mark | None:
    """Read a key of a loose object or a pack; ``None`` for another one."""
    parts = key.split("/")
    try:
        if parts[0] == "objects" and len(parts) == 4:
            mark = Mark(bytes.fromhex(parts[2] + parts[3]), Scheme(parts[1]))
        elif parts[0] == "packs" and len(parts) == 2:
            mark = Mark(bytes.fromhex(parts[1].removesuffix(".mpack")), None)
        else:
            return None
    except ValueError:
        return None
    return mark if len(mark.object_id) == DIGEST_BYTES and mark.key == key else None
