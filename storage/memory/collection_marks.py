"""Marks and tombstones, in dictionaries; see ``storage.postgres.collection_marks`` and ``collection_meeting``."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from dataclasses import replace

from storage.collection_rows import Condemned, Mark, Review
from storage.errors import LeaseLost, Tombstoned
from storage.layout import Place
from storage.memory.collection_tables import MarkRow
from storage.memory.tables import Tables
from storage.rows import PushState, StoredBlob
from wire.ids import Scheme

MARKED, TOMBSTONED, BURIED = 0, 1, 2


def meet_marks(tables: Tables, scheme: Scheme, blobs: Sequence[StoredBlob], begun: int, *, moved: bool = False) -> None:
    """Take away the marks of what is about to be recorded; raises :class:`Tombstoned`, and does nothing then.

    What is only ``moved`` is nobody's the more for it, and stays marked.
    """
    marks = tables.collection.marks
    places: list[tuple[tuple[Scheme | None, bytes], bool]] = []
    for blob in blobs:
        if blob.pack_id is None:
            places.append(((scheme, blob.object_id), blob.content is not None))
        else:
            places.append(((None, blob.pack_id), False))
            found = marks.get((scheme, blob.object_id))
            if found is not None and found.state == MARKED:
                places.append(((scheme, blob.object_id), False))
    for place, waits in places:
        found = marks.get(place)
        if found is not None and (
            found.state == TOMBSTONED or (found.state == BURIED and not (found.moment < begun or waits))
        ):
            raise Tombstoned(place[1].hex())
    for place, _ in places:
        if not moved or (place in marks and marks[place].state != MARKED):
            marks.pop(place, None)


def mark_suspects(tables: Tables, now: dt.datetime, most: int) -> int:
    """See ``Marking.mark_suspects``."""
    collection = tables.collection
    count = 0
    for place, loose in list(collection.suspects.items())[:most]:
        found = collection.marks.get(place)
        if found is not None and found.state != MARKED:
            continue
        del collection.suspects[place]
        was_loose = found is not None and found.loose
        collection.marks[place] = MarkRow(loose or was_loose, now, collection.next_moment())
        count += 1
    return count


def mark_orphans(tables: Tables, marks: Sequence[Mark], now: dt.datetime) -> int:
    """See ``Marking.mark_orphans``."""
    collection = tables.collection
    count = 0
    for mark in marks:
        place = mark.scheme, mark.object_id
        if place not in collection.marks and not _lies_loose(tables, place):
            collection.marks[place] = MarkRow(True, now, collection.next_moment())
            count += 1
    return count


def count_marks(tables: Tables) -> dict[str, int]:
    """See ``Marking.count_marks``."""
    states = [mark.state for mark in tables.collection.marks.values()]
    return {
        "suspects": len(tables.collection.suspects), "marked": states.count(MARKED),
        "tombstoned": states.count(TOMBSTONED), "deleted": states.count(BURIED),
    }  # fmt: skip


def begin_review(tables: Tables, number: uuid.UUID, now: dt.datetime, lease_s: float, most: int) -> Review:
    """See ``Marking.begin_review``."""
    collection = tables.collection
    live = [
        collection.begun.get(push.number, 0)
        for push in tables.pushes.values()
        if push.record.state is PushState.OPEN and push.lease_expires > now
    ]
    live += [lease.begun for lease in collection.leases.values() if lease.expires_at > now]
    oldest = min(live, default=collection.moment + 1)
    before = now - dt.timedelta(seconds=lease_s)
    due = [
        place
        for place, mark in sorted(collection.marks.items(), key=lambda one: (one[0][0] is None, one[0][1]))
        if mark.state == MARKED and mark.review != number and mark.marked_at <= before and mark.moment < oldest
    ][:most]
    for place in due:
        collection.marks[place].review, collection.marks[place].referenced = number, False
    packs = sum(scheme is None for scheme, _ in due)
    waiting = sum(mark.state == MARKED and mark.review != number for mark in collection.marks.values())
    return Review(number, len(due) - packs, packs, waiting)


def review(tables: Tables, number: uuid.UUID) -> None:
    """See ``Marking.review``: here, all at once."""
    blobs = {blob for push in tables.pushes.values() for blob in push.blobs}
    blobs |= {blob for _, _, blob in tables.held_blobs}
    packs = {row.pack_id for row in tables.blobs.values()}
    for (scheme, object_id), mark in tables.collection.marks.items():
        if mark.review == number and mark.state == MARKED:
            mark.referenced = object_id in (packs if scheme is None else blobs)


def condemn(tables: Tables, number: uuid.UUID, most: int, now: dt.datetime) -> Condemned:
    """See ``Marking.condemn``."""
    collection = tables.collection
    picked = [p for p, mark in collection.marks.items() if mark.review == number and mark.state == MARKED][:most]
    rows = size = tombstones = 0
    for place in picked:
        mark = collection.marks[place]
        scheme, object_id = place
        doomed = mark.loose
        if scheme is None:
            doomed = not mark.referenced
        elif not mark.referenced and (scheme, object_id) in tables.blobs:
            gone = tables.blobs.pop((scheme, object_id))
            pending = tables.cached.pop((scheme, object_id), None) is not None
            rows, size = rows + 1, size + gone.size
            doomed = doomed or (gone.pack_id is None and not pending)
            if gone.pack_id is not None:
                collection.suspect((None, gone.pack_id), loose=True)
        if doomed and not _lies_loose(tables, place):
            mark.state, mark.until, mark.owner = TOMBSTONED, now, None
            tombstones += 1
        else:
            del collection.marks[place]
    return Condemned(len(picked), rows, size, tombstones)


def take_tombstones(tables: Tables, owner: uuid.UUID, most: int, now: dt.datetime, until: dt.datetime) -> list[Mark]:
    """See ``Marking.take_tombstones``."""
    taken: list[Mark] = []
    for (scheme, object_id), mark in tables.collection.marks.items():
        if mark.state == TOMBSTONED and mark.until is not None and mark.until <= now and len(taken) < most:
            mark.owner, mark.until = owner, until
            taken.append(Mark(object_id, scheme))
    return taken


def bury(tables: Tables, owner: uuid.UUID, marks: Sequence[Mark], now: dt.datetime) -> int:
    """See ``Marking.bury``."""
    count = 0
    for one in marks:
        mark = tables.collection.marks.get((one.scheme, one.object_id))
        if mark is not None and mark.state == TOMBSTONED and mark.owner == owner:
            mark.state, mark.owner, mark.until = BURIED, None, None
            mark.moment, mark.marked_at = tables.collection.next_moment(), now
            count += 1
    return count


def forget_tombstones(tables: Tables, now: dt.datetime, lease_s: float) -> int:
    """See ``Marking.forget_tombstones``."""
    collection = tables.collection
    collection.leases = {key: lease for key, lease in collection.leases.items() if lease.expires_at > now}
    newest = max((mark.moment for mark in collection.marks.values() if mark.state == BURIED), default=0)
    opened = [push for push in tables.pushes.values() if push.record.state is PushState.OPEN]
    for push in opened:
        if push.lease_expires <= now and collection.begun.get(push.number, 0) < newest:
            push.attempt += 1
            collection.begun[push.number] = collection.next_moment()
    live = [collection.begun.get(push.number, 0) for push in opened]
    live += [lease.begun for lease in collection.leases.values()]
    oldest = min(live, default=collection.moment)
    before = now - dt.timedelta(seconds=lease_s)
    buried = [(p, mark) for p, mark in collection.marks.items() if mark.state == BURIED and mark.marked_at <= before]
    gone = [place for place, mark in buried if mark.moment <= oldest]
    for place in gone:
        del collection.marks[place]
    return len(gone)


def move_places(
    tables: Tables, lease: uuid.UUID, scheme: Scheme, pack_id: bytes, moves: Sequence[tuple[Place, int]]
) -> set[bytes]:
    """See ``Folding.move_places``."""
    begun = lease_begun(tables, lease)
    meet_marks(tables, scheme, [StoredBlob(b"", 0, pack_id)], begun)
    moved = set()
    for place, at in moves:
        key = scheme, place.object_id
        row = tables.blobs.get(key)
        if row is None or key in tables.cached or (row.pack_id, row.offset) != (place.pack_id, place.offset):
            continue
        tables.blobs[key] = replace(row, pack_id=pack_id, offset=at)
        moved.add(place.object_id)
    for place, _ in moves:
        if place.pack_id is None:
            if place.object_id in moved:
                tables.collection.suspect((scheme, place.object_id), loose=True)
        elif place.pack_id != pack_id:
            tables.collection.suspect((None, place.pack_id), loose=True)
    return moved


def lease_begun(tables: Tables, lease: uuid.UUID) -> int:
    """Give a lease's moment; raises :class:`LeaseLost`."""
    found = tables.collection.leases.get(lease)
    if found is None:
        raise LeaseLost(str(lease))
    return found.begun


def _lies_loose(tables: Tables, place: tuple[Scheme | None, bytes]) -> bool:
    scheme, object_id = place
    row = None if scheme is None else tables.blobs.get((scheme, object_id))
    return row is not None and row.pack_id is None
