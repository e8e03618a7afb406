"""Mending rows of snapshots: from the rest of the chain, or from the records in the store.

What is written is proved to hash to the id first. A row that is made anew has the whole content and no base; who reads
changes to a base is given those to nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace

import msgpack
import structlog
import trio

from actors.manifests import ManifestCache
from actors.repair.reading import RepairServices
from actors.repair.search import entries_of
from actors.repair.snapshot_rows import readable_deltas
from storage.errors import ObjectDamaged, ObjectMissing
from storage.history_rows import SnapshotRow
from storage.object_store import ReadRange
from storage.snapshots import build_manifest, full_content
from wire.canonical import parse_canonical
from wire.errors import Refusal
from wire.ids import Kind, Scheme
from wire.limits import MIB
from wire.manifest import Manifest
from wire.manifest import empty as empty_manifest
from wire.pack import IndexEntry
from wire.records import Snapshot, SnapshotDelta, parse_snapshot_either

ROUNDS = 50
"""Of looking for what was found to be changes to something that is to be looked for, too."""
RECORD_MOST = 256 * MIB
WANTED_MOST = 2_000

log = structlog.get_logger("repair")


async def mend_snapshots(services: RepairServices, scheme: Scheme, wanted: Sequence[bytes]) -> set[bytes]:
    """Mend rows of snapshots; gives those that are sound now."""
    mended: set[bytes] = set()
    left: list[bytes] = []
    for snapshot_id in wanted:
        manifest = await _from_chain(services, scheme, snapshot_id)
        if manifest is not None and await _write(services, scheme, snapshot_id, manifest):
            mended.add(snapshot_id)
        else:
            left.append(snapshot_id)
    if left:
        mended |= await _Recovery(services, scheme).run(left[:WANTED_MOST])
    return mended


async def _from_chain(services: RepairServices, scheme: Scheme, snapshot_id: bytes) -> Manifest | None:
    try:
        return (await ManifestCache(services.index, scheme, None, services.limits).load(snapshot_id))[0]
    except ObjectDamaged:
        return None


async def _write(services: RepairServices, scheme: Scheme, snapshot_id: bytes, manifest: Manifest) -> bool:
    """Write a proved content; changes to a base are kept where they are right."""
    wrong = await services.index.stored_snapshot(scheme, snapshot_id)
    full = await trio.to_thread.run_sync(full_content, manifest)
    right = SnapshotRow(snapshot_id, None, 0, full, None)
    if wrong is not None and wrong.base_id is not None and wrong.full is not None:
        base = await _from_chain(services, scheme, wrong.base_id)
        changes = (await readable_deltas(services.index, scheme, [snapshot_id]))[0].get(snapshot_id)
        if base is not None and changes is not None:
            is_made = await trio.to_thread.run_sync(_makes, base, changes, scheme, services)
            right = replace(wrong, delta=changes.delta, full=full) if is_made else right
    done = await services.index.mend_snapshot(scheme, wrong, right)
    if done:
        log.warning("a snapshot was mended", snapshot=snapshot_id.hex())
    return done


def _makes(base: Manifest, row: SnapshotRow, scheme: Scheme, services: RepairServices) -> bool:
    """Tell whether a row's changes to its base make it; CPU-bound."""
    whole = SnapshotRow(base.snapshot_id(scheme), None, 0, full_content(base), None)
    try:
        made = build_manifest([replace(row, full=None), whole], None, services.limits)
    except (ValueError, msgpack.UnpackException, Refusal):
        return False
    return made.snapshot_id(scheme) == row.snapshot_id


class _Recovery:
    """Reads snapshots out of the record packs, and what these are changes to."""

    def __init__(self, services: RepairServices, scheme: Scheme) -> None:
        self._services = services
        self._scheme = scheme
        self._waiting: dict[bytes, list[SnapshotDelta]] = {}
        """Base → what was found as changes to it."""
        self.mended: set[bytes] = set()

    async def run(self, wanted: Iterable[bytes]) -> set[bytes]:
        """Look for records, and for those they are changes to, as long as that leads further."""
        targets, looked_for = set(wanted), set[bytes]()
        for _ in range(ROUNDS):
            unknown = targets - looked_for - self.mended
            if not unknown:
                break
            looked_for |= unknown
            async with aclosing(entries_of(self._services, ("records",))) as walk:
                async for key, entries in walk:
                    for entry in entries:
                        if entry.object_id in unknown and entry.object_id not in self.mended:
                            await self._take(key, entry)
            targets |= self._waiting.keys()
        return self.mended

    async def _take(self, key: str, entry: IndexEntry) -> None:
        if entry.size > RECORD_MOST:
            return
        try:
            (body,) = await self._services.store.get_ranges([ReadRange(key, entry.offset, entry.size)])
            item = await trio.to_thread.run_sync(self._parsed, body)
        except (Refusal, ObjectDamaged, ObjectMissing):
            return
        if item is None or item.snapshot_id != entry.object_id:
            return
        if isinstance(item, Snapshot) or item.parent_snapshot_id is None:
            await self._built(empty_manifest(None), item)
        else:
            base = await _from_chain(self._services, self._scheme, item.parent_snapshot_id)
            if base is not None:
                await self._built(base, item)
            else:
                self._waiting.setdefault(item.parent_snapshot_id, []).append(item)

    def _parsed(self, body: bytes) -> Snapshot | SnapshotDelta | None:
        kind, record = parse_canonical(body)
        return parse_snapshot_either(record, self._scheme, self._services.limits) if kind is Kind.SNAPSHOT else None

    async def _built(self, base: Manifest, item: Snapshot | SnapshotDelta) -> None:
        """Prove and write what a record makes, and what waited for it."""
        todo = [(base, item)]
        while todo:
            base, item = todo.pop()
            try:
                manifest = await trio.to_thread.run_sync(self._made, base, item)
            except Refusal:
                continue
            if manifest is None or not await _write(self._services, self._scheme, item.snapshot_id, manifest):
                continue
            self.mended.add(item.snapshot_id)
            todo += [(manifest, waiting) for waiting in self._waiting.pop(item.snapshot_id, [])]

    def _made(self, base: Manifest, item: Snapshot | SnapshotDelta) -> Manifest | None:
        if isinstance(item, Snapshot):
            made = base.apply(item.manifest, (), item.directories, self._services.limits)
        else:
            made = base.apply(item.upsert, item.remove, item.directories, self._services.limits)
        return made if made.snapshot_id(self._scheme) == item.snapshot_id else None
