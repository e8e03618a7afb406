"""Walks over the commit graph of the index, in batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from storage.errors import ObjectDamaged
from wire.graph import CommitFacts, RangeWalk
from wire.ids import Scheme

if TYPE_CHECKING:
    from storage.index import History

ANCESTRY_BATCH = 2_000
"""Ancestors fetched ahead with one query: a linear history of 100,000 commits takes 50."""

ANCESTRY_LEAST = 64


async def range_of(
    index: History,
    scheme: Scheme,
    want: Iterable[bytes],
    have: Iterable[bytes],
    own: Mapping[bytes, CommitFacts] | None = None,
) -> RangeWalk:
    """Walk the commits reachable from ``want`` and not from ``have``; all of them must be in the index or ``own``.

    Args:
        index: where facts come from.
        scheme: the repository's id scheme.
        want: ids to start from.
        have: ids whose history is left out.
        own: facts of commits that are not in the index yet (a push's own).

    Raises:
        ObjectDamaged: the index lacks a commit that another one names as its parent.
    """
    walk = RangeWalk(want, have)
    facts: dict[bytes, CommitFacts] = dict(own or {})
    batch = ANCESTRY_LEAST  # most questions are about the last few commits
    while needed := walk.advance(facts):
        found = await index.ancestry(scheme, needed, batch)
        new = sum(fact.commit_id not in facts for fact in found)
        facts.update((fact.commit_id, fact) for fact in found)
        lost = [commit_id for commit_id in needed if commit_id not in facts]
        if lost:
            raise ObjectDamaged(f"the index lacks commit {lost[0].hex()}, which others build on")
        if new * 4 < len(found):  # a wide region that many commits lead to: look no further than it takes to pass it
            batch = max(batch // 4, ANCESTRY_LEAST)
        else:
            batch = min(batch * 4, ANCESTRY_BATCH)
    return walk


async def is_ancestor(
    index: History, scheme: Scheme, old: bytes, new: bytes, own: Mapping[bytes, CommitFacts] | None = None
) -> bool:
    """Tell whether ``old`` is ``new`` or an ancestor of it: whether a branch may move without force."""
    if old == new or (own and _leads_to(own, new, old)):  # most pushes build on where the branch is
        return True
    walk = await range_of(index, scheme, [old], [new], own)
    return not walk.found


def _leads_to(own: Mapping[bytes, CommitFacts], new: bytes, old: bytes) -> bool:
    """Tell whether ``old`` is reached from ``new`` through a push's own commits alone."""
    seen, waiting = {new}, [new]
    while waiting:
        at = waiting.pop()
        if at == old:
            return True
        fact = own.get(at)
        if fact is not None:
            fresh = [parent for parent in fact.parents if parent not in seen]
            seen.update(fresh)
            waiting += fresh
    return False
