"""From record events to verified commits and snapshots (protocol §5).

Snapshots are rebuilt and hashed as they arrive, and recorded in the index as the push's own, so that later deltas
can build on them even after memory has let go of them. Of a commit only the facts are kept; its body waits in the
record pack until the finish.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import trio

from actors.manifests import ManifestCache
from actors.push.context import Attempt, Counts, PushRequest, PushServices, Timings
from actors.push.record_pack import Position, RecordPack
from actors.snapshot_builder import BuiltSnapshot, SnapshotBuilder
from storage.rows import SnapshotRef
from wire.errors import LISTED_FACTS, Code, Refusal
from wire.frames import Record
from wire.ids import format_id
from wire.manifest import Manifest
from wire.records import (
    Commit,
    Snapshot,
    SnapshotDelta,
    parse_commit,
    parse_snapshot,
    parse_snapshot_delta,
)
from wire.signatures import check_signature, is_signed

BATCH_RECORDS = 100
"""Protocol §12: commits per batch."""
BATCH_WEIGHT = 10_000
"""Manifest entries per batch: some 5 MB while they are parsed."""
_LOOKUP_BATCH = 2_000


@dataclass(frozen=True, slots=True)
class PendingCommit:
    """A verified commit that waits for the finish."""

    commit_id: bytes
    parents: tuple[bytes, ...]
    snapshot_id: bytes
    position: Position


@dataclass(slots=True)
class RecordStage:
    """Take the records of one push."""

    services: PushServices
    request: PushRequest
    attempt: Attempt
    pack: RecordPack
    counts: Counts
    timings: Timings
    commits: dict[bytes, PendingCommit] = field(default_factory=dict)
    snapshots: set[bytes] = field(default_factory=set)
    _batch: list[Record] = field(default_factory=list)
    _heavy: int = 0
    _cache: ManifestCache = field(init=False)
    _builder: SnapshotBuilder = field(init=False)

    def __post_init__(self) -> None:
        plan, services = self.attempt.plan, self.services
        self._cache = ManifestCache(services.index, plan.scheme, self.request.policy, services.limits)
        self._builder = SnapshotBuilder(plan.scheme, self.request.policy, services.limits)

    async def build_on_branch(self) -> None:
        """Take the branch's present snapshot as what the first full one is described as changes to."""
        index, plan = self.services.index, self.attempt.plan
        head = (await index.branch_heads(self.attempt.ticket.repo)).get(plan.branch)
        if head is not None:
            facts = await index.ancestry(plan.scheme, [head], 0)
            self._builder.last = next(fact.snapshot_id for fact in facts if fact.commit_id == head)

    async def take(self, record: Record) -> None:
        """Take one record; verified with others of its batch. Raises like :meth:`add`."""
        self._batch.append(record)
        self._heavy += weight(record)
        if record.kind == "commits":
            self.counts.commits_received += 1
            most = self.services.limits.commits_per_push
            if self.counts.commits_received > most:
                raise Refusal(Code.TOO_LARGE, f"a push has at most {most} commits")
        if len(self._batch) >= BATCH_RECORDS or self._heavy >= BATCH_WEIGHT:
            await self.flush()

    async def flush(self) -> None:
        """Verify what was taken so far."""
        batch, self._batch, self._heavy = self._batch, [], 0
        await self.add(batch)

    @property
    def received(self) -> int:
        """Records taken so far that are commits of their own."""
        return len(self.commits) + len(self._batch)

    async def add(self, records: Sequence[Record]) -> None:
        """Verify and record a batch, in order.

        Raises:
            Refusal: ``bad_record_id``, ``missing_objects``, ``unsafe_path``, ``bad_signature``, ``malformed`` …
        """
        with self.timings.measure("verify"):
            bases: dict[bytes, Manifest] = {}
            parsed = await trio.to_thread.run_sync(self._parse, records)
            await self._load_bases(parsed, bases)
            built = await trio.to_thread.run_sync(self._build, [p for p in parsed if not isinstance(p, Commit)], bases)
        await self._require_blobs(built)
        await self._record(built)
        for commit in parsed:
            if isinstance(commit, Commit) and commit.commit_id not in self.commits:
                position = await self.pack.add(commit.commit_id, commit.canonical)
                self.commits[commit.commit_id] = PendingCommit(
                    commit.commit_id, commit.parents, commit.snapshot_id, position
                )

    def _parse(self, records: Sequence[Record]) -> list[Commit | Snapshot | SnapshotDelta]:
        scheme, limits = self.attempt.plan.scheme, self.services.limits
        parsed: list[Commit | Snapshot | SnapshotDelta] = []
        for record in records:
            match record.kind:
                case "commits":
                    commit = parse_commit(record.record, scheme, limits)
                    self._check_signature(commit)
                    parsed.append(commit)
                case "snapshots":
                    parsed.append(parse_snapshot(record.record, scheme, limits))
                case _:
                    parsed.append(parse_snapshot_delta(record.record, scheme, limits))
        return parsed

    def _check_signature(self, commit: Commit) -> None:
        scheme = self.attempt.plan.scheme
        if self.request.repository.settings.require_signed_commits and not is_signed(commit):
            shown = format_id(commit.commit_id, scheme)
            raise Refusal(Code.BAD_SIGNATURE, f"commit {shown} is not signed, this repository asks for it", id=shown)
        check_signature(commit, scheme)

    async def _load_bases(
        self, parsed: Iterable[Commit | Snapshot | SnapshotDelta], bases: dict[bytes, Manifest]
    ) -> None:
        """Get hold of every base that is not made by this very batch before it is needed."""
        made: set[bytes] = set()
        wanted: dict[bytes, None] = {} if self._builder.last is None else {self._builder.last: None}
        for item in parsed:
            if isinstance(item, SnapshotDelta):
                base = item.parent_snapshot_id
                if base is not None and base not in made:
                    wanted[base] = None
            if not isinstance(item, Commit):
                made.add(item.snapshot_id)
        foreign = [base for base in wanted if base not in self.snapshots]
        lacking = await self.services.index.lacking_snapshots(self.attempt.ticket, foreign) if foreign else []
        if lacking:
            raise self._missing_snapshots(lacking)
        for base in wanted:
            manifest = self._cache.at_hand(base)
            if manifest is None:
                manifest, chain = await self._cache.load(base)
                self._builder.cost.learn(chain)
            bases[base] = manifest

    def _build(
        self, items: Sequence[Snapshot | SnapshotDelta], bases: dict[bytes, Manifest]
    ) -> list[tuple[BuiltSnapshot, bytes]]:
        """Rebuild and hash; CPU-bound, in a worker thread. Gives each with its canonical form."""
        built = [self._builder.build(item, bases) for item in items]
        return [(one, one.canonical(self.attempt.plan.scheme, self.services.limits)) for one in built]

    async def _require_blobs(self, built: Sequence[tuple[BuiltSnapshot, bytes]]) -> None:
        wanted = list({blob for one, _ in built for blob in one.blobs})
        missing: list[bytes] = []
        with self.timings.measure("connectivity"):
            for start in range(0, len(wanted), _LOOKUP_BATCH):
                missing += await self.services.index.lacking_blobs(
                    self.attempt.ticket, wanted[start : start + _LOOKUP_BATCH]
                )
        if missing:
            scheme = self.attempt.plan.scheme
            shown = [format_id(blob, scheme) for blob in sorted(missing)[:LISTED_FACTS]]
            raise Refusal(
                Code.MISSING_OBJECTS,
                f"{len(missing)} objects are neither in this push nor in this repository, the first is {shown[0]}",
                missing=shown,
                missing_count=len(missing),
            )

    async def _record(self, built: Sequence[tuple[BuiltSnapshot, bytes]]) -> None:
        if not built:
            return
        with self.timings.measure("record"):
            self.counts.snapshots_written += await self.services.index.record_snapshots(
                self.attempt.ticket, self.attempt.plan.scheme, [SnapshotRef(one.row, one.extras) for one, _ in built]
            )
        for one, canonical in built:
            snapshot_id = one.row.snapshot_id
            if snapshot_id not in self.snapshots:
                await self.pack.add(snapshot_id, canonical)
                self.snapshots.add(snapshot_id)
            self._cache.keep(snapshot_id, one.manifest)

    def _missing_snapshots(self, lacking: Sequence[bytes]) -> Refusal:
        scheme = self.attempt.plan.scheme
        shown = [format_id(base, scheme) for base in sorted(lacking)[:LISTED_FACTS]]
        return Refusal(
            Code.MISSING_OBJECTS,
            f"a snapshot delta builds on {shown[0]}, which is neither earlier in this push nor in this repository",
            missing=shown,
        )


def weight(record: Record) -> int:
    """Estimate what a record costs in memory, in manifest entries."""
    fields = record.record if isinstance(record.record, dict) else {}
    lists = (fields.get(key) for key in ("manifest", "delta_upsert", "delta_add", "delta_remove", "directories"))
    return 1 + sum(len(entries) for entries in lists if isinstance(entries, dict | list))
