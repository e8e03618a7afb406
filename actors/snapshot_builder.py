"""From a snapshot record to a verified manifest and the row that stores it.

The same for whoever takes records in: a server's push, a client's fetch or import. CPU-bound and synchronous, so that
a caller can run a batch of records in one worker thread.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from storage.rows import SnapshotRow
from storage.snapshots import ChainCost, Changes, full_content, pack_changes
from wire.canonical import canonical_bytes
from wire.ids import Kind, Scheme
from wire.limits import Limits
from wire.manifest import Manifest, check_id
from wire.manifest import empty as empty_manifest
from wire.paths import PathPolicy
from wire.records import Snapshot, SnapshotDelta, delta_record, snapshot_record


@dataclass(frozen=True, slots=True)
class BuiltSnapshot:
    """A rebuilt and verified snapshot."""

    row: SnapshotRow
    manifest: Manifest
    extras: bytes
    """Canonical form of the fields the id does not cover; ``b""`` for none."""
    blobs: tuple[bytes, ...]
    """Distinct blobs it adds to its base."""
    item: Snapshot | SnapshotDelta
    changes: Changes

    def canonical(self, scheme: Scheme, limits: Limits) -> bytes:
        """Give the stored form: whole where the chain has a full content, changes to the base elsewhere."""
        snapshot_id, extras = self.row.snapshot_id, self.item.extras
        if self.row.base_id is None or self.row.full is not None:
            whole = Snapshot(snapshot_id, dict(self.manifest.items()), self.manifest.directories, extras)
            return canonical_bytes(Kind.SNAPSHOT, snapshot_record(whole, scheme), limits)
        changes = self.changes
        delta = SnapshotDelta(
            snapshot_id, self.row.base_id, changes.upsert, tuple(changes.remove), changes.directories, extras
        )
        return canonical_bytes(Kind.SNAPSHOT, delta_record(delta, scheme), limits)


class SnapshotBuilder:
    """Build snapshots one after the other; remembers what their chains cost."""

    def __init__(self, scheme: Scheme, policy: PathPolicy, limits: Limits) -> None:
        self._scheme = scheme
        self._limits = limits
        self._empty = empty_manifest(policy)
        self.cost = ChainCost()
        self.last: bytes | None = None
        """The snapshot a full one is described as changes to: the one before it."""

    def build(self, item: Snapshot | SnapshotDelta, bases: MutableMapping[bytes, Manifest]) -> BuiltSnapshot:
        """Rebuild one snapshot; its base must be in ``bases``, and it is added there itself.

        Raises:
            Refusal: ``bad_record_id``, ``unsafe_path`` or ``too_large``.
            KeyError: the base is not in ``bases``.
        """
        base_id, base, upsert, remove = self._as_changes(item, bases)
        manifest = base.apply(upsert, remove, item.directories, self._limits)
        check_id(manifest, item.snapshot_id, self._scheme)
        if base_id == item.snapshot_id:  # nothing is stored as changes to itself
            base_id, upsert, remove = None, dict(manifest.items()), ()
        changes = Changes(upsert, remove, manifest.directories)
        packed = pack_changes(changes)
        depth, with_full = self.cost.place(item.snapshot_id, base_id, packed, manifest)
        full = full_content(manifest) if with_full else None
        bases[item.snapshot_id] = manifest
        self.last = item.snapshot_id
        return BuiltSnapshot(
            SnapshotRow(item.snapshot_id, base_id, depth, packed, full), manifest, _extras(item.extras),
            tuple(set(upsert.values())), item, changes,
        )  # fmt: skip

    def _as_changes(
        self, item: Snapshot | SnapshotDelta, bases: Mapping[bytes, Manifest]
    ) -> tuple[bytes | None, Manifest, Mapping[str, bytes], tuple[str, ...]]:
        """Give base id, base, upserts and removals."""
        if isinstance(item, SnapshotDelta):
            base_id = item.parent_snapshot_id
            return base_id, self._empty if base_id is None else bases[base_id], item.upsert, item.remove
        if self.last is not None:
            base = bases[self.last]
            old = dict(base.items())
            upsert = {path: blob for path, blob in item.manifest.items() if old.get(path) != blob}
            remove = tuple(path for path in old if path not in item.manifest)
            if len(upsert) + len(remove) < len(item.manifest):
                return self.last, base, upsert, remove
        return None, self._empty, item.manifest, ()


def _extras(extras: Mapping[str, object]) -> bytes:
    return canonical_bytes(Kind.SNAPSHOT, extras) if extras else b""
