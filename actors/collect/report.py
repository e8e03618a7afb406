"""What a collection has found and freed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Report:
    """Counts; sizes in bytes. Of a dry run: what would be."""

    repositories: int = 0
    """Swept."""
    postponed: int = 0
    """Repositories a fetch relies on, or that another collector looks at, or that keep moving."""
    commit_refs: int = 0
    snapshot_refs: int = 0
    blob_refs: int = 0
    released_bytes: int = 0
    """By which repositories hold less."""
    orphans: int = 0
    """Stored keys no row says anything lies at, found by this run."""
    objects: int = 0
    """Whose rows are gone."""
    object_bytes: int = 0
    packs: int = 0
    """Deleted from the store."""
    pack_bytes: int = 0
    keys: int = 0
    """Deleted from the store, packs among them."""
    waiting: int = 0
    """Marks that have not waited long enough, or that somebody may rely on."""

    def counts(self) -> Mapping[str, object]:
        """Give them by name."""
        return asdict(self)
