"""The manifests a push builds on: recent ones at hand, older ones rebuilt from the index."""

from __future__ import annotations

from collections import OrderedDict

import trio

from storage.errors import ObjectDamaged
from storage.index import History
from storage.rows import SnapshotRow
from storage.snapshots import build_manifest, unpack_changes
from wire.ids import Scheme
from wire.limits import Limits
from wire.manifest import Manifest
from wire.manifest import empty as empty_manifest
from wire.paths import PathPolicy

KEPT = 128
"""Manifests share their blocks, so a history's recent ones cost little more than one of them."""
KEPT_TEXT_BYTES = 64 * 1024 * 1024
"""Of a repository with huge manifests, keep fewer: this much text if nothing were shared."""


class ManifestCache:
    """Least recently used manifests by snapshot id."""

    def __init__(self, index: History, scheme: Scheme, policy: PathPolicy, limits: Limits) -> None:
        self._index = index
        self._scheme = scheme
        self._policy = policy
        self._limits = limits
        self._kept: OrderedDict[bytes, Manifest] = OrderedDict()
        self._text_bytes = 0

    @property
    def empty(self) -> Manifest:
        """The manifest without entries, under the repository's path policy."""
        return empty_manifest(self._policy)

    def at_hand(self, snapshot_id: bytes) -> Manifest | None:
        """Give a manifest that is kept."""
        found = self._kept.get(snapshot_id)
        if found is not None:
            self._kept.move_to_end(snapshot_id)
        return found

    def keep(self, snapshot_id: bytes, manifest: Manifest) -> None:
        """Keep a manifest for a while."""
        if snapshot_id in self._kept:
            self._kept.move_to_end(snapshot_id)
            return
        self._kept[snapshot_id] = manifest
        self._text_bytes += manifest.text_bytes
        while len(self._kept) > 1 and (len(self._kept) > KEPT or self._text_bytes > KEPT_TEXT_BYTES):
            _, dropped = self._kept.popitem(last=False)
            self._text_bytes -= dropped.text_bytes

    async def load(self, snapshot_id: bytes) -> tuple[Manifest, list[SnapshotRow]]:
        """Rebuild a manifest from the index; gives the chain it was built from as well.

        Raises:
            ObjectDamaged: the index has no sound chain for a snapshot it names.
        """
        chain = await self._index.snapshot_chain(self._scheme, snapshot_id)
        if not chain:
            raise ObjectDamaged(f"the index lacks snapshot {snapshot_id.hex()}")
        try:
            manifest = await trio.to_thread.run_sync(build_manifest, chain, self._policy, self._limits)
        except ValueError as error:
            raise ObjectDamaged(str(error)) from error
        self.keep(snapshot_id, manifest)
        return manifest, chain

    async def get(self, snapshot_id: bytes) -> Manifest:
        """Give a manifest: from memory, as changes to one in memory, or from the index."""
        found = self.at_hand(snapshot_id)
        if found is not None:
            return found
        row = (await self._index.snapshot_deltas(self._scheme, [snapshot_id])).get(snapshot_id)
        base = self.at_hand(row.base_id) if row is not None and row.base_id is not None else None
        if row is None or base is None:
            return (await self.load(snapshot_id))[0]
        changes = unpack_changes(row.delta)
        manifest = base.apply(changes.upsert, changes.remove, changes.directories, self._limits)
        self.keep(snapshot_id, manifest)
        return manifest
