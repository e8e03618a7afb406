"""Which ids the records of a push are kept under, in a repository that has taken ids of very old tools.

A record under an id that the repository has already, whatever its content, is not taken: the first one stays. Others
are kept under their ids while the repository is strict, and under stand-ins (``wire.opaque``) while it is lenient.
What a record builds on is looked for among both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from actors.opaque import LOOKUP_BATCH, held_of
from actors.push.context import Attempt, PushRequest
from actors.snapshot_builder import Bases, BuiltSnapshot, SnapshotBuilder
from storage.index import Index
from storage.rows import SnapshotRef, SnapshotRow, Verify
from storage.snapshots import Changes, pack_changes
from wire.canonical import canonical_bytes
from wire.errors import Code, Refusal
from wire.frames import Record
from wire.ids import Kind, Scheme, format_id, parse_id
from wire.limits import Limits
from wire.opaque import CLAIMED, is_opaque, opaque_id
from wire.records import Snapshot, SnapshotDelta, delta_record

_COMMIT_NAMES = ("commit_id", "parent_commit_id", "parent2_commit_id")
_SNAPSHOT_NAMES = ("snapshot_id", "parent_snapshot_id")
_NO_PUSH = 0
"""Numbers of pushes begin at 1."""

OwnCommit = tuple[bytes, tuple[bytes, ...], bytes]
"""Id it is kept under, parents, snapshot."""


@dataclass(slots=True)
class OpaqueRecords:
    """The ids of one push of a plain repository."""

    index: Index
    request: PushRequest
    attempt: Attempt
    limits: Limits
    commits: dict[bytes, bytes] = field(default_factory=dict)
    """Id as it is sent → id it is kept under, of what is there or comes with this push."""
    snapshots: dict[bytes, bytes] = field(default_factory=dict)
    _there: set[bytes] = field(default_factory=set)
    """Of those, what was there before."""
    _true: dict[bytes, bytes] = field(default_factory=dict)
    """Stand-in of a snapshot → the true id of the same content."""

    @property
    def lenient(self) -> bool:
        """Whether ids need not be hashes."""
        return self.request.repository.settings.verify == Verify.PLAIN_LENIENT

    async def learn(self, records: Iterable[Record]) -> None:
        """Look up what is there of what some records are and build on."""
        commits, snapshots = dict[bytes, None](), dict[bytes, None]()
        for record in records:
            if record.kind == "commits":
                _add_ids(commits, record.record, _COMMIT_NAMES)
                _add_ids(snapshots, record.record, _SNAPSHOT_NAMES[:1])
            elif record.kind == "tags":
                _add_ids(commits, record.record, _COMMIT_NAMES[:1])
            else:
                _add_ids(snapshots, record.record, _SNAPSHOT_NAMES)
        await self.learn_commits(commits)
        await self._learn_snapshots([i for i in snapshots if i not in self.snapshots])

    async def learn_commits(self, named: Iterable[bytes]) -> None:
        """Look up what is there of some commits."""
        new = [i for i in named if i not in self.commits]
        held = await held_of(self.index, self.request.repository, self._either(new))
        self._note(self.commits, new, held)

    async def _learn_snapshots(self, named: Sequence[bytes]) -> None:
        for start in range(0, len(named), LOOKUP_BATCH // 2):
            part = named[start : start + LOOKUP_BATCH // 2]
            either = self._either(part)
            # An earlier attempt of this push may have recorded one that was another's: that is not there yet.
            accepted = replace(self.attempt.ticket, number=_NO_PUSH)
            held = set(either) - set(await self.index.lacking_snapshots(accepted, either))
            self._note(self.snapshots, part, held)
            stand_ins = [i for i in either if is_opaque(i)]
            while stand_ins:  # what was recorded under one, accepted or not, stays what it is
                rows = await self.index.snapshot_deltas(Scheme.PLAIN, stand_ins)
                self._true.update((i, row.base_id) for i, row in rows.items() if row.base_id is not None)
                stand_ins = [i for i in stand_ins if i not in rows] if rows else []

    def _either(self, named: Iterable[bytes]) -> list[bytes]:
        named = [i for i in named if not is_opaque(i)]
        return [*named, *map(self._stand_in, named)]

    def _note(self, table: dict[bytes, bytes], named: Iterable[bytes], held: set[bytes]) -> None:
        for claimed in named:
            kept = next((i for i in (self._stand_in(claimed), claimed) if i in held), None)
            if kept is not None:
                table[claimed] = kept
                self._there.add(kept)

    def _stand_in(self, claimed: bytes) -> bytes:
        return opaque_id(self.request.repository.repo_id, claimed)

    def commit(self, claimed: bytes) -> bytes | None:
        """Give the id a commit is to be kept under; ``None`` when one is there."""
        kept = self.commits.setdefault(claimed, self._stand_in(claimed) if self.lenient else claimed)
        return None if kept in self._there else kept

    def snapshot(self, item: Snapshot | SnapshotDelta) -> Snapshot | SnapshotDelta | None:
        """Give a snapshot as it is to be kept; ``None`` when one is there."""
        claimed = item.snapshot_id
        kept = self.snapshots.setdefault(claimed, self._stand_in(claimed) if self.lenient else claimed)
        if kept in self._there:
            return None
        extras = {**item.extras, CLAIMED: format_id(claimed, Scheme.PLAIN)} if is_opaque(kept) else item.extras
        if isinstance(item, SnapshotDelta):
            base = item.parent_snapshot_id
            base = None if base is None else self.snapshots.get(base, base)
            return replace(item, snapshot_id=kept, parent_snapshot_id=base, extras=extras)
        return replace(item, snapshot_id=kept, extras=extras)

    def on_true_base(self, item: Snapshot | SnapshotDelta) -> Snapshot | SnapshotDelta:
        """Give a snapshot as changes to the true id of what it was sent as changes to."""
        if isinstance(item, SnapshotDelta) and item.parent_snapshot_id is not None:
            return replace(item, parent_snapshot_id=self.true(item.parent_snapshot_id))
        return item

    def true(self, snapshot_id: bytes) -> bytes:
        """Give the true id of a snapshot that is there or was made before."""
        return self._true[snapshot_id] if is_opaque(snapshot_id) else snapshot_id

    def verified(
        self, item: Snapshot | SnapshotDelta, builder: SnapshotBuilder, bases: Bases
    ) -> Snapshot | SnapshotDelta:
        """Give a snapshot under the true id of its content; CPU-bound.

        Raises:
            Refusal: ``bad_record_id``: an earlier push has brought another content under the same id.
        """
        found = builder.true_id(item, bases)
        if self._true.setdefault(item.snapshot_id, found) != found:
            raise taken("snapshot", str(item.extras[CLAIMED]))
        extras = {key: value for key, value in item.extras.items() if key != CLAIMED}
        return replace(item, snapshot_id=found, extras=extras)

    def beside(
        self, item: Snapshot | SnapshotDelta, built: BuiltSnapshot | None, directories: tuple[str, ...]
    ) -> tuple[SnapshotRef, bytes]:
        """Give the row of a stand-in, no change at all to the verified one, and the record of it to be stored."""
        true = self._true[item.snapshot_id]
        row = SnapshotRow(
            item.snapshot_id, true, 1 if built is None else built.row.depth + 1,
            pack_changes(Changes({}, (), directories)), None,
        )  # fmt: skip
        record = delta_record(SnapshotDelta(item.snapshot_id, true, {}, (), directories, item.extras), Scheme.PLAIN)
        extras = canonical_bytes(Kind.SNAPSHOT, item.extras, self.limits)
        return SnapshotRef(row, extras), canonical_bytes(Kind.SNAPSHOT, record, self.limits)

    async def require_same(self, commits: Sequence[OwnCommit]) -> None:
        """Refuse commits that an earlier push has brought as something else; looks before they are recorded."""
        other = await commit_of_another(self.index, commits)
        if other is not None:
            raise taken("commit", _claimed(self.commits, other))

    async def require_recorded(self, snapshot_ids: Iterable[bytes]) -> None:
        """Refuse snapshots of this push, all of them recorded, if another push was first to bring other content.

        A row never changes while somebody refers to it: what is seen here is what will be read.
        """
        own = [i for i in snapshot_ids if is_opaque(i)]
        for start in range(0, len(own), LOOKUP_BATCH):
            wanted = own[start : start + LOOKUP_BATCH]
            while wanted:
                rows = await self.index.snapshot_deltas(Scheme.PLAIN, wanted)
                if not rows:
                    raise collected_meanwhile()
                for snapshot_id, row in rows.items():
                    if row.base_id != self._true[snapshot_id]:
                        raise taken("snapshot", _claimed(self.snapshots, snapshot_id))
                wanted = [i for i in wanted if i not in rows]


async def commit_of_another(index: Index, commits: Iterable[OwnCommit]) -> bytes | None:
    """Find an opaque commit that is recorded with other parents, or another snapshot, than are given here."""
    opaque = [each for each in commits if is_opaque(each[0])]
    for start in range(0, len(opaque), LOOKUP_BATCH):
        part = {each[0]: each for each in opaque[start : start + LOOKUP_BATCH]}
        for fact in await index.ancestry(Scheme.PLAIN, list(part), 0):
            if fact.commit_id in part and part[fact.commit_id][1:] != (fact.parents, fact.snapshot_id):
                return fact.commit_id
    return None


def taken(what: str, shown: str) -> Refusal:
    """Make the refusal of a commit or snapshot whose id another push has used for something else."""
    return Refusal(
        Code.BAD_RECORD_ID, f"{what} {shown} is not its hash, and another {what} was sent under this id before",
        id=shown,
    )  # fmt: skip


def collected_meanwhile() -> Refusal:
    """Make the refusal of a push under which something was collected."""
    return Refusal(Code.BUSY, "what this push relied on was collected meanwhile: send it again")


def _claimed(kept: Mapping[bytes, bytes], wanted: bytes) -> str:
    return format_id(next(claimed for claimed, stand_in in kept.items() if stand_in == wanted), Scheme.PLAIN)


def _add_ids(found: dict[bytes, None], record: object, names: Sequence[str]) -> None:
    if not isinstance(record, Mapping):
        return
    for name in names:
        try:
            found[parse_id(record.get(name), Scheme.PLAIN)] = None
        except Refusal:
            continue  # nil; anything else is refused when the record is parsed
