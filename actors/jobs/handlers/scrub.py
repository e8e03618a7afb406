"""``scrub``: reads and hashes everything that is stored, at a steady pace; reports damage and never deletes.

Three passes in order of key: loose objects, as the rows of the index name them; packs, likewise; record packs, as the
store lists them, for no row names those. A file that is damaged is looked into, so that what is reported are objects,
by id. What the index stopped naming meanwhile was collected or moved, and is no damage.

Where the job is, is kept every so often, and the next attempt goes on there. Findings are kept in the index and logged;
those that a complete run has not met again have been mended or deleted, and are forgotten.
"""

from __future__ import annotations

import datetime as dt
import heapq
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial

import structlog

from actors.jobs.handler import JobContext
from actors.jobs.reading import Condition, Pace, StoreReader
from actors.jobs.record_check import damaged_records
from storage.errors import ObjectMissing
from storage.insights import Finding, StoredPlace
from storage.layout import pack_key
from storage.object_store import StoredObject
from wire.ids import Scheme

log = structlog.get_logger("scrub")

LOOSE, PACKS, RECORDS = STAGES = ("loose", "packs", "records")
KEPT_EVERY_BYTES = 64 * 1024 * 1024
KEPT_EVERY_KEYS = 2_000
"""How much is read again at most by the next attempt."""
_ROWS_AT_ONCE = 2_000
_LISTED_AT_ONCE = 20_000
"""Record packs taken from one listing of the store, the first ones in order."""
SUSPECTS_AT_ONCE = 500
"""Packs that are looked into with one walk over the index."""
NAMED_OF_PACK = 1_000
FINDINGS_MOST = 20_000
"""Findings kept of one run; more are only counted."""
FINDINGS_SHOWN = 100
"""In the job's result."""


Record = Callable[[Finding], Awaitable[None]]
"""Takes a finding."""


async def run(context: JobContext) -> Mapping[str, object]:
    """Read everything; gives counts, and the first findings."""
    scrub = Scrub(context)
    started = scrub.started
    await scrub.read_all()
    return scrub.counts() | {"mended": await context.services.index.forget_findings(started)}


