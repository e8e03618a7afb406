"""The branches a job keeps lines of, and where a branch's new history leaves its old one."""

from __future__ import annotations

from dataclasses import dataclass

from actors.history import range_of
from actors.jobs.handler import ClaimLost, JobContext
from storage.index import Index
from storage.insights import Line, LineStanding, PathChanges
from storage.rows import Repository
from wire.graph import CommitFacts
from wire.ids import Scheme

BRANCHES_MOST = 100
"""Branches of a repository that lines are kept of: the default one, and others by name."""
FORGOTTEN_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Head:
    """A branch and the commit it is at."""

    branch: str
    fact: CommitFacts


async def heads_of(context: JobContext, repository: Repository) -> tuple[list[Head], int]:
    """Give a repository's branches, the default one first, and how many there are beyond ``BRANCHES_MOST``."""
    index, scheme = context.services.index, repository.scheme
    heads = await index.branch_heads(repository.number)
    if scheme is None or not heads:
        return [], 0
    names = sorted(heads, key=lambda name: (name != repository.default_branch, name))
    found = []
    for name in names[:BRANCHES_MOST]:
        tip = await index.branch_tip(repository.number, name)
        if tip is not None:
            facts = await index.ancestry(scheme, [tip.head], 1)
            found += [Head(name, fact) for fact in facts if fact.commit_id == tip.head]
    return found, max(len(names) - BRANCHES_MOST, 0)


async def forget_others(context: JobContext, keep: list[str]) -> int:
    """Forget lines of branches that are not kept; gives how many rows."""
    job, index, gone = context.job, context.services.index, 0
    while step := await index.forget_lines(job.repo, job.type, keep, FORGOTTEN_AT_ONCE):
        gone += step
        await context.progress("forget", gone)
    return gone


async def write(context: JobContext, line: Line, standing: LineStanding, paths: PathChanges | None = None) -> Line:
    """Write where a line stands; raises ``ClaimLost`` when somebody else works on it."""
    services = context.services
    if not await services.index.write_line(line.ticket, standing, services.environment.now(), paths):
        raise ClaimLost
    return Line(line.ticket, standing)


async def fork_of(index: Index, scheme: Scheme, old: bytes, new: bytes) -> bytes | None:
    """Find the first commit on the line of first parents from ``new`` that ``old`` is or builds on.

    Gives ``None`` for histories that do not meet there.
    """
    walk = await range_of(index, scheme, [new], [old])
    facts = {fact.commit_id: fact for fact in walk.found}
    at = new
    while at in facts:
        parents = facts[at].parents
        if not parents:
            return None
        at = parents[0]
    return at
