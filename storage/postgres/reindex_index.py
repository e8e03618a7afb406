"""The index while it is made anew from the store: pushes are taken in again by the same rules as at first.

What differs: a blob counts as the push's own when a snapshot of it names it, since it was proved before; a snapshot may
build on whatever is there; and accepting a push again moves no branch, counts nothing and enqueues nothing.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from storage.job_rows import NewJob
from storage.journal import Deployment, Entry
from storage.layout import Place
from storage.postgres import journal, reindex
from storage.postgres.database import Connection
from storage.postgres.index import PostgresIndex
from storage.reindex import DamagedSegment, Finding, Phase, Rebuilding, Step
from storage.rows import BranchMove, MoveResult, Outcome, PushRows, PushTicket, Written
from wire.ids import Scheme

T = TypeVar("T")


class ReindexIndex(PostgresIndex):
    """See the module; :mod:`storage.postgres.reindex` for the operations."""

    def __init__(self, index: PostgresIndex) -> None:  # one database, and the same connections
        self.__dict__.update(index.__dict__)
        self.current: dict[int, Step] = {}
        """What is being done again, by the number of its push."""

    async def _run(self, function: Callable[..., T], *arguments: object) -> T:
        return await self.database.run(function, *arguments)

    async def claim_blobs(
        self, ticket: PushTicket, scheme: Scheme, object_ids: Sequence[bytes], now: dt.datetime
    ) -> set[bytes]:
        del now
        return await self._run(reindex.claim, ticket, scheme, object_ids)

    async def lacking_snapshots(self, ticket: PushTicket, snapshot_ids: Sequence[bytes]) -> list[bytes]:
        del ticket
        return await self._run(reindex.lacking_snapshots, snapshot_ids)

    async def finish_push(
        self,
        ticket: PushTicket,
        scheme: Scheme,
        rows: PushRows,
        move: BranchMove,
        verdict: Callable[[Written], Mapping[str, object]],
        now: dt.datetime,
        record_bytes: int = 0,
        new_jobs: Sequence[NewJob] = (),
    ) -> MoveResult:
        del now, record_bytes, new_jobs
        step = self.current[ticket.number]
        await self._run(reindex.accept, ticket, scheme, rows, step.entry, step.record_pack, None)
        return MoveResult(Outcome.MOVED, move.new, verdict=verdict(Written(0, 0, 0)))

    async def accept_bare(self, step: Step, damage: str | None) -> None:
        """Accept a push again that brought no records, or whose records did not come back."""
        assert step.ticket is not None
        await self._run(reindex.accept, step.ticket, None, PushRows(), step.entry, step.record_pack, damage)

    async def deployment_now(self) -> Deployment | None:
        """Give what the database says it is."""
        return await self._run(journal.deployment, None)

    async def rebuilding(self) -> Rebuilding | None:
        """Give the rebuilding that is under way."""
        return await self._run(reindex.rebuilding)

    async def begin(self, deployment: uuid.UUID, generation: int, *, replace: bool) -> None:
        """Begin one."""
        await self._run(_begin, deployment, generation, replace)

    async def enter(self, phase: Phase) -> None:
        """Note that everything before a phase is done."""
        await self._run(reindex.enter, phase)

    async def done(self, keys: Sequence[str]) -> set[str]:
        """Give those of some keys that were read."""
        return await self._run(reindex.done, keys)

    async def take_entries(
        self, entries: Sequence[Entry], keys: Sequence[str], damaged: Sequence[DamagedSegment]
    ) -> None:
        """Take entries of segments, and note which segments cannot be read."""
        await self._run(reindex.take_entries, entries, keys, damaged)

    async def take_places(self, scheme: Scheme, places: Sequence[Place], objects: int, key: str | None) -> None:
        """Take where blobs lie."""
        await self._run(reindex.take_places, scheme, places, objects, key)

    async def take_heads(self, pack_id: bytes, commit_ids: Sequence[bytes], key: str) -> None:
        """Take which commits a record pack has."""
        await self._run(reindex.take_heads, pack_id, commit_ids, key)

    async def apply_facts(self) -> None:
        """Make what facts say."""
        await self._run(reindex.apply_facts)

    async def unnamed_packs(self) -> int:
        """Count accepted pushes of which no entry says where their records are."""
        return await self._run(reindex.unnamed_packs)

    async def repository_numbers(self) -> list[int]:
        """Give the numbers of all repositories, deleted ones included."""
        return await self._run(reindex.repositories)

    async def steps(self, repo: int, after: int, most: int) -> list[Step]:
        """Give what is to be done again for a repository."""
        return await self._run(reindex.steps, repo, after, most)

    async def count_steps(self) -> int:
        """Count all of them."""
        return await self._run(reindex.count_steps)

    async def sweep_again(self, entry: int) -> None:
        """Take references away again that were taken away."""
        await self._run(reindex.sweep, entry)

    async def findings(self) -> list[Finding]:
        """Give what did not come back."""
        return await self._run(reindex.findings)

    async def last_found(self) -> int:
        """Give the last entry that was found."""
        return await self._run(reindex.last_entry)

    async def complete(self) -> None:
        """Let the database be used."""
        await self._run(reindex.complete)


def _begin(connection: Connection, deployment: uuid.UUID, generation: int, replace: bool) -> None:
    reindex.begin(connection, deployment, generation, replace=replace)
