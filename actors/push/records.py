"""From record events to verified commits and snapshots (protocol §5).

Snapshots are rebuilt and hashed as they arrive, and recorded in the index as the push's own, so that later deltas
can build on them even after memory has let go of them. Of a commit only the facts are kept; its body waits in the
record pack until the finish.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import trio

from actors.manifests import ManifestCache
from actors.memory import WORTH_BYTES, give_back
from actors.opaque import takes_opaque
from actors.push.claims import claim_held
from actors.push.context import Attempt, Counts, PushRequest, PushServices, Timings
from actors.push.opaque_records import OpaqueRecords
from actors.push.record_pack import Position, RecordPack
from actors.snapshot_builder import AnchorWanted, BuiltSnapshot, SnapshotBuilder
from storage.errors import ObjectDamaged
from storage.rows import BranchTip, SnapshotRef
from wire.canonical import canonical_bytes
from wire.errors import LISTED_FACTS, Code, Refusal
from wire.frames import Record
from wire.ids import Kind, Scheme, format_id
from wire.opaque import is_opaque
from wire.records import (
    Commit,
    Snapshot,
    SnapshotDelta,
    Tag,
    parse_commit,
    parse_snapshot,
    parse_snapshot_delta,
    parse_tag,
)
from wire.signatures import check_signature, is_signed

BATCH_RECORDS = 100
"""Protocol §12: commits per batch."""
BATCH_BYTES = 4 * 1024 * 1024
"""Of memory that records take up while they wait, and of what is made of snapshots until it is recorded."""
_RECORD_BYTES = 512
"""What a record costs besides its values."""
_LOOKUP_BATCH = 2_000
_TAKES_ANY = "a repository takes the ids of very old tools as they are when its setting verify is plain-lenient"
_INLINE_BYTES = 32 * 1024
"""Batches up to this size, which the last one of most pushes is, take less time than a thread takes to begin."""
_INLINE_MANIFEST_BYTES = 128 * 1024
"""Of manifests they build on."""


@dataclass(frozen=True, slots=True)
class PendingCommit:
    """A verified commit that waits for the finish."""

    commit_id: bytes
    parents: tuple[bytes, ...]
    snapshot_id: bytes
    position: Position


@dataclass(slots=True)
class _Made:
    """What was made of some snapshots and is not recorded yet."""

    refs: list[SnapshotRef] = field(default_factory=list)
    added: list[Mapping[str, bytes]] = field(default_factory=list)
    ids: set[bytes] = field(default_factory=set)
    size: int = 0

    def take(self, built: BuiltSnapshot, canonical_bytes: int) -> int:
        """Add one, without its manifest; gives the bytes it makes the server write."""
        row = built.row
        size = len(row.delta) + len(row.full or b"") + len(built.extras)
        self.refs.append(SnapshotRef(row, built.extras))
        self.added.append(built.added)
        self.ids.add(row.snapshot_id)
        self.size += size + _RECORD_BYTES
        return size + canonical_bytes

    def take_beside(self, ref: SnapshotRef, canonical_bytes: int) -> int:
        """Add a row that says the same as another one; gives the bytes it makes the server write."""
        size = len(ref.row.delta) + len(ref.extras)
        self.refs.append(ref)
        self.ids.add(ref.row.snapshot_id)
        self.size += size + _RECORD_BYTES
        return size + canonical_bytes


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
    snapshots: dict[bytes, bytes] = field(default_factory=dict)
    """Each to itself: whoever names one keeps this very object (a push has 50,000 of them)."""
    tagged: set[bytes] = field(default_factory=set)
    """Commits that tags name."""
    blobs_recorded: trio.Event | None = None
    """Set when all blobs of the push are recorded; ``None``: they are."""
    tip: BranchTip | None = None
    """Where the branch was when the push began."""
    _batch: list[Record] = field(default_factory=list)
    _batch_bytes: int = 0
    _small: bool = False
    _snapshots_received: int = 0
    _written_bytes: int = 0
    _cache: ManifestCache = field(init=False)
    _builder: SnapshotBuilder = field(init=False)
    _opaque: OpaqueRecords | None = None
    """In a repository that has ever taken ids which are not hashes."""

    def __post_init__(self) -> None:
        self._begin()
        if takes_opaque(self.request.repository) and self.attempt.plan.scheme is Scheme.PLAIN:
            self._opaque = OpaqueRecords(self.services.index, self.request, self.attempt, self.services.limits)

    def _begin(self) -> None:
        plan, services = self.attempt.plan, self.services
        self._cache = ManifestCache(services.index, plan.scheme, self.request.policy, services.limits)
        self._builder = SnapshotBuilder(plan.scheme, self.request.policy, services.limits)

    async def build_on_branch(self) -> None:
        """Take the branch's present snapshot as what the first full one is described as changes to."""
        self.tip = await self.services.index.branch_tip(self.attempt.ticket.repo, self.attempt.plan.branch)
        if self.tip is None:
            return
        try:  # most pushes build on it
            _, chain = await self._cache.load(self.tip.snapshot_id)
            if is_opaque(self.tip.snapshot_id) and chain[0].base_id is not None:
                _, chain = await self._cache.load(chain[0].base_id)
        except ObjectDamaged:
            self._builder.last = self.tip.snapshot_id
            return  # a push that needs it is told
        self._builder.last = chain[0].snapshot_id
        self._builder.cost.learn(chain)

    async def take(self, record: Record) -> None:
        """Take one record; verified with others of its batch. Raises like :meth:`add`."""
        limits = self.services.limits
        self._batch.append(record)
        self._batch_bytes += record.weight + _RECORD_BYTES
        if record.kind == "commits":
            self.counts.commits_received += 1
            if self.counts.commits_received > limits.commits_per_push:
                raise Refusal(Code.TOO_LARGE, f"a push has at most {limits.commits_per_push} commits")
        else:
            self._snapshots_received += 1
            if self._snapshots_received > limits.snapshots_per_push:
                raise Refusal(Code.TOO_LARGE, f"a push has at most {limits.snapshots_per_push} snapshots")
        if len(self._batch) >= BATCH_RECORDS or self._batch_bytes >= BATCH_BYTES:
            await self.flush()

    async def flush(self) -> None:
        """Verify what was taken so far."""
        batch, self._batch = self._batch, []
        self._small, self._batch_bytes = self._batch_bytes <= _INLINE_BYTES, 0
        await self.add(batch)

    async def close(self) -> None:
        """Verify what is left, the last thing done; what that takes is given back before the finish takes its own."""
        await self.flush()
        await self._name_as_kept()
        await self._prove_kept()
        self._begin()
        self.attempt.own_blobs.clear()
        if self._written_bytes > WORTH_BYTES:
            await trio.to_thread.run_sync(give_back)

    @property
    def received(self) -> int:
        """Records taken so far that are commits of their own."""
        return len(self.commits) + len(self._batch)

    async def add(self, records: list[Record]) -> None:
        """Verify and record a batch, in order; the list is emptied.

        Raises:
            Refusal: ``bad_record_id``, ``missing_objects``, ``unsafe_path``, ``bad_signature``, ``malformed`` …
        """
        try:
            await self._add(records)
        except Refusal as refusal:
            lenient = self._opaque is not None and self._opaque.lenient
            if refusal.code is not Code.BAD_RECORD_ID or self.attempt.plan.scheme is not Scheme.PLAIN or lenient:
                raise
            detail = f"{refusal.detail}; {_TAKES_ANY}"
            raise Refusal(refusal.code, detail, **refusal.facts) from None

    async def _add(self, records: list[Record]) -> None:
        with self.timings.measure("verify"):
            if self._opaque is not None:
                await self._opaque.learn(records)
            items = self._parse(records) if self._small else await trio.to_thread.run_sync(self._parse, records)
            before = self.attempt.unrecorded.take_snapshots()  # these may build on them
            await self._record(before)
            await self._require_bases(items)
            await self._learn_depths([ref.row.snapshot_id for ref in before] + [item.snapshot_id for item in items])
        while items:
            made = _Made()
            with self.timings.measure("verify"):
                if self._small and self._cache.held_bytes <= _INLINE_MANIFEST_BYTES:
                    wanted = self._build(items, made)
                else:
                    wanted = await trio.to_thread.run_sync(self._build, items, made)
            await self._require_blobs(made.added)
            made.added.clear()  # of a large tree that is as much as all the rest
            self.snapshots.update((ref.row.snapshot_id, ref.row.snapshot_id) for ref in made.refs)
            if items:
                await self._record(made.refs)
                await self._learn_depths(list(made.ids))
            else:  # most often the last ones
                self.attempt.unrecorded.snapshots = made.refs
            if wanted is not None:
                with self.timings.measure("verify"):
                    _, chain = await self._cache.load(wanted)
                    self._builder.cost.learn(chain)

    def _parse(self, records: list[Record]) -> deque[Snapshot | SnapshotDelta]:
        """Parse records one by one, each given back before the next; CPU-bound. Commits go into the pack at once."""
        scheme, limits = self.attempt.plan.scheme, self.services.limits
        items: deque[Snapshot | SnapshotDelta] = deque()
        records.reverse()
        while records:
            record = records.pop()
            match record.kind:
                case "commits":
                    recompute = self._opaque is None or not self._opaque.lenient
                    self._take_commit(parse_commit(record.record, scheme, limits, recompute=recompute))
                case "snapshots":
                    self._take_snapshot(parse_snapshot(record.record, scheme, limits), items)
                case "snapshot_deltas":
                    self._take_snapshot(parse_snapshot_delta(record.record, scheme, limits), items)
                case "tags":
                    self._take_tag(parse_tag(record.record, scheme, limits))
                case kind:
                    raise AssertionError(kind)
        return items

    def _take_snapshot(self, item: Snapshot | SnapshotDelta, items: deque[Snapshot | SnapshotDelta]) -> None:
        kept = item if self._opaque is None else self._opaque.snapshot(item)
        if kept is not None:
            items.append(kept)

    def _take_tag(self, tag: Tag) -> None:
        """Keep a tag in the record pack: nothing reads it yet, and nothing that was sent is lost."""
        content = canonical_bytes(Kind.TAG, tag.raw, self.services.limits)
        self.pack.add(hashlib.sha256(content).digest(), [content])
        self.tagged.add(tag.commit_id)

    def _take_commit(self, commit: Commit) -> None:
        self._check_signature(commit)
        commit_id = commit.commit_id if self._opaque is None else self._opaque.commit(commit.commit_id)
        if commit_id is not None and commit_id not in self.commits:
            position = self.pack.add(commit_id, [commit.canonical])
            known = (self.commits.get(parent) for parent in commit.parents)
            self.commits[commit_id] = PendingCommit(
                commit_id,
                tuple(
                    parent if one is None else one.commit_id for parent, one in zip(commit.parents, known, strict=True)
                ),
                self.snapshots.get(commit.snapshot_id, commit.snapshot_id),
                position,
            )

    async def _name_as_kept(self) -> None:
        """Name what commits build on as it is kept, now that all of the push is there."""
        opaque = self._opaque
        if opaque is None:
            return
        plan = self.attempt.plan
        await opaque.learn_commits([i for i in (plan.head, plan.expected_head) if i is not None])
        for commit_id, commit in self.commits.items():
            parents = tuple(opaque.commits.get(parent, parent) for parent in commit.parents)
            snapshot_id = opaque.snapshots.get(commit.snapshot_id, commit.snapshot_id)
            self.commits[commit_id] = replace(commit, parents=parents, snapshot_id=snapshot_id)
        self.tagged = {opaque.commits.get(commit_id, commit_id) for commit_id in self.tagged}
        await opaque.require_same([(c.commit_id, c.parents, c.snapshot_id) for c in self.commits.values()])

    async def _prove_kept(self) -> None:
        """See to it that what is kept under ids of very old tools is what this push has brought (see the finish)."""
        if self._opaque is not None and any(map(is_opaque, self.snapshots)):
            await self._record(self.attempt.unrecorded.take_snapshots())
            await self._opaque.require_recorded(self.snapshots)

    @property
    def named(self) -> Attempt:
        """The attempt, with where it goes named as that is kept."""
        plan, opaque = self.attempt.plan, self._opaque
        if opaque is None:
            return self.attempt
        expected = plan.expected_head
        return replace(
            self.attempt,
            plan=replace(
                plan, head=opaque.commits.get(plan.head, plan.head),
                expected_head=None if expected is None else opaque.commits.get(expected, expected),
            ),
        )  # fmt: skip

    def _check_signature(self, commit: Commit) -> None:
        scheme = self.attempt.plan.scheme
        if self.request.repository.settings.require_signed_commits and not is_signed(commit):
            shown = format_id(commit.commit_id, scheme)
            raise Refusal(Code.BAD_SIGNATURE, f"commit {shown} is not signed, this repository asks for it", id=shown)
        check_signature(commit, scheme)

    async def _require_bases(self, items: Iterable[Snapshot | SnapshotDelta]) -> None:
        """Refuse bases that are neither made before, by this push, nor the repository's."""
        made: set[bytes] = set() if self.tip is None else {self.tip.snapshot_id}
        foreign: dict[bytes, None] = {}
        for item in items:
            base = item.parent_snapshot_id if isinstance(item, SnapshotDelta) else None
            if base is not None and base not in made and base not in self.snapshots:
                foreign[base] = None
            made.add(item.snapshot_id)
        lacking = await self.services.index.lacking_snapshots(self.attempt.ticket, list(foreign)) if foreign else []
        if lacking:
            raise self._missing_snapshots(lacking)

    async def _learn_depths(self, snapshot_ids: Sequence[bytes]) -> None:
        if snapshot_ids:
            depths = await self.services.index.snapshot_depths(self.attempt.plan.scheme, snapshot_ids)
            self._builder.cost.learn_depths(depths)

    def _build(self, items: deque[Snapshot | SnapshotDelta], made: _Made) -> bytes | None:
        """Rebuild, hash and pack as many as fit into one piece of work; CPU-bound, in a worker thread.

        Gives the snapshot whose manifest is needed before it can go on, if it is not at hand.
        """
        scheme, limits = self.attempt.plan.scheme, self.services.limits
        while items and made.size < BATCH_BYTES:
            named = items[0]
            stands_in = is_opaque(named.snapshot_id)
            if stands_in and (named.snapshot_id in self.snapshots or named.snapshot_id in made.ids):
                items.popleft()  # the first stays
                continue
            item = named if self._opaque is None else self._opaque.on_true_base(named)
            base = self._builder.base_of(item)
            if base is not None and self._cache.at_hand(base) is None:
                return base
            if self._opaque is not None and stands_in:
                item = self._opaque.verified(item, self._builder, self._cache)
            size = 0
            built: BuiltSnapshot | None = None
            if item.snapshot_id in self.snapshots or item.snapshot_id in made.ids:
                self._builder.check(item, self._cache)
            else:
                try:
                    built = self._builder.build(item, self._cache, ask=True)
                except AnchorWanted as anchor:
                    return anchor.snapshot_id
                position = self.pack.add(item.snapshot_id, built.canonical_pieces(scheme, limits))
                size = made.take(built, position.size)
            items.popleft()
            if self._opaque is not None and stands_in:
                ref, record = self._opaque.beside(named, built, self._cache[item.snapshot_id].directories)
                size += made.take_beside(ref, self.pack.add(named.snapshot_id, [record]).size)
            self._written_bytes += size
            if self._written_bytes > limits.snapshot_push_bytes:
                raise Refusal(
                    Code.TOO_LARGE,
                    f"the snapshots of this push make more than {limits.snapshot_push_bytes} bytes",
                )
        return None

    async def _require_blobs(self, added: Sequence[Mapping[str, bytes]]) -> None:
        missing: set[bytes] = set()
        own = self.attempt.own_blobs
        blobs = (blob for one in added for blob in one.values() if blob not in own)
        with self.timings.measure("connectivity"):
            while part := set(itertools.islice(blobs, _LOOKUP_BATCH)):
                if self.blobs_recorded is not None:
                    await self.blobs_recorded.wait()
                lacking = await self.services.index.lacking_blobs(self.attempt.ticket, list(part))
                missing.update(await claim_held(self.services, self.attempt, self.counts, lacking))
        if missing:
            scheme = self.attempt.plan.scheme
            shown = [format_id(blob, scheme) for blob in sorted(missing)[:LISTED_FACTS]]
            raise Refusal(
                Code.MISSING_OBJECTS,
                f"{len(missing)} objects are neither in this push nor in this repository, the first is {shown[0]}",
                missing=shown,
                missing_count=len(missing),
            )

    async def _record_blobs(self) -> None:
        """See to it that every blob is recorded: to a later attempt, a recorded snapshot is a whole one."""
        if self.blobs_recorded is not None:
            await self.blobs_recorded.wait()
        blobs = self.attempt.unrecorded.take_blobs()
        if blobs:
            written = await self.services.index.record_blobs(self.attempt.ticket, self.attempt.plan.scheme, blobs)
            self.counts.blobs_written += written

    async def _record(self, refs: Sequence[SnapshotRef]) -> None:
        if refs:
            if sum(len(ref.row.delta) + len(ref.row.full or b"") for ref in refs) > WORTH_BYTES:
                await trio.to_thread.run_sync(give_back)  # sending a large row takes three times its size
            await self._record_blobs()
            with self.timings.measure("record"):
                written = await self.services.index.record_snapshots(
                    self.attempt.ticket, self.attempt.plan.scheme, refs
                )
            self.counts.snapshots_written += written

    def _missing_snapshots(self, lacking: Sequence[bytes]) -> Refusal:
        scheme = self.attempt.plan.scheme
        shown = [format_id(base, scheme) for base in sorted(lacking)[:LISTED_FACTS]]
        return Refusal(
            Code.MISSING_OBJECTS,
            f"a snapshot delta builds on {shown[0]}, which is neither earlier in this push nor in this repository",
            missing=shown,
        )
