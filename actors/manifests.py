"""The manifests a push builds on: recent ones at hand, older ones rebuilt from the index."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import msgpack
import trio

from storage.errors import SnapshotDamaged
from storage.history_rows import SnapshotRow
from storage.snapshots import apply_packed, build_manifest
from wire.errors import Refusal
from wire.ids import Scheme
from wire.limits import Limits
from wire.manifest import Manifest
from wire.manifest import empty as empty_manifest
from wire.opaque import is_opaque
from wire.paths import PathPolicy

if TYPE_CHECKING:
    from storage.index import History

KEPT = 128
"""Manifests share their blocks, so a history's recent ones cost little more than one of them."""
KEPT_BYTES = 16 * 1024 * 1024
"""Of what they do not share, keep at most this much."""
_REBUILT_MOST = 1_000
"""Changes that are applied where full contents are damaged."""
KEPT_LEAST = 2
"""However large they are: a base, and what its descendant is stored as changes to."""


class ManifestCache:
    """Least recently used manifests by snapshot id.

    Without a policy, paths are not checked again: for manifests that are only read.
    """

    def __init__(self, index: History, scheme: Scheme, policy: PathPolicy | None, limits: Limits) -> None:
        self._index = index
        self._scheme = scheme
        self._policy = policy
        self._limits = limits
        self._kept: OrderedDict[bytes, Manifest] = OrderedDict()
        self._shares: dict[int, int] = {}
        """Identity of a part → in how many of the manifests kept it is."""
        self.held_bytes = 0

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

    def __getitem__(self, snapshot_id: bytes) -> Manifest:
        return self._kept[snapshot_id]

    def __setitem__(self, snapshot_id: bytes, manifest: Manifest) -> None:
        self.keep(snapshot_id, manifest)

    def __contains__(self, snapshot_id: object) -> bool:
        return snapshot_id in self._kept

    def keep(self, snapshot_id: bytes, manifest: Manifest) -> None:
        """Keep a manifest for a while."""
        if snapshot_id in self._kept:
            self._kept.move_to_end(snapshot_id)
            return
        self._kept[snapshot_id] = manifest
        for part, size in manifest.parts():
            count = self._shares[part] = self._shares.get(part, 0) + 1
            self.held_bytes += size if count == 1 else 0
        while len(self._kept) > KEPT_LEAST and (len(self._kept) > KEPT or self.held_bytes > KEPT_BYTES):
            self._drop()

    def _drop(self) -> None:
        _, dropped = self._kept.popitem(last=False)
        for part, size in dropped.parts():
            count = self._shares[part] - 1
            if count:
                self._shares[part] = count
            else:
                del self._shares[part]
                self.held_bytes -= size

    async def load(self, snapshot_id: bytes) -> tuple[Manifest, list[SnapshotRow]]:
        """Rebuild a manifest from the index; gives the chain it was built from as well.

        It is hashed before anybody gets it. Where a full content is not what it should be, the one before it is taken.

        Raises:
            ObjectDamaged: the index has no sound chain for a snapshot it names.
        """
        chain = await self._chain(snapshot_id)
        manifest = await trio.to_thread.run_sync(self._proved, chain)
        longer = chain
        while manifest is None and len(longer) <= _REBUILT_MOST:  # by an earlier full content than the nearest one
            base_id = longer[-1].base_id
            if longer[-1].full is None or base_id is None:
                break
            longer = [*longer[:-1], replace(longer[-1], full=None), *await self._chain(base_id)]
            manifest = await trio.to_thread.run_sync(self._proved, longer)
        if manifest is None:
            raise SnapshotDamaged(snapshot_id, "does not hash to its id")
        self.keep(snapshot_id, manifest)
        return manifest, chain

    async def _chain(self, snapshot_id: bytes) -> list[SnapshotRow]:
        chain = await self._index.snapshot_chain(self._scheme, snapshot_id)
        if not chain:
            raise SnapshotDamaged(snapshot_id, "is missing")
        return chain

    def _proved(self, chain: Sequence[SnapshotRow]) -> Manifest | None:
        """Rebuild a chain's first snapshot and hash it, ``None`` if it is another one; CPU-bound."""
        snapshot_id = chain[0].snapshot_id
        try:
            made = build_manifest(chain, self._policy, self._limits)
        except (ValueError, msgpack.UnpackException, Refusal):
            return None
        return made if is_opaque(snapshot_id) or made.snapshot_id(self._scheme) == snapshot_id else None

    async def get(self, snapshot_id: bytes) -> Manifest:
        """Give a manifest: from memory, as changes to one in memory, or from the index."""
        found = self.at_hand(snapshot_id)
        if found is not None:
            return found
        row = (await self._index.snapshot_deltas(self._scheme, [snapshot_id])).get(snapshot_id)
        base = self.at_hand(row.base_id) if row is not None and row.base_id is not None else None
        if row is None or base is None:
            return (await self.load(snapshot_id))[0]
        try:
            manifest = await trio.to_thread.run_sync(apply_packed, base, row.delta, self._limits)
        except (ValueError, msgpack.UnpackException, Refusal):
            return (await self.load(snapshot_id))[0]
        self.keep(snapshot_id, manifest)
        return manifest
