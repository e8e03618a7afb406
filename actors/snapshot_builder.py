"""From a snapshot record to a verified manifest and the row that stores it.

The same for whoever takes records in: a server's push, a client's fetch or import. CPU-bound and synchronous, so that
a caller can run a batch of records in one worker thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from storage.history_rows import SnapshotRow
from storage.snapshots import REBASED_PART, ChainCost, Changes, Entries, full_content, pack_changes
from wire.canonical import canonical_bytes, canonical_with_map
from wire.ids import Kind, Scheme, format_id
from wire.limits import Limits
from wire.manifest import AT_ONCE, Manifest, check_id
from wire.manifest import empty as empty_manifest
from wire.paths import PathPolicy
from wire.pull import LARGE_MAP_ENTRIES
from wire.records import Snapshot, SnapshotDelta, delta_record, snapshot_record

_SMALL_ENTRIES = LARGE_MAP_ENTRIES
"""Full snapshots up to this size are compared with the one before them entry by entry, in dictionaries."""

_FEW_PART = REBASED_PART
"""Of larger ones, changes are looked for up to this part of the content."""
_SIBLING_FACTOR = 4


class AnchorWanted(Exception):
    """A row is to be stored as changes to a snapshot whose manifest is not at hand."""

    def __init__(self, snapshot_id: bytes) -> None:
        super().__init__(snapshot_id.hex())
        self.snapshot_id = snapshot_id


@dataclass(frozen=True, slots=True)
class BuiltSnapshot:
    """A rebuilt and verified snapshot."""

    row: SnapshotRow
    manifest: Manifest
    extras: bytes
    """Canonical form of the fields the id does not cover; ``b""`` for none."""
    added: Mapping[str, bytes]
    """What it adds to the base it was sent with."""
    item: Snapshot | SnapshotDelta
    base_id: bytes | None
    """What it was sent as changes to, or is described as such: whoever may read it holds that one as well."""
    changes: Changes
    """To that base."""

    @property
    def blobs(self) -> tuple[bytes, ...]:
        """Distinct blobs it adds to its base."""
        return tuple(set(self.added.values()))

    def canonical(self, scheme: Scheme, limits: Limits) -> bytes:
        """Give the stored form: whole where the chain has a full content, changes to the base elsewhere.

        The row may be stored as changes to another snapshot, which may have come from another repository: in the
        object store each repository's own records lead from one to the next.
        """
        return b"".join(self.canonical_pieces(scheme, limits))

    def canonical_pieces(self, scheme: Scheme, limits: Limits) -> Iterator[bytes]:
        """Give the stored form piece by piece: of a large tree it is never held whole."""
        snapshot_id, extras = self.row.snapshot_id, self.item.extras
        base_id, changes = self.base_id, self.changes
        if base_id is None or self.row.full is not None:
            entries: Mapping[str, bytes] = Entries(self.manifest)
            whole = Snapshot(snapshot_id, {}, self.manifest.directories, extras)
            key, record = "manifest", snapshot_record(whole, scheme)
        else:
            entries = changes.upsert
            delta = SnapshotDelta(snapshot_id, base_id, {}, tuple(changes.remove), changes.directories, extras)
            key, record = "delta_upsert", delta_record(delta, scheme)
        if len(entries) <= AT_ONCE:
            record[key] = {path: format_id(oid, scheme) for path, oid in entries.items()}
            yield canonical_bytes(Kind.SNAPSHOT, record, limits)
            return
        if key != "manifest":  # in order; a delta's are as they came
            entries = Entries(empty_manifest(None).apply(entries, limits=limits))
        yield from canonical_with_map(record, key, entries, scheme, limits)


class Bases(Protocol):
    """Manifests by snapshot id: a dictionary, or what keeps them at hand."""

    def __getitem__(self, snapshot_id: bytes, /) -> Manifest: ...
    def __setitem__(self, snapshot_id: bytes, manifest: Manifest, /) -> None: ...
    def __contains__(self, snapshot_id: object, /) -> bool: ...


class SnapshotBuilder:
    """Build snapshots one after the other; remembers what their chains cost."""

    def __init__(self, scheme: Scheme, policy: PathPolicy, limits: Limits) -> None:
        self._scheme = scheme
        self._limits = limits
        self._empty = empty_manifest(policy)
        self.cost = ChainCost()
        self.last: bytes | None = None
        """The snapshot a full one is described as changes to: the one before it."""
        self._whole: tuple[bytes, Mapping[str, bytes]] | None = None
        """The newest that came whole and is small, with its entries."""

    def base_of(self, item: Snapshot | SnapshotDelta) -> bytes | None:
        """Give the snapshot whose manifest :meth:`build` needs."""
        return item.parent_snapshot_id if isinstance(item, SnapshotDelta) else self.last

    def build(self, item: Snapshot | SnapshotDelta, bases: Bases, *, ask: bool = False) -> BuiltSnapshot:
        """Rebuild one snapshot; its base must be in ``bases``, and it is added there itself.

        Args:
            item: the parsed record.
            bases: manifests by snapshot id.
            ask: whether the caller can provide another manifest that would save a full content.

        Raises:
            Refusal: ``bad_record_id``, ``unsafe_path`` or ``too_large``.
            AnchorWanted: nothing was built; the named manifest is needed as well.
            KeyError: the base is not in ``bases``.
        """
        snapshot_id, cost = item.snapshot_id, self.cost
        base_id, manifest, upsert, remove = self._as_changes(item, bases)
        check_id(manifest, snapshot_id, self._scheme)
        if base_id == snapshot_id:  # nothing is stored as changes to itself
            base_id, upsert, remove = None, Entries(manifest), ()
        sent = Changes(upsert, remove, manifest.directories)
        sent_with, packed = base_id, pack_changes(sent)
        if base_id is not None and cost.due(snapshot_id, base_id, packed, manifest):
            sent_bytes, anchor = len(packed), cost.anchor(snapshot_id, base_id)
            if anchor is not None and anchor not in bases and ask:
                raise AnchorWanted(anchor)
            few = None if anchor is None or anchor not in bases else _few_changes(bases[anchor], manifest)
            if anchor is not None and few is not None:
                nearer = Changes(*few, manifest.directories)
                repacked = pack_changes(nearer)
                small = len(repacked) * REBASED_PART <= manifest.text_bytes + 1024
                if small and not cost.due(snapshot_id, anchor, repacked, manifest):
                    base_id, packed = anchor, repacked
            depth, with_full = cost.place(snapshot_id, base_id, packed, manifest)
            if len(packed) > _SIBLING_FACTOR * sent_bytes or with_full:  # else it is beside the anchor, for the next
                cost.put(snapshot_id, sent_with or base_id)
        else:
            depth, with_full = cost.place(snapshot_id, base_id, packed, manifest)
        full = full_content(manifest) if with_full else None
        bases[snapshot_id] = manifest
        self._came_last(item)
        return BuiltSnapshot(
            SnapshotRow(snapshot_id, base_id, depth, packed, full),
            manifest,
            _extras(item.extras),
            upsert,
            item,
            sent_with,
            sent,
        )

    def check(self, item: Snapshot | SnapshotDelta, bases: Bases) -> None:
        """Verify a record of a snapshot that was built before; raises like :meth:`build`."""
        _, manifest, _, _ = self._as_changes(item, bases)
        check_id(manifest, item.snapshot_id, self._scheme)
        bases[item.snapshot_id] = manifest
        self._came_last(item)

    def true_id(self, item: Snapshot | SnapshotDelta, bases: Bases) -> bytes:
        """Give the id of a record's content, whatever the record says; raises like :meth:`build`."""
        return self._as_changes(item, bases)[1].snapshot_id(self._scheme)

    def _came_last(self, item: Snapshot | SnapshotDelta) -> None:
        """Remember a snapshot that is proved, for the next full one."""
        self.last = item.snapshot_id
        if isinstance(item, Snapshot) and len(item.manifest) <= _SMALL_ENTRIES:
            self._whole = item.snapshot_id, item.manifest
        else:
            self._whole = None

    def _as_changes(
        self, item: Snapshot | SnapshotDelta, bases: Bases
    ) -> tuple[bytes | None, Manifest, Mapping[str, bytes], Sequence[str]]:
        """Give base id, manifest, upserts and removals."""
        limits = self._limits
        if isinstance(item, SnapshotDelta):
            base_id = item.parent_snapshot_id
            base = self._empty if base_id is None else bases[base_id]
            return base_id, base.apply(item.upsert, item.remove, item.directories, limits), item.upsert, item.remove
        if self.last is None:
            return None, self._empty.apply(item.manifest, (), item.directories, limits), item.manifest, ()
        base = bases[self.last]
        upsert: Mapping[str, bytes]
        remove: Sequence[str]
        if len(item.manifest) <= _SMALL_ENTRIES and len(base) <= _SMALL_ENTRIES:
            whole = self._whole
            old = whole[1] if whole is not None and whole[0] == self.last else dict(base.items())
            upsert = {path: blob for path, blob in item.manifest.items() if old.get(path) != blob}
            remove = tuple(path for path in old if path not in item.manifest)
        else:
            alone = self._empty.apply(item.manifest, (), item.directories, limits)
            few = base.few_changes_to(alone, len(alone) // _FEW_PART)
            if few is None:
                return None, alone, item.manifest, ()
            upsert, remove = few
            del alone
        if len(upsert) + len(remove) < len(item.manifest):
            return self.last, base.apply(upsert, remove, item.directories, limits), upsert, remove
        return None, self._empty.apply(item.manifest, (), item.directories, limits), item.manifest, ()


def _few_changes(base: Manifest, manifest: Manifest) -> tuple[dict[str, bytes], list[str]] | None:
    """Give changes that may be stored instead of the full content: more of them would only be thrown away."""
    most = len(manifest) if len(manifest) <= _SMALL_ENTRIES else len(manifest) // _FEW_PART
    return base.few_changes_to(manifest, most)


def _extras(extras: Mapping[str, object]) -> bytes:
    return canonical_bytes(Kind.SNAPSHOT, extras) if extras else b""
