"""Are the bytes there that the index names, and is what is there known to the index?

Whatever looks wrong is looked at once more, row first and store second: a push, a folding or a collection may have
changed it since it was listed. A stored object or pack without a row is no problem: a push on its way puts bytes before
rows, a dead one leaves them, and the collector takes what is a day old.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

import trio

from actors.fsck.inventory import BUCKETS, Inventory
from actors.fsck.problems import Found, FsckReport, Phase, Problem
from actors.repair.reading import RepairServices
from storage.errors import ObjectMissing
from storage.insights import StoredPlace
from storage.layout import Place, pack_key
from wire.ids import Scheme

T = TypeVar("T")

ROWS_AT_ONCE = 2_000
ASKED_AT_ONCE = 32
"""Questions to the store at a time."""


async def in_parallel(items: Sequence[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Do something with each of some things, several at a time."""
    limit = trio.CapacityLimiter(ASKED_AT_ONCE)

    async def one(item: T) -> None:
        async with limit:
            await work(item)

    async with trio.open_nursery() as nursery:
        for item in items:
            nursery.start_soon(one, item)


@dataclass(slots=True)
class PlaceCheck:
    """Holds rows against the store."""

    services: RepairServices
    report: FsckReport
    phase: Phase

    async def all(self, inventory: Inventory) -> None:
        """Check every row of a blob against a listing, and every listed object against the rows."""
        cursor: tuple[bytes, Scheme] | None = None
        rows: list[StoredPlace] = []
        ended = False
        for bucket in range(BUCKETS):
            listed = await inventory.loose(bucket)
            while True:
                if not rows and not ended:
                    rows = await self.services.index.stored_after(cursor, ROWS_AT_ONCE)
                    ended = len(rows) < ROWS_AT_ONCE
                    cursor = (rows[-1].place.object_id, rows[-1].scheme) if rows else cursor
                here = [row for row in rows if row.place.object_id[0] == bucket]
                rows = rows[len(here) :]
                suspects = [row for row in here if not await self._agrees(row, listed, inventory)]
                await in_parallel(suspects, self.look_at)
                self.report.checked["blobs"] += len(here)
                self.phase.advance(len(here))
                if rows or ended:
                    break
            self.report.explained["objects without a row"] += len(listed)

    async def of_repository(self, repo: int) -> None:
        """Check what one repository holds, by asking the store for each."""
        after: bytes | None = b""
        while after is not None:
            scheme, places = await self.services.index.repository_places(repo, after, ROWS_AT_ONCE)
            if scheme is None:
                return
            rows = [StoredPlace(scheme, place) for place in places if not place.pending]
            sizes = await self._pack_sizes({row.place.pack_id for row in rows} - {None})  # type: ignore[arg-type]
            await in_parallel([row for row in rows if not _fits(row.place, sizes)], self.look_at)
            self.report.checked["blobs"] += len(places)
            self.phase.advance(len(places))
            after = places[-1].object_id if len(places) == ROWS_AT_ONCE else None

    async def packs(self, inventory: Inventory) -> None:
        """Count packs that no row names."""
        unnamed, after = set(inventory.packs), b""
        while known := await self.services.index.packs_after(after, ROWS_AT_ONCE):
            unnamed.difference_update(known)
            after = known[-1]
        self.report.explained["packs without a row"] += len(unnamed)

    async def _pack_sizes(self, pack_ids: Collection[bytes]) -> dict[bytes, int]:
        sizes: dict[bytes, int] = {}

        async def ask(pack_id: bytes) -> None:
            with suppress(ObjectMissing):
                sizes[pack_id] = await self.services.store.size(pack_key(pack_id))

        await in_parallel(list(pack_ids), ask)
        return sizes

    async def _agrees(self, row: StoredPlace, listed: dict[tuple[bytes, Scheme], int], inventory: Inventory) -> bool:
        """Tell whether a row is as the listing has it; what it names is taken from the listing."""
        place = row.place
        if place.pack_id is None:
            return listed.pop((place.object_id, row.scheme), None) == place.size
        listed.pop((place.object_id, row.scheme), None)  # what is left of it, or was put again
        size = inventory.packs.get(place.pack_id)
        if size is None:
            try:
                size = await inventory.pack_size(self.services.store, place.pack_id)
            except ObjectMissing:
                return False
        return place.offset + place.size <= size

    async def look_at(self, row: StoredPlace) -> None:
        """Look at what a row names, and report it if it is wrong and the row still says so."""
        for last in (False, True):
            problem = await self._problem(row)
            if problem is None:
                return
            now = await self.services.index.places(row.scheme, [row.place.object_id])
            if now.get(row.place.object_id) != row.place:
                return
            if last:
                self.report.add(problem)

    async def _problem(self, row: StoredPlace) -> Found | None:
        place, key = row.place, row.place.key(row.scheme)
        try:
            size = await self.services.store.size(key)
        except ObjectMissing:
            return _found(Problem.OBJECT_MISSING, "it is not in the store", row)
        if place.pack_id is not None:
            end = place.offset + place.size
            detail = f"the index says it ends at byte {end} of a pack of {size} bytes"
            return _found(Problem.RANGE_OUTSIDE, detail, row) if end > size else None
        detail = f"it has {size} bytes, the index says {place.size}"
        return _found(Problem.OBJECT_SIZE, detail, row) if size != place.size else None


def _found(problem: Problem, detail: str, row: StoredPlace) -> Found:
    place = row.place
    return Found(problem, detail, place.key(row.scheme), place.object_id, scheme=row.scheme, place=place)


def _fits(place: Place, sizes: Mapping[bytes, int]) -> bool:
    """Tell whether a place lies in a pack, as far as packs are known to reach."""
    return place.pack_id is not None and place.offset + place.size <= sizes.get(place.pack_id, -1)
