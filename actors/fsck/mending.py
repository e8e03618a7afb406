"""Mending what another copy allows; nothing is deleted, and what cannot be mended stays a problem.

Blobs are looked for in all packs; snapshots are rebuilt from their chains, or from the records in the store; record
packs are written again from the index.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from actors.fsck.problems import Found, FsckReport, Phase, Problem
from actors.repair.backfill import Backfill
from actors.repair.copies import other_copies
from actors.repair.reading import RepairServices
from actors.repair.snapshots import mend_snapshots
from storage.errors import StoreUnavailable
from storage.fsck import RecordPacks
from storage.layout import Place
from wire.ids import Scheme

OF_BLOBS = {
    Problem.OBJECT_MISSING, Problem.OBJECT_SIZE, Problem.RANGE_OUTSIDE, Problem.CONTENT_MISSING, Problem.ROW_MISSING,
    Problem.OBJECT_DAMAGED, Problem.UNREADABLE,
}  # fmt: skip
OF_SNAPSHOTS = {Problem.SNAPSHOT_MISSING, Problem.SNAPSHOT_WRONG}
OF_RECORDS = {Problem.RECORDS_UNNAMED, Problem.RECORDS_MISSING, Problem.RECORDS_DAMAGED}
SEARCH_S = 24 * 3600.0
"""For one search through all packs."""
_TOGETHER = 1_000
_TRIES = 3

log = structlog.get_logger("fsck")


@dataclass(slots=True)
class Mending:
    """Goes through what was found."""

    services: RepairServices
    report: FsckReport
    phase: Phase

    async def run(self) -> None:
        """Mend what can be."""
        await self._snapshots()
        await self._blobs()
        await self._records()
        await self._packs()

    async def _blobs(self) -> None:
        by_scheme: dict[Scheme, list[Found]] = defaultdict(list)
        for found in self.report.found:
            if found.problem in OF_BLOBS and found.object_id is not None and found.scheme is not None:
                by_scheme[found.scheme].append(found)
        for scheme, some in by_scheme.items():
            for start in range(0, len(some), _TOGETHER):
                await self._together(scheme, some[start : start + _TOGETHER])

    async def _together(self, scheme: Scheme, some: Sequence[Found]) -> None:
        wanted: dict[bytes, Place | None] = {found.object_id: found.place for found in some if found.object_id}
        for _ in range(_TRIES):
            try:
                mended = await other_copies(self.services, scheme, wanted, SEARCH_S)
            except StoreUnavailable as error:  # some may be mended by now: they are found sound
                log.warning("not all could be mended", error=str(error))
                continue
            for found in some:
                found.mended = found.object_id in mended
            break
        self.phase.advance(len(some))

    async def _snapshots(self) -> None:
        by_scheme: dict[Scheme, list[Found]] = defaultdict(list)
        for found in self.report.found:
            if found.problem in OF_SNAPSHOTS and found.object_id is not None and found.scheme is not None:
                by_scheme[found.scheme].append(found)
        for scheme, some in by_scheme.items():
            wanted = list(dict.fromkeys(found.object_id for found in some if found.object_id is not None))
            mended = await mend_snapshots(self.services, scheme, wanted)
            for found in some:
                found.mended = found.object_id in mended
            self.phase.advance(len(some))

    async def _records(self) -> None:
        """Write out again what record packs lack; a pack that is damaged stays, and nobody names it any more."""
        some = [found for found in self.report.found if found.problem in OF_RECORDS]
        if not some or not isinstance(self.services.index, RecordPacks):
            return
        damaged = {
            bytes.fromhex(found.key.removeprefix("records/").removesuffix(".mpack"))
            for found in some
            if found.problem is Problem.RECORDS_DAMAGED and found.key is not None
        }
        backfill = Backfill(self.services, self.services.index, damaged=damaged)
        done = await backfill.run()
        for found in some:
            found.mended = found.push in backfill.mended if found.push is not None else not done.left
        self.phase.advance(len(some))

    async def _packs(self) -> None:
        """A pack that is damaged is mended when nothing is read from it any more that is."""
        for found in self.report.found:
            if found.problem is Problem.PACK_DAMAGED:
                inside = [
                    one for one in self.report.found if one.key == found.key and one.problem in OF_BLOBS
                ]  # fmt: skip
                found.mended = all(one.mended for one in inside)
