"""From planned commits to the records and blobs of the answer, batch by batch, over bounded memory.

Each snapshot goes out as changes to one the client has or gets first; the blobs sent are those that such changes
add and no earlier one did. Blob ids are kept as 32 raw bytes each.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field

import trio

from actors.fetch.plan import FetchPlan
from actors.manifests import ManifestCache
from storage.errors import ObjectDamaged
from storage.index import History
from storage.rows import SnapshotRow
from storage.snapshots import Changes, unpack_changes
from wire.canonical import parse_canonical
from wire.graph import CommitFacts
from wire.ids import DIGEST_BYTES, Scheme
from wire.limits import Limits
from wire.paths import PathPolicy
from wire.records import Snapshot, SnapshotDelta, delta_record, snapshot_record

_BATCH = 200

Sink = Callable[[Mapping[str, object]], Awaitable[None]]
"""Takes one record."""


@dataclass(slots=True)
class BlobList:
    """Distinct blob ids in the order they were added."""

    _ids: bytearray = field(default_factory=bytearray)
    _seen: set[bytes] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self._ids) // DIGEST_BYTES

    def exclude(self, blob_id: bytes) -> None:
        """Never add this one: the client has it."""
        self._seen.add(blob_id)

    def add(self, blob_id: bytes) -> None:
        """Add an id that is new."""
        if blob_id not in self._seen:
            self._seen.add(blob_id)
            self._ids += blob_id

    def finish(self) -> None:
        """Forget what was seen; nothing is added any more."""
        self._seen = set()

    def parts(self, size: int) -> Iterator[list[bytes]]:
        """Give the ids in lists of at most ``size``."""
        view = memoryview(self._ids)
        for start in range(0, len(view), size * DIGEST_BYTES):
            part = view[start : start + size * DIGEST_BYTES]
            yield [bytes(part[at : at + DIGEST_BYTES]) for at in range(0, len(part), DIGEST_BYTES)]


@dataclass(slots=True)
class ContentWriter:
    """Write the SNAPSHOTS and COMMITS records of a plan into two sinks, and list the blobs they need."""

    history: History
    repository: int
    """The repository's number in that history."""
    scheme: Scheme
    plan: FetchPlan
    limits: Limits
    blobs: BlobList = field(default_factory=BlobList)
    snapshots: int = 0
    _sent: set[bytes] = field(default_factory=set)
    """Snapshots the client has by now."""
    _cache: ManifestCache = field(init=False)

    def __post_init__(self) -> None:
        self._cache = ManifestCache(self.history, self.scheme, PathPolicy.RELAXED, self.limits)

    async def run(self, snapshots: Sink, commits: Sink) -> None:
        """Write everything.

        Raises:
            ObjectDamaged: the index lacks a record or snapshot it should have; it is named.
        """
        for fact in self.plan.boundary:
            if fact.snapshot_id not in self._sent:
                self._sent.add(fact.snapshot_id)
                for blob in (await self._cache.get(fact.snapshot_id)).blobs():
                    self.blobs.exclude(blob)
        by_id = {fact.commit_id: fact for fact in (*self.plan.commits, *self.plan.boundary)}
        for start in range(0, len(self.plan.commits), _BATCH):
            part = self.plan.commits[start : start + _BATCH]
            await self._write_snapshots(part, by_id, snapshots)
            await self._write_commits(part, commits)
        self.blobs.finish()

    async def _write_commits(self, part: tuple[CommitFacts, ...], sink: Sink) -> None:
        wanted = [fact.commit_id for fact in part]
        records = await self.history.commit_records(self.repository, wanted)
        for commit_id in wanted:
            if commit_id not in records:
                raise ObjectDamaged(f"the index lacks the record of commit {commit_id.hex()}")
            await sink(parse_canonical(records[commit_id])[1])

    async def _write_snapshots(
        self, part: tuple[CommitFacts, ...], by_id: dict[bytes, CommitFacts], sink: Sink
    ) -> None:
        wanted = list(dict.fromkeys(f.snapshot_id for f in part if f.snapshot_id not in self._sent))
        rows = await self.history.snapshot_deltas(self.scheme, wanted)
        extras = await self.history.snapshot_extras(self.repository, wanted)
        for fact in part:
            snapshot_id = fact.snapshot_id
            if snapshot_id in self._sent:
                continue
            row = rows.get(snapshot_id)
            if row is None:
                raise ObjectDamaged(f"the index lacks snapshot {snapshot_id.hex()}")
            more = parse_canonical(extras[snapshot_id])[1] if snapshot_id in extras else {}
            base_id, changes = await self._as_changes(fact, row, by_id)
            for blob in changes.upsert.values():
                self.blobs.add(blob)
            await sink(self._record(snapshot_id, base_id, changes, more))
            self._sent.add(snapshot_id)
            self.snapshots += 1

    async def _as_changes(
        self, fact: CommitFacts, row: SnapshotRow, by_id: dict[bytes, CommitFacts]
    ) -> tuple[bytes | None, Changes]:
        """Describe a snapshot by one the client has: as stored if that fits, else by a parent's, else whole."""
        if row.base_id is not None and row.base_id in self._sent:
            return row.base_id, unpack_changes(row.delta)
        target = await self._cache.get(row.snapshot_id)
        for parent in fact.parents:
            known = by_id.get(parent)
            if known is not None and known.snapshot_id in self._sent:
                base = await self._cache.get(known.snapshot_id)
                upsert, remove = await trio.to_thread.run_sync(base.changes_to, target)
                return known.snapshot_id, Changes(upsert, remove, target.directories)
        return None, Changes(dict(target.items()), (), target.directories)

    def _record(
        self, snapshot_id: bytes, base_id: bytes | None, changes: Changes, extras: dict[str, object]
    ) -> dict[str, object]:
        if base_id is None:
            return snapshot_record(Snapshot(snapshot_id, changes.upsert, changes.directories, extras), self.scheme)
        delta = SnapshotDelta(snapshot_id, base_id, changes.upsert, tuple(changes.remove), changes.directories, extras)
        return delta_record(delta, self.scheme)
