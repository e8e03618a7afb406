"""How snapshots are kept in the index: packed changes to a base, and now and then the full content.

One packed form serves both: a full content is changes to the empty manifest. What a reader needs most, the
changes from one commit's snapshot to the next, is therefore always at hand; the full contents only bound how many
changes must be applied to rebuild a manifest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgpack

from storage.rows import SnapshotRow
from wire.limits import DEFAULT_LIMITS, Limits
from wire.manifest import Manifest
from wire.manifest import empty as empty_manifest
from wire.paths import PathPolicy

DEPTH_MOST = 48
"""Deltas to apply at most; git's default chain limit is 50."""
_FULL_RATIO = 2
"""A full content is stored as well once the deltas since the last one amount to this part of it: 1/2."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What turns a base manifest into another one."""

    upsert: Mapping[str, bytes]
    remove: Sequence[str]
    directories: tuple[str, ...]


def pack_changes(changes: Changes) -> bytes:
    """Write changes in the stored form."""
    packed: bytes = msgpack.packb([dict(changes.upsert), list(changes.remove), list(changes.directories)])
    return packed


def unpack_changes(packed: bytes) -> Changes:
    """Read stored changes."""
    upsert, remove, directories = msgpack.unpackb(
        packed, max_map_len=len(packed), max_array_len=len(packed), max_str_len=len(packed), max_bin_len=len(packed)
    )
    return Changes(upsert, remove, tuple(directories))


class ChainCost:
    """Decides when a full content is due, knowing what has piled up since the last one."""

    def __init__(self) -> None:
        self._since_full: dict[bytes, tuple[int, int]] = {}

    def place(self, snapshot_id: bytes, base_id: bytes | None, changes: bytes, manifest: Manifest) -> tuple[int, bool]:
        """Give a new row's depth and whether it carries its full content."""
        if base_id is None:  # the changes are the full content already
            self._since_full[snapshot_id] = (0, 0)
            return 0, False
        depth, since = self._since_full.get(base_id, (DEPTH_MOST, 0))
        depth, since = depth + 1, since + len(changes)
        full = depth > DEPTH_MOST or since * _FULL_RATIO > manifest.text_bytes + 1024
        self._since_full[snapshot_id] = (0, 0) if full else (depth, since)
        return (0 if full else depth), full

    def learn(self, chain: Sequence[SnapshotRow]) -> None:
        """Take note of a stored chain (target first) that new rows may build on."""
        if chain:
            self._since_full[chain[0].snapshot_id] = (chain[0].depth, sum(len(row.delta) for row in chain[:-1]))


def build_manifest(chain: Sequence[SnapshotRow], policy: PathPolicy, limits: Limits = DEFAULT_LIMITS) -> Manifest:
    """Rebuild the manifest of a chain's first row; CPU-bound, for a worker thread when the chain is large.

    Raises:
        ValueError: the chain does not reach a full content.
    """
    last = chain[-1]
    manifest = empty_manifest(policy)
    if last.full is not None:
        manifest = _applied(manifest, last.full, limits)
    elif last.base_id is None:
        manifest = _applied(manifest, last.delta, limits)
    else:
        raise ValueError(f"the chain of snapshot {chain[0].snapshot_id.hex()} is broken at {last.snapshot_id.hex()}")
    for row in reversed(chain[:-1]):
        manifest = _applied(manifest, row.delta, limits)
    return manifest


def full_content(manifest: Manifest) -> bytes:
    """Pack a manifest whole."""
    return pack_changes(Changes(dict(manifest.items()), (), manifest.directories))


def _applied(manifest: Manifest, packed: bytes, limits: Limits) -> Manifest:
    changes = unpack_changes(packed)
    return manifest.apply(changes.upsert, changes.remove, changes.directories, limits)
