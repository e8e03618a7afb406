"""What a fetch sends: the commits of want that are not in have, and where their snapshots begin.

Only reachable ids can be wanted: a commit that no branch of the repository leads to is unknown here, whoever holds
its bytes (regressions R3, R4).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from actors.history import range_of
from wire.errors import Code, Refusal
from wire.graph import CommitFacts
from wire.ids import Scheme, format_id

if TYPE_CHECKING:  # a client reads its own history by this, and has no use for a server's index
    from storage.index import Index
    from storage.rows import Repository

_LOOKUP_BATCH = 2_000


@dataclass(frozen=True, slots=True)
class FetchPlan:
    """The commits to send and what the client has of their history."""

    commits: tuple[CommitFacts, ...]
    """Parents before children."""
    boundary: tuple[CommitFacts, ...]
    """Parents of those that the client has already."""
    shallow: tuple[bytes, ...]
    """Sent commits whose parents are cut off by ``depth``."""


async def plan_fetch(
    index: Index, repository: Repository, want: Sequence[bytes], have: Sequence[bytes], depth: int | None
) -> FetchPlan:
    """Plan a fetch.

    Raises:
        Refusal: ``not_found`` for a wanted commit that no branch leads to.
    """
    scheme = repository.scheme
    if scheme is None:
        raise _unknown(want[0], Scheme.TYPED)
    await require_reachable(index, repository, scheme, want)
    held: dict[bytes, int] = {}
    for start in range(0, len(have), _LOOKUP_BATCH):
        held.update(await index.held_commits(repository.number, have[start : start + _LOOKUP_BATCH]))
    walk = await range_of(index, scheme, want, held)
    found = {fact.commit_id: fact for fact in walk.found}
    if depth is not None:
        found = _newest(found, want, depth)
    commits = tuple(reversed([fact for fact in walk.found if fact.commit_id in found]))
    outside = walk.boundary()
    shallow = tuple(
        fact.commit_id for fact in commits if any(p not in found and p not in outside for p in fact.parents)
    )
    parents = {parent for fact in commits for parent in fact.parents}
    boundary = [commit_id for commit_id in outside if commit_id in parents]
    facts: list[CommitFacts] = []
    for start in range(0, len(boundary), _LOOKUP_BATCH):
        facts += await index.ancestry(scheme, boundary[start : start + _LOOKUP_BATCH], 0)
    return FetchPlan(commits, tuple(facts), shallow)


async def require_reachable(index: Index, repository: Repository, scheme: Scheme, want: Sequence[bytes]) -> None:
    """Refuse ids that are not on a branch of the repository (``not_found``)."""
    heads = set((await index.branch_heads(repository.number)).values())
    deeper = [commit_id for commit_id in want if commit_id not in heads]
    if not deeper:
        return
    held = await index.held_commits(repository.number, deeper)
    for commit_id in deeper:
        if commit_id not in held:
            raise _unknown(commit_id, scheme)
    hidden = await range_of(index, scheme, deeper, heads)
    if hidden.found:
        unreachable = {fact.commit_id for fact in hidden.found}
        raise _unknown(next(commit_id for commit_id in deeper if commit_id in unreachable), scheme)


def _newest(found: Mapping[bytes, CommitFacts], want: Sequence[bytes], depth: int) -> dict[bytes, CommitFacts]:
    """Keep the newest ``depth`` commits of each wanted one."""
    kept: dict[bytes, CommitFacts] = {}
    for tip in want:
        heap = [(-found[tip].order, tip)] if tip in found else []
        seen = {tip}
        taken = 0
        while heap and taken < depth:
            _, commit_id = heapq.heappop(heap)
            kept[commit_id] = found[commit_id]
            taken += 1
            for parent in found[commit_id].parents:
                if parent in found and parent not in seen:
                    seen.add(parent)
                    heapq.heappush(heap, (-found[parent].order, parent))
    return kept


def _unknown(commit_id: bytes, scheme: Scheme) -> Refusal:
    return Refusal(Code.NOT_FOUND, f"no branch of this repository leads to commit {format_id(commit_id, scheme)}")
