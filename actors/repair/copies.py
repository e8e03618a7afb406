"""Another copy of a blob whose bytes are not where, or not what, they should be (faults F3, F4).

Copies are looked for from the nearest to the farthest, and each is hashed before it counts: where the index says the
blob is by now, the content cache, the loose object; then the pack it was said to be in, every other pack, record pack
and fetch pack there is (``actors.repair.search``).

Steps of a repair, and what is left if the process dies after each:

1. a lease is taken, the copy is found and proved — nothing;
2. it is put under the blob's own key, durably, over what may be there — a sound loose object, which is collected as an
   orphan unless a row names it;
3. one transaction corrects the row, if it still says what it said — done; the old place is a suspect.

A copy that lies in the very pack its row names needs only the third.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import structlog

from actors.leases import leased
from actors.repair.reading import RepairServices, proved_copy
from actors.repair.search import SEARCH_S, searched
from storage.errors import ObjectMissing, StoreUnavailable, Tombstoned
from storage.job_rows import DEPLOYMENT
from storage.layout import Place, loose_key, pack_key
from storage.object_store import ReadRange
from wire.ids import Kind, Scheme, hash_bytes
from wire.pack import IndexEntry

_TRIES = 4
"""At correcting a row that others move meanwhile."""

log = structlog.get_logger("repair")


async def another_copy(
    services: RepairServices, scheme: Scheme, object_id: bytes, bad_place: Place | None, search_s: float = SEARCH_S
) -> Place | None:
    """Give a place where a blob can be read after ``bad_place`` failed, or ``None`` when there is no sound copy.

    What lies there has been hashed, and the index says so, too. ``bad_place`` is ``None`` when the index named none.
    Of several blobs at once :func:`other_copies` searches only once.
    """
    return (await other_copies(services, scheme, {object_id: bad_place}, search_s)).get(object_id)


async def other_copies(
    services: RepairServices, scheme: Scheme, wanted: Mapping[bytes, Place | None], search_s: float = SEARCH_S
) -> dict[bytes, Place]:
    """Give places of sound copies of several blobs, mended as by :func:`another_copy`; the others are left out.

    Args:
        services: the index and the store to look in and to mend.
        scheme: of their ids.
        wanted: where each was said to be.
        search_s: limit in seconds for the search through all packs; 0 for none of it.

    Raises:
        StoreUnavailable, IndexUnavailable: it cannot be known now, or a copy is there and cannot be put in place now.
        LeaseLost: the index has not heard of this process for too long.
    """
    found: dict[bytes, Place] = {}
    left: dict[bytes, Place | None] = {}
    async with leased(services.index, services.environment, DEPLOYMENT) as lease:
        mender = Mender(services, scheme, lease)
        for object_id in wanted:
            place = await mender.near(object_id)
            if place is None:
                left[object_id] = wanted[object_id]
            else:
                found[object_id] = place
        if left and search_s > 0:
            found |= await searched(services, scheme, left, mender.take, search_s)
    if mender.refused is not None:
        raise StoreUnavailable("what was mended is just being collected: try again") from mender.refused
    return found


class Mender:
    """Proves copies, puts them in place and corrects rows, under one lease."""

    def __init__(self, services: RepairServices, scheme: Scheme, lease: uuid.UUID) -> None:
        self._services = services
        self._scheme = scheme
        self._lease = lease
        self._rows: dict[bytes, Place | None] = {}
        """What the index says, and was found to be wrong."""
        self.refused: Tombstoned | None = None
        """A copy was found, and its key is just being deleted."""

    async def near(self, object_id: bytes) -> Place | None:
        """Look where no search is needed: where the index says, in its cache, and at the blob's own key."""
        row = await self._row(object_id)
        if row is not None and await self._is_sound(row):
            return row
        self._rows[object_id] = row
        if row is not None and not row.pending and row.pack_id is None:
            return None
        key = loose_key(object_id, self._scheme)
        try:
            size = await self._services.store.size(key)
        except ObjectMissing:
            return None
        return await self.take(object_id, key, IndexEntry(object_id, 0, size))

    async def take(self, object_id: bytes, key: str, entry: IndexEntry) -> Place | None:
        """Put what lies somewhere in place, if it is a copy; gives where it is then."""
        row = self._rows.get(object_id)
        where = ReadRange(key, entry.offset, entry.size)
        async with proved_copy(self._services, self._scheme, object_id, where) as copy:
            if copy is None:
                return None
            if row is not None and row.pack_id is not None and key == pack_key(row.pack_id):
                place = Place(object_id, entry.size, row.pack_id, entry.offset)
            else:
                await copy.put(self._services.store, self._scheme)
                place = Place(object_id, copy.size, None, 0)
        return await self._corrected(row, place)

    async def _corrected(self, row: Place | None, place: Place) -> Place | None:
        """Let the index say where a proved copy is; of a blob that was moved meanwhile, where it was moved."""
        index, object_id = self._services.index, place.object_id
        for _ in range(_TRIES):
            try:
                if await index.correct_places(self._lease, self._scheme, [(row, place)]):
                    log.warning(
                        "an object was mended from another copy", object=object_id.hex(), key=place.key(self._scheme)
                    )
                    return place
            except Tombstoned as refused:
                self.refused = refused
                return None
            row = await self._row(object_id)
            if row is None:
                return None
            if await self._is_sound(row):
                return row
        return None

    async def _row(self, object_id: bytes) -> Place | None:
        return (await self._services.index.places(self._scheme, [object_id])).get(object_id)

    async def _is_sound(self, row: Place) -> bool:
        if row.pending:
            found = await self._services.index.cached_contents(self._scheme, [row.object_id])
            content = found.get(row.object_id)
            return content is not None and hash_bytes(Kind.BLOB, content, self._scheme) == row.object_id
        where = ReadRange(row.key(self._scheme), row.offset, row.size)
        async with proved_copy(self._services, self._scheme, row.object_id, where) as copy:
            return copy is not None
