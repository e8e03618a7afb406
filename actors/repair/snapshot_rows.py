"""Reading rows of snapshots some of which cannot be read: a large one is kept in parts, and these may be damaged."""

from __future__ import annotations

from collections.abc import Sequence

from storage.errors import ObjectDamaged
from storage.history_rows import SnapshotRow
from storage.index import READ_BYTES, Index
from wire.ids import Scheme


async def readable_deltas(
    index: Index, scheme: Scheme, snapshot_ids: Sequence[bytes]
) -> tuple[dict[bytes, SnapshotRow], set[bytes]]:
    """Read as many rows as ``snapshot_deltas`` would, and tell which of them cannot be read."""
    try:
        return await index.snapshot_deltas(scheme, snapshot_ids), set()
    except ObjectDamaged:
        pass
    rows: dict[bytes, SnapshotRow] = {}
    unreadable = set[bytes]()
    size = 0
    for snapshot_id in snapshot_ids:
        row = None
        try:
            row = (await index.snapshot_deltas(scheme, [snapshot_id])).get(snapshot_id)
        except ObjectDamaged:
            unreadable.add(snapshot_id)
        if row is not None:
            rows[snapshot_id] = row
            size += len(row.delta)
        if size >= READ_BYTES:
            break
    return rows, unreadable


async def readable_chain(index: Index, scheme: Scheme, snapshot_id: bytes) -> list[SnapshotRow] | None:
    """Read a chain; ``None``: not all of it can be read."""
    try:
        return await index.snapshot_chain(scheme, snapshot_id)
    except ObjectDamaged:
        return None
