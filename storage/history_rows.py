"""Commits and snapshots as rows of a history: what a server's index and a client's have in common."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A verified snapshot as stored: always as changes to a base, now and then with the full content too."""

    snapshot_id: bytes
    base_id: bytes | None
    depth: int
    """Number of deltas to apply to the nearest full content; 0 when ``full`` is given."""
    delta: bytes
    """``wire``-independent packed changes, see ``storage.snapshots``."""
    full: bytes | None


@dataclass(frozen=True, slots=True)
class CommitRow:
    """A verified commit of one push."""

    commit_id: bytes
    parents: tuple[bytes, ...]
    snapshot_id: bytes
    generation: int
    record: bytes
    """The canonical bytes of the record as received."""
