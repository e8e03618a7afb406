"""Walking commit histories without I/O: which commits are in ``want`` and not in ``have``.

The walk asks for facts, is given them (both with :meth:`RangeWalk.advance`) in whatever batches the caller can
fetch, and paints commits from the highest order down. ``order`` is any number that is larger
for a commit than for its parents: the server's generation number, a client's insertion number. Since all
children of a commit are painted before it, one look at each commit settles it, and the walk stops as soon as
only common history is left.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_WANT = 1
_HAVE = 2
_BOTH = _WANT | _HAVE


@dataclass(frozen=True, slots=True)
class CommitFacts:
    """What a walk needs to know of a commit."""

    commit_id: bytes
    parents: tuple[bytes, ...]
    snapshot_id: bytes
    order: int
    """Larger than every parent's; the generation number on the server (1 for a root)."""


class RangeWalk:
    """Find the commits reachable from ``want`` and not from ``have``; every id given must exist."""

    def __init__(self, want: Iterable[bytes], have: Iterable[bytes] = ()) -> None:
        self._paint: dict[bytes, int] = {}
        self._facts: dict[bytes, CommitFacts] = {}
        self._heap: list[tuple[int, bytes]] = []
        self._unknown: dict[bytes, None] = {}
        self._open_wants = 0
        self.found: list[CommitFacts] = []
        """Commits of the range, children before parents, complete when :meth:`advance` gives nothing."""
        for commit_id in want:
            self._mark(commit_id, _WANT)
        for commit_id in have:
            self._mark(commit_id, _HAVE)

    def advance(self, facts: Mapping[bytes, CommitFacts]) -> list[bytes]:
        """Walk as far as ``facts`` reach; give the ids whose facts are needed next, or ``[]`` when done."""
        while self._open_wants:
            for commit_id in [i for i in self._unknown if i in facts]:
                fact = self._facts[commit_id] = facts[commit_id]
                heapq.heappush(self._heap, (-fact.order, commit_id))
                del self._unknown[commit_id]
            if self._unknown:
                return list(self._unknown)
            self._settle_next()
        return []

    def boundary(self) -> set[bytes]:
        """Give the parents of found commits that are not found themselves: where common history begins."""
        inside = {fact.commit_id for fact in self.found}
        return {parent for fact in self.found for parent in fact.parents} - inside

    def _settle_next(self) -> None:
        _, commit_id = heapq.heappop(self._heap)
        fact = self._facts.pop(commit_id)
        paint = self._paint[commit_id]
        if paint == _WANT:
            self._open_wants -= 1
            self.found.append(fact)
        for parent in fact.parents:
            self._mark(parent, _WANT if paint == _WANT else _HAVE)

    def _mark(self, commit_id: bytes, flag: int) -> None:
        before = self._paint.get(commit_id, 0)
        after = self._paint[commit_id] = before | flag
        if not before:
            self._unknown[commit_id] = None
            self._open_wants += after == _WANT
        elif before == _WANT and after == _BOTH:
            self._open_wants -= 1