class Scrub:
    """One attempt, and what it goes on from; ``record`` takes what it finds, which the index keeps otherwise."""

    def __init__(self, context: JobContext, record: Record | None = None) -> None:
        self._context = context
        self._record = record
        services = context.services
        self._index = services.index
        self._reader = StoreReader(services.store, Pace(services.settings.scrub_bytes_per_s))
        state = context.job.state
        stage = str(state.get("stage", LOOSE))
        self._stage = stage if stage in STAGES else LOOSE
        self._after = bytes.fromhex(str(state.get("after", "")))
        kept = state.get("counts", {})
        self._counts: Counter[str] = Counter(dict.fromkeys([*STAGES, "bytes", *_PROBLEMS], 0))
        self._counts.update(kept if isinstance(kept, Mapping) else {})
        self._earlier_bytes = self._counts["bytes"]
        self._started = str(state.get("started", services.environment.now().isoformat()))
        self._shown: list[dict[str, object]] = []
        self._kept_keys, self._kept_bytes = 0, 0

    @property
    def started(self) -> dt.datetime:
        """When the first attempt began."""
        return dt.datetime.fromisoformat(self._started)

    async def read_all(self) -> None:
        """Go through the stages that are left."""
        for stage, work in zip(STAGES, (self._loose, self._packs, self._records), strict=True):
            if STAGES.index(stage) >= STAGES.index(self._stage):
                self._stage = stage
                with self._context.phase(stage):
                    await work()
                self._after = b""

    def counts(self) -> dict[str, object]:
        """Give counts, and the first findings."""
        waited_s = round(self._reader.pace.waited_s, 1)
        return dict(self._counts) | {"bytes": self._bytes(), "waited_s": waited_s, "findings": self._shown}

    # ---- loose objects

    async def _loose(self) -> None:
        """In order of id and scheme; the cursor is both."""
        while True:
            cursor = (self._after[:32], Scheme(self._after[32:].decode())) if self._after else None
            rows = await self._index.stored_after(cursor, _ROWS_AT_ONCE)
            for row in rows:
                if row.place.pack_id is None:
                    await self._look_at_loose(row)
                self._after = row.place.object_id + row.scheme.value.encode()
                await self._went_on(row.place.pack_id is None)
            if len(rows) < _ROWS_AT_ONCE:
                return

    async def _look_at_loose(self, row: StoredPlace) -> None:
        key = row.place.key(row.scheme)
        condition = await self._condition(row, lambda: self._reader.whole(key, row.place.size))
        if condition is not None and condition is not Condition.SOUND:
            await self._report(_finding(key, row.place.object_id, condition))

    async def _condition(self, row: StoredPlace, look: Callable[[], Awaitable[Condition]]) -> Condition | None:
        """Look at a blob that has to be where it was said to be; ``None`` when it has not any more."""
        condition = await look()
        if condition is Condition.SOUND:
            return condition
        object_id = row.place.object_id
        if (await self._index.places(row.scheme, [object_id])).get(object_id) != row.place:
            return None
        return await look()  # what was collected may have come again in between

    # ---- packs

    async def _packs(self) -> None:
        while True:
            packs = await self._index.packs_after(self._after, SUSPECTS_AT_ONCE)
            suspects: dict[bytes, Condition] = {}
            for pack_id in packs:
                condition = await self._reader.whole(pack_key(pack_id))
                if condition is not Condition.SOUND:
                    suspects[pack_id] = condition
                if not suspects:  # else the next attempt has to find them again
                    self._after = pack_id
                await self._went_on(True)
            if suspects:
                await self._look_into(suspects)
            if len(packs) < SUSPECTS_AT_ONCE:
                return
            self._after = packs[-1]

    async def _look_into(self, suspects: Mapping[bytes, Condition]) -> None:
        """Look at every blob that has to be in some packs; a pack in which none is was collected."""
        blobs: Counter[bytes] = Counter()
        bad: Counter[bytes] = Counter()
        async with aclosing(self._rows_in(suspects)) as rows:
            async for pack_id, row in rows:
                condition = await self._condition(row, partial(self._look_at_packed, row))
                blobs[pack_id] += condition is not None
                if condition is not None and condition is not Condition.SOUND:
                    bad[pack_id] += 1
                    if bad[pack_id] <= NAMED_OF_PACK:
                        await self._report(_finding(pack_key(pack_id), row.place.object_id, condition))
        for pack_id, condition in suspects.items():
            if blobs[pack_id]:
                detail = f"{bad[pack_id]} of the {blobs[pack_id]} objects that are read from it are {condition.value}"
                await self._report(_finding(pack_key(pack_id), None, condition, detail))

    async def _look_at_packed(self, row: StoredPlace) -> Condition:
        place = row.place
        return await self._reader.blob_in(
            place.key(row.scheme), place.offset, place.size, place.object_id, row.scheme
        )  # fmt: skip

    async def _rows_in(self, packs: Mapping[bytes, Condition]) -> AsyncGenerator[tuple[bytes, StoredPlace], None]:
        cursor = None
        while rows := await self._index.stored_after(cursor, _ROWS_AT_ONCE):
            for row in rows:
                if row.place.pack_id is not None and row.place.pack_id in packs:
                    yield row.place.pack_id, row
            cursor = (rows[-1].place.object_id, rows[-1].scheme)
            await self._context.progress("looking into packs", self._counts[PACKS])

    # ---- record packs

    async def _records(self) -> None:
        """In order of key, though a store lists in any: the first ones behind the cursor, listing after listing."""
        while True:
            after = self._after.decode()
            keys = await _first_keys(self._context.services.store.scan("records"), after)
            for key in keys:
                condition = await self._reader.whole(key)
                if condition not in {Condition.SOUND, Condition.MISSING}:  # missing: deleted since it was listed
                    await self._look_into_records(key, condition)
                self._after = key.encode()
                await self._went_on(True)
            if len(keys) < _LISTED_AT_ONCE:
                return

    async def _look_into_records(self, key: str, condition: Condition) -> None:
        named = 0
        if condition is Condition.DAMAGED:
            services = self._context.services
            records = damaged_records(self._index, services.store, key, services.limits)
            try:
                async with aclosing(records) as found:
                    async for record in found:
                        named += 1
                        if named <= NAMED_OF_PACK:
                            await self._report(_finding(key, record.record_id, condition, record.detail))
            except ObjectMissing:
                return
        if not named:
            await self._report(_finding(key, None, condition, "no damage was found to anything that an id covers"))

    # ---- accounts

    async def _went_on(self, counted: bool) -> None:
        """Count a key, and keep where the job is every so often."""
        self._counts[self._stage] += counted
        self._kept_keys += 1
        await self._context.progress(self._stage, self._counts[self._stage])
        if self._kept_keys >= KEPT_EVERY_KEYS or self._bytes() - self._kept_bytes >= KEPT_EVERY_BYTES:
            await self._keep()

    async def _keep(self) -> None:
        self._kept_keys, self._kept_bytes = 0, self._bytes()
        counts = dict(self._counts) | {"bytes": self._bytes()}
        state = {"stage": self._stage, "after": self._after.hex(), "counts": counts, "started": self._started}
        await self._context.keep_state(state)

    def _bytes(self) -> int:
        return self._earlier_bytes + self._reader.pace.read_bytes

    async def _report(self, finding: Finding) -> None:
        self._counts[finding.problem] += 1
        object_id = None if finding.object_id is None else finding.object_id.hex()
        if len(self._shown) < FINDINGS_SHOWN:
            self._shown.append({"key": finding.key, "object_id": object_id, "problem": finding.problem})
        if self._record is not None:
            await self._record(finding)
        elif sum(self._counts[problem] for problem in _PROBLEMS) <= FINDINGS_MOST:
            log.error(
                "damage in the object store", key=finding.key, object_id=object_id, problem=finding.problem,
                detail=finding.detail,
            )  # fmt: skip
            await self._index.record_findings([finding], self._context.services.environment.now())


_PROBLEMS = tuple(condition.value for condition in Condition if condition is not Condition.SOUND)


async def _first_keys(listed: AsyncIterator[StoredObject], after: str) -> list[str]:
    """Give the first keys behind one, in order, of a listing in any order."""
    keys: list[str] = []
    async for stored in listed:
        if stored.key > after:
            keys.append(stored.key)
        if len(keys) >= 2 * _LISTED_AT_ONCE:
            keys = heapq.nsmallest(_LISTED_AT_ONCE, keys)
    return heapq.nsmallest(_LISTED_AT_ONCE, keys)


def _finding(key: str, object_id: bytes | None, condition: Condition, detail: str = "") -> Finding:
    return Finding(key, object_id, condition.value, detail)
