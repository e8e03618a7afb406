"""Blobs a repository holds and no branch leads to any more: until they are collected, nobody reads them by their ids.

Most repositories have none, and one question to the index tells. Otherwise the blobs that only abandoned commits have
are found once for a state of the branches, and kept; when branches move on, what they reach anew is taken out.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

import trio

from actors.fetch.contents import by_pieces
from actors.history import range_of
from actors.manifests import ManifestCache
from storage.errors import ObjectDamaged
from storage.index import Index
from storage.rows import Repository
from storage.snapshots import are_sound, unpack_changes
from wire.graph import CommitFacts
from wire.ids import Scheme
from wire.limits import Limits

ABANDONED_MOST = 10_000
"""Places branches have been moved away from since the last sweep; with more, each question is answered by itself."""
KEPT = 64
KEPT_BLOBS = 500_000
"""Of all repositories together."""
_BATCH = 200
_LOOKUP_BATCH = 2_000


@dataclass(frozen=True, slots=True)
class _State:
    tips: frozenset[bytes]
    left: frozenset[bytes]
    blobs: frozenset[bytes]


@dataclass(slots=True)
class Unreachable:
    """What one daemon knows of blobs that are held in vain."""

    _states: OrderedDict[int, _State] = field(default_factory=OrderedDict)
    _turns: WeakValueDictionary[int, trio.Lock] = field(default_factory=WeakValueDictionary)

    async def among(
        self, index: Index, repository: Repository, scheme: Scheme, blobs: Collection[bytes], limits: Limits
    ) -> set[bytes]:
        """Give those of some blobs a repository holds that none of its branches leads to.

        Raises:
            ObjectDamaged: the index is not whole.
        """
        left = frozenset(await index.left_behind(repository.number, ABANDONED_MOST))
        if not left or not blobs:
            return set()
        if len(left) >= ABANDONED_MOST:
            tips = frozenset((await index.branch_heads(repository.number)).values())
            return await _without(index, scheme, set(blobs), await _history(index, scheme, tips), limits)
        async with self._turns.setdefault(repository.number, trio.Lock()):
            tips = frozenset((await index.branch_heads(repository.number)).values())
            known = self._states.get(repository.number)
            if known is None or (known.tips, known.left) != (tips, left):
                found = await _found(index, repository.number, scheme, tips, left, known, limits)
                known = _State(tips, left, frozenset(found))
                self._keep(repository.number, known)
        return set(known.blobs.intersection(blobs))

    def _keep(self, repo: int, state: _State) -> None:
        self._states[repo] = state
        self._states.move_to_end(repo)
        while len(self._states) > KEPT or sum(len(one.blobs) for one in self._states.values()) > KEPT_BLOBS:
            self._states.popitem(last=False)


async def _found(
    index: Index, repo: int, scheme: Scheme, tips: frozenset[bytes], left: frozenset[bytes], known: _State | None,
    limits: Limits,
) -> set[bytes]:  # fmt: skip
    if known is not None and known.left == left:  # branches have only moved on
        new = await _history(index, scheme, tips, known.tips) if known.blobs else []
        return await _without(index, scheme, set(known.blobs), new, limits)
    suspects: set[bytes] = set()
    abandoned = await _history(index, scheme, await _held(index, repo, left), tips)
    async with aclosing(tree_blobs(index, scheme, abandoned, limits)) as trees:
        async for blobs in trees:
            suspects |= blobs
    return await _without(index, scheme, suspects, await _history(index, scheme, tips) if suspects else [], limits)


async def _history(
    index: Index, scheme: Scheme, want: Collection[bytes], have: Collection[bytes] = ()
) -> Sequence[CommitFacts]:
    return (await range_of(index, scheme, want, have)).found


async def _without(
    index: Index, scheme: Scheme, suspects: set[bytes], reached: Sequence[CommitFacts], limits: Limits
) -> set[bytes]:
    """Take out what some commits have."""
    async with aclosing(tree_blobs(index, scheme, reached, limits)) as trees:
        async for blobs in trees:
            suspects -= blobs
            if not suspects:
                break
    return suspects


async def _held(index: Index, repo: int, commit_ids: Collection[bytes]) -> list[bytes]:
    """Give those that have not been collected."""
    wanted, held = list(commit_ids), list[bytes]()
    for start in range(0, len(wanted), _LOOKUP_BATCH):
        held += await index.held_commits(repo, wanted[start : start + _LOOKUP_BATCH])
    return held


async def tree_blobs(
    index: Index, scheme: Scheme, newest_first: Sequence[CommitFacts], limits: Limits
) -> AsyncGenerator[set[bytes], None]:
    """Give the blobs of some commits, snapshot by snapshot; together they are all of them.

    Of a snapshot that is stored as changes to another one of theirs the changes are enough.
    """
    snapshot_ids = list(dict.fromkeys(fact.snapshot_id for fact in newest_first))
    given = set(snapshot_ids)
    cache = ManifestCache(index, scheme, None, limits)
    for start in range(0, len(snapshot_ids), _BATCH):
        part = snapshot_ids[start : start + _BATCH]
        async with aclosing(by_pieces(part, lambda ids: index.snapshot_deltas(scheme, ids))) as pieces:
            async for ids, rows in pieces:
                for snapshot_id in ids:
                    row = rows.get(snapshot_id)
                    if row is None:
                        raise ObjectDamaged(f"the index lacks snapshot {snapshot_id.hex()}")
                    if (row.base_id is None or row.base_id in given) and are_sound(row.delta):
                        yield await trio.to_thread.run_sync(_added, row.delta)
                    else:
                        manifest = await cache.get(snapshot_id)
                        yield await trio.to_thread.run_sync(set, manifest.blobs())


def _added(delta: bytes) -> set[bytes]:
    return set(unpack_changes(delta).upsert.values())
