"""What ``fsck`` reads of the index, a page at a time, and how it mends what another copy allows.

Pages are in order of a key, and what follows is asked for by the last one, so that tables of any length take little
memory and no connection for long. A page may be of another moment than the one before it: whoever finds something wrong
looks at it once more before saying so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from storage.collection_rows import RefKind
from storage.history_rows import SnapshotRow
from storage.rows import BranchLogEntry
from wire.ids import Scheme


@dataclass(frozen=True, slots=True)
class LoggedMove:
    """A line of a branch's log, with its place in it."""

    number: int
    entry: BranchLogEntry


class Checks(Protocol):
    """Reading what repositories hold."""

    async def held_ids(self, repo: int, kind: RefKind, after: bytes, most: int) -> list[bytes]:
        """Give what accepted pushes of a repository hold of a kind, with ids above ``after``, in order."""

    async def unheld(self, repo: int, kind: RefKind, ids: Sequence[bytes]) -> set[bytes]:
        """Give those that no accepted push of a repository holds."""

    async def branch_moves_after(self, repo: int, after: tuple[str, int], most: int) -> list[LoggedMove]:
        """Give moves of branches behind one, in order of branch and time; of all branches that ever were."""

    async def stored_snapshot(self, scheme: Scheme, snapshot_id: bytes) -> SnapshotRow | None:
        """Give a snapshot's row as it is stored: what is kept apart from the row is only named, and not read."""

    async def mend_snapshot(self, scheme: Scheme, wrong: SnapshotRow | None, right: SnapshotRow) -> bool:
        """Let a snapshot's row be another one, if it is still what it was believed to be; gives whether it was.

        ``wrong`` is as :meth:`stored_snapshot` gives it; ``None``: there was no row. ``right`` has been proved to hash
        to its id; what is kept apart from it is written anew.
        """


@dataclass(frozen=True, slots=True)
class AcceptedPush:
    """A push, and the record pack its commits and snapshots are in, as far as the index knows."""

    number: int
    repo: int
    record_pack: bytes | None


@dataclass(frozen=True, slots=True)
class BroughtRecord:
    """A commit or a snapshot that a push brought to its repository."""

    record_id: bytes
    push: int
    order: int
    """What it builds on has a smaller one: a commit's generation, a snapshot's depth."""


@runtime_checkable
class RecordPacks(Protocol):
    """Which records are in which pack: beside the ``Index`` port, as the journal is."""

    async def pushes_after(self, after: int, most: int) -> list[AcceptedPush]:
        """Give accepted pushes of repositories that are there, in order of their numbers."""

    async def pushes_with_records(self, repo: int, pushes: Sequence[int]) -> set[int]:
        """Give those of a repository's pushes that brought commits or snapshots."""

    async def brought_records(
        self, repo: int, pushes: Sequence[int], kind: RefKind, after: tuple[bytes, int], most: int
    ) -> list[BroughtRecord]:
        """Give what some pushes of a repository brought, in order of id and push, behind one."""

    async def brought_commits(self, repo: int, push: int, commit_ids: Sequence[bytes]) -> dict[bytes, bytes]:
        """Give the sound records a push brought of commits, of the first that fit into ``READ_BYTES``."""

    async def brought_extras(self, repo: int, push: int, snapshot_ids: Sequence[bytes]) -> Mapping[bytes, bytes]:
        """Give the extra fields a push brought of snapshots; those without any are left out."""

    async def brought_before(self, repo: int, push: int, snapshot_ids: Sequence[bytes]) -> set[bytes]:
        """Give those of some snapshots that the repository holds by this accepted push or an earlier one."""

    async def name_record_pack(self, push: int, known: bytes | None, pack_id: bytes) -> bool:
        """Note in which pack a push's records are, if what was known of it is still so; gives whether it was."""
