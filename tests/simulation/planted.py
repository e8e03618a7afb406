"""Mistakes planted into the running code, to prove that the simulation finds such mistakes."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

from actors.push.finish import Finish
from storage.job_rows import Claim, Job
from storage.memory import collection_marks, jobs, usage
from storage.memory.blobs_index import MemoryBlobs
from storage.memory.index import MemoryIndex
from storage.memory.tables import Tables
from storage.rows import QUOTA_NONE
from tests.simulation.ports import SimulatedStore
from tests.simulation.work import TALLY
from tests.simulation.world import Plan
from wire.errors import Refusal


@dataclass(frozen=True)
class Planted:
    """A mistake, and the invariants that it may break."""

    name: str
    breaks: frozenset[str]
    patches: Callable[[], list[Any]]
    concerns: Callable[[Plan], bool] = lambda _plan: True
    """Which runs have to do with it; the others are not run to find it."""


@contextmanager
def planted(mistake: Planted) -> Iterator[None]:
    """Run a block with a mistake in place."""
    patches = mistake.patches()
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def _no_fence() -> list[Any]:
    """A claim counts while anybody has the job, whatever its token."""

    def claimed(tables: Tables, claim: Claim) -> Job | None:
        return tables.jobs[claim.job] if claim.job in tables.claims else None

    return [mock.patch.object(jobs, "_claimed", claimed)]


def _no_compare_and_swap() -> list[Any]:
    """A branch moves wherever it is, as if its mover had looked at that moment."""
    accept, move_all = MemoryIndex._accept, MemoryIndex.move_branches

    def accept_now(self: MemoryIndex, ticket: Any, scheme: Any, move: Any, *more: Any) -> Any:
        now_at = self.tables.branches[ticket.repo].get(move.branch)
        return accept(self, ticket, scheme, replace(move, old=now_at), *more)

    async def move_branches(self: MemoryIndex, number: int, moves: Any, *more: Any) -> Any:
        branches = self.tables.branches[number]
        return await move_all(self, number, [replace(m, old=branches.get(m.branch)) for m in moves], *more)

    return [
        mock.patch.object(MemoryIndex, "_accept", accept_now),
        mock.patch.object(MemoryIndex, "move_branches", move_branches),
    ]


def _no_lease() -> list[Any]:
    """The collector waits for nobody who relies on what it deletes."""
    later = dt.timedelta(days=10)
    begin = collection_marks.begin_review

    def begin_review(tables: Tables, number: uuid.UUID, now: dt.datetime, lease_s: float, most: int) -> Any:
        return begin(tables, number, now + later, lease_s, most)

    def forget_tombstones(tables: Tables, now: dt.datetime, lease_s: float) -> int:
        del now, lease_s
        marks = tables.collection.marks
        buried = [place for place, mark in marks.items() if mark.state == collection_marks.BURIED]
        for place in buried:
            del marks[place]
        return len(buried)

    return [
        mock.patch.object(collection_marks, "begin_review", begin_review),
        mock.patch.object(collection_marks, "forget_tombstones", forget_tombstones),
    ]


def _no_sync() -> list[Any]:
    """A put returns before it is durable."""
    return [mock.patch.object(SimulatedStore, "syncs", new=False)]


def _no_quota() -> list[Any]:
    """Whatever a push brings is added to what its owner has."""
    return [mock.patch.object(usage, "_quota", return_value=QUOTA_NONE)]


def _no_parents() -> list[Any]:
    """Commits that are neither in a push nor in its repository are taken for granted."""
    look_up = Finish._outside_generations

    async def outside(self: Finish) -> dict[bytes, int]:
        try:
            return await look_up(self)
        except Refusal:
            return dict.fromkeys((p for c in self.commits.values() for p in c.parents), 1)

    return [mock.patch.object(Finish, "_outside_generations", outside)]


def _no_second_look() -> list[Any]:
    """What is marked is condemned without looking whether somebody holds it by then."""

    def review(tables: Tables, number: uuid.UUID) -> None:
        for mark in tables.collection.marks.values():
            if mark.review == number:
                mark.referenced = False

    return [mock.patch.object(collection_marks, "review", review)]


def _forgotten_reference() -> list[Any]:
    """A push that brings what the index knows already does not hold it for its own repository (regression R2)."""
    record = MemoryBlobs._record_blobs

    def record_new(self: MemoryBlobs, ticket: Any, scheme: Any, stored: Any) -> int:
        return record(self, ticket, scheme, [b for b in stored if (scheme, b.object_id) not in self.tables.blobs])

    return [mock.patch.object(MemoryBlobs, "_record_blobs", record_new)]


def _is_crowded(plan: Plan) -> bool:
    return plan.clients > plan.repositories and not plan.collectors and not plan.types


def _collects(plan: Plan) -> bool:
    return plan.collectors > 0


MISTAKES = [
    Planted("no fence", frozenset({"I5"}), _no_fence, lambda plan: TALLY in plan.types and "pauses" in plan.faults),
    Planted("no compare-and-swap", frozenset({"I4"}), _no_compare_and_swap, _is_crowded),
    Planted("no lease", frozenset({"I1", "I8"}), _no_lease, _collects),
    Planted("no quota", frozenset({"Q"}), _no_quota, lambda plan: bool(plan.quota)),
    Planted("no parents", frozenset({"I1", "I8"}), _no_parents, lambda plan: plan.clients > 1 and not plan.types),
    Planted("no second look", frozenset({"I1", "I8"}), _no_second_look, _collects),
    Planted("forgotten references", frozenset({"I1", "I8"}), _forgotten_reference, lambda plan: plan.plain > 0),
    Planted("no sync", frozenset({"I1", "I8"}), _no_sync, lambda plan: "power" in plan.faults),
]
