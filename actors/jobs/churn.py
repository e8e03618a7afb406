"""How often files were changed by the newest commits of a branch, brought up to date by what enters and leaves.

The window holds the :data:`WINDOW_COMMITS` newest commits that a head reaches, by generation: its own newest part stays
the newest part whatever is added, so a window moves on by looking at new commits and at those it loses. Counted is what
a commit changed against its first parent. Merges are not counted, what they bring was counted where it was made; nor
are commits that change more than :data:`CHANGES_MOST` files: imports and reformattings say nothing about a file. What
a sender says again without a change counts as one; no known client does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from actors.history import is_ancestor, range_of
from actors.jobs.commit_walk import ChangeReader, CommitWalk
from storage.errors import ObjectDamaged
from storage.index import Index
from wire.graph import CommitFacts
from wire.ids import Scheme

WINDOW_COMMITS = 500
CHANGES_MOST = 200


@dataclass(slots=True)
class Churn:
    """The window of one branch."""

    head: bytes | None = None
    commits: list[tuple[int, bytes]] = field(default_factory=list)
    """Generation, negative, and id: in this order, the newest first."""
    counts: Counter[str] = field(default_factory=Counter)
    """File → by how many of them it was changed."""
    bulk: int = 0
    """Commits that changed too much to count."""


class ChurnWindow:
    """Moves the window of a branch."""

    def __init__(self, index: Index, scheme: Scheme, reader: ChangeReader) -> None:
        self._index = index
        self._scheme = scheme
        self._reader = reader
        self._walk = CommitWalk(index, scheme)
        self.read = 0
        """Commits whose changes were read."""

    async def move(self, churn: Churn, head: bytes) -> Churn:
        """Give the window of a new head; ``churn`` is left as it is."""
        if churn.head == head:
            return churn
        if churn.head is not None:
            try:
                moved = await self._moved(churn, churn.head, head)
            except ObjectDamaged:  # the old head may have been collected
                moved = None
            if moved is not None:
                return moved
        return await self._whole(head)

    async def _whole(self, head: bytes) -> Churn:
        walk = CommitWalk(self._index, self._scheme)
        walk.add(head)
        added, facts = {head}, list[CommitFacts]()
        while len(facts) < WINDOW_COMMITS and (fact := await walk.next()) is not None:
            facts.append(fact)
            for parent in fact.parents:
                if parent not in added:
                    added.add(parent)
                    walk.add(parent)
        churn = Churn(head, [(-fact.order, fact.commit_id) for fact in facts])
        await self._count(churn, facts, 1)
        return churn

    async def _moved(self, churn: Churn, old: bytes, head: bytes) -> Churn | None:
        """Let new commits in and the oldest out; ``None`` when the head does not build on the old one."""
        if not await is_ancestor(self._index, self._scheme, old, head):
            return None
        new = (await range_of(self._index, self._scheme, [head], [old])).found
        commits = sorted([*churn.commits, *((-fact.order, fact.commit_id) for fact in new)])
        kept, left = commits[:WINDOW_COMMITS], {commit_id for _, commit_id in commits[WINDOW_COMMITS:]}
        moved = Churn(head, kept, Counter(churn.counts), churn.bulk)
        known = {commit_id for _, commit_id in churn.commits}
        leaving = await self._walk.facts_of(sorted(left & known))
        await self._count(moved, [fact for fact in new if fact.commit_id not in left], 1)
        await self._count(moved, leaving, -1)
        if moved.bulk < 0 or any(count < 0 for count in moved.counts.values()):
            return None  # the rows of a snapshot have been written anew, and say less than they did
        moved.counts = Counter({path: count for path, count in moved.counts.items() if count})
        return moved

    async def _count(self, churn: Churn, facts: Iterable[CommitFacts], sign: int) -> None:
        ordered = sorted(facts, key=lambda fact: fact.order, reverse=True)
        for at, fact in enumerate(ordered):
            if len(fact.parents) > 1:
                continue
            self.read += 1
            following = ordered[at + 1 :]
            changed = await self._changed(fact, following)
            if changed is None:
                churn.bulk += sign
            else:
                for path in changed:
                    churn.counts[path] += sign

    async def _changed(self, fact: CommitFacts, ahead: list[CommitFacts]) -> set[str] | None:
        if not fact.parents:
            files = await self._reader.manifest(fact)
            return set(files.paths()) if len(files) <= CHANGES_MOST else None
        (parent,) = await self._walk.facts_of(fact.parents)
        found = await self._reader.changes(fact, parent, CHANGES_MOST, lambda: ahead)
        return None if found is None else found[1].union(found[0])
