"""The part of the ``Index`` port by which what nobody needs is collected, beside pushes and fetches.

The rules, which every implementation keeps (``tests/behaviour/test_index_collection.py``; why they are enough is in
``docs/design/0008-collection.md``):

* Whoever is to rely on what is stored takes a *moment* first: a push by beginning an attempt, a fetch or a confirmation
  by a lease. Moments are ordered; a moment that is lost, because its lease ran out, does not come back.
* References are taken from a repository only while nobody moves its branches, and each time counts: a push that began
  before is not accepted (``Outcome.COLLECTED``).
* What may have lost its last reference is *marked*. Whoever records a marked object takes the mark away.
* A mark that has waited for a lease lifetime, is older than every live moment, and is found unreferenced becomes a
  *tombstone*: its row is gone, its bytes are being deleted. Whoever would record what has a tombstone is told to come
  again (``storage.errors.Tombstoned``).
* A tombstone whose bytes are deleted stays for as long as a moment lives that is older: what that one has put there
  before may have been deleted with the rest. One that is younger takes it away by recording.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from typing import Protocol

from storage.collection_rows import Condemned, Mark, RefKind, Review, ReviewCursor, Sweep, Swept
from storage.layout import Place
from wire.ids import Scheme


class Leases(Protocol):
    """Who relies on what is stored, besides pushes."""

    async def take_lease(self, lease: uuid.UUID, repo: int, now: dt.datetime, lease_s: float) -> None:
        """Begin to rely on what a repository holds."""

    async def renew_lease(self, lease: uuid.UUID, now: dt.datetime, lease_s: float) -> bool:
        """Extend a lease; gives whether it was still there."""

    async def end_lease(self, lease: uuid.UUID) -> None:
        """Let go of a lease."""


class Sweeping(Protocol):
    """Taking references from repositories."""

    async def sweepable(self, now: dt.datetime, keep_s: float, after: int, most: int) -> list[int]:
        """Give repositories with numbers above ``after`` that may hold what they need no more, in order."""

    async def begin_sweep(self, repo: int, now: dt.datetime, keep_s: float) -> Sweep | None:
        """Begin to look at a repository; ``None``: there is no such one. Ends another collector's look at it.

        Pushes nobody has come back to for ``ABANDONED_S`` are cut: their next attempt begins anew. Branches, and where
        they were within ``keep_s``, are where the walk begins.
        """

    async def extend_sweep(self, sweep: Sweep, now: dt.datetime) -> bool:
        """Add where branches have been since to where the walk begins; gives whether the sweep is still this one's."""

    async def unvisited(self, sweep: Sweep, kind: RefKind, most: int) -> list[bytes]:
        """Give what was reached and is still to be looked into."""

    async def reach(self, sweep: Sweep, kind: RefKind, ids: Sequence[bytes], *, visited: bool) -> None:
        """Note what branches lead to; what was visited stays so."""

    async def reached(self, sweep: Sweep, kind: RefKind, ids: Sequence[bytes]) -> set[bytes]:
        """Give those of some that branches lead to."""

    async def sweep_commits(self, sweep: Sweep, now: dt.datetime, *, dry_run: bool = False) -> Swept:
        """Take away all commits nobody needs, at once: a commit that is held has all its history."""

    async def sweep_refs(
        self, sweep: Sweep, kind: RefKind, after: bytes, most: int, now: dt.datetime, *, dry_run: bool = False
    ) -> Swept:
        """Take away snapshots or blobs nobody needs, of up to ``most`` with ids above ``after``.

        Blobs that accepted pushes had brought are held for ``HANDOVER_S``: somebody may have been told they are stored.
        """

    async def end_sweep(self, sweep: Sweep, now: dt.datetime, keep_s: float, *, complete: bool) -> None:
        """Forget what was noted; a complete sweep is not repeated until there is a reason."""


class Marking(Protocol):
    """From what may be unneeded to bytes that are gone."""

    async def mark_suspects(self, now: dt.datetime, most: int) -> int:
        """Mark up to ``most`` of what has lost a reference; gives how many were looked at."""

    async def mark_orphans(self, marks: Sequence[Mark], now: dt.datetime) -> int:
        """Mark those of some stored keys that no row says anything lies at; gives how many were not marked before."""

    async def count_marks(self) -> Mapping[str, int]:
        """Count marks: ``marked``, ``tombstoned``, ``deleted``, ``suspects``."""

    async def begin_review(self, number: uuid.UUID, now: dt.datetime, lease_s: float, most: int) -> Review:
        """Choose marks that have waited for a lease lifetime and are older than whoever relies on anything."""

    async def review(self, number: uuid.UUID, cursor: ReviewCursor) -> ReviewCursor | None:
        """Find out, a piece at a time, which of them are referenced; ``None`` at the end."""

    async def condemn(self, number: uuid.UUID, most: int, now: dt.datetime) -> Condemned:
        """Turn up to ``most`` reviewed marks into tombstones, or drop them; rows of unreferenced blobs are gone."""

    async def take_tombstones(self, owner: uuid.UUID, most: int, now: dt.datetime, until: dt.datetime) -> list[Mark]:
        """Give tombstones to delete the bytes of, that are nobody's else until then."""

    async def bury(self, owner: uuid.UUID, marks: Sequence[Mark], now: dt.datetime) -> int:
        """Record that the bytes of one's tombstones are deleted; gives how many were one's own."""

    async def forget_tombstones(self, now: dt.datetime, lease_s: float) -> int:
        """Forget tombstones buried for a lease lifetime that nobody can meet who began before; gives how many.

        Whoever has lost a lease cannot record anything any more.
        """


class Folding(Protocol):
    """Moving objects into larger packs."""

    async def begin_fold(self, repo: int, now: dt.datetime, every_s: float) -> bool:
        """Tell whether the last folding of a repository began ``every_s`` ago; this one counts from now then."""

    async def repository_places(self, repo: int, after: bytes, most: int) -> tuple[Scheme | None, list[Place]]:
        """Give where blobs of a repository are, with ids above ``after``, in order; and its scheme."""

    async def move_places(
        self, lease: uuid.UUID, scheme: Scheme, pack_id: bytes, moves: Sequence[tuple[Place, int]]
    ) -> set[bytes]:
        """Let blobs that are still where they were lie in a stored pack, at an offset; gives which.

        Their old places are suspects from then on.

        Raises:
            StaleTicket: the lease is gone.
            Tombstoned: a pack of that id is being collected.
        """


class Collection(Leases, Sweeping, Marking, Folding, Protocol):
    """All of it."""
