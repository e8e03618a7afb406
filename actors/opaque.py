"""Between the ids of very old tools, as they travel, and the stand-ins they are kept under (``wire.opaque``).

Only repositories that have ever been set to take opaque ids are concerned: for all others nothing is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from storage.errors import IndexUnavailable
from storage.index import History
from storage.rows import Repository, Verify
from wire.canonical import parse_canonical
from wire.errors import Refusal, malformed
from wire.ids import Scheme
from wire.opaque import opaque_id, opaque_ids_in

LOOKUP_BATCH = 2_000
_NESTING = 8


def takes_opaque(repository: Repository) -> bool:
    """Tell whether records of a repository may have ids that are not their hashes."""
    settings = repository.settings
    ever = settings.opaque_ids or settings.verify == Verify.PLAIN_LENIENT
    return ever and repository.scheme is not Scheme.TYPED


async def kept_commit_ids(index: History, repository: Repository, named: Sequence[bytes]) -> list[bytes]:
    """Give the ids that commits are kept under which are named as their sender did; unknown ones stay as they are."""
    if not takes_opaque(repository):
        return list(named)
    stand_ins = {commit_id: opaque_id(repository.repo_id, commit_id) for commit_id in named}
    held = await held_of(index, repository, stand_ins.values())
    return [stand_in if (stand_in := stand_ins[commit_id]) in held else commit_id for commit_id in named]


async def held_of(index: History, repository: Repository, commit_ids: Iterable[bytes]) -> set[bytes]:
    """Give those of some commits that a repository holds."""
    wanted, held = list(dict.fromkeys(commit_ids)), set[bytes]()
    for start in range(0, len(wanted), LOOKUP_BATCH):
        held.update(await index.held_commits(repository.number, wanted[start : start + LOOKUP_BATCH]))
    return held


async def shown_refusal(index: History, repository: Repository, refusal: Refusal) -> Refusal:
    """Give a refusal that names commits as they were sent."""
    if not takes_opaque(repository):
        return refusal
    told = dict(await verdict_as_sent(index, repository, {"detail": refusal.detail, **refusal.facts}))
    detail = str(told.pop("detail"))
    return Refusal(refusal.code, detail, **told)


async def as_sent(index: History, repository: Repository, members: Mapping[str, object]) -> dict[str, object]:
    """Give an answer with every commit named as it was sent, wherever in it that is."""
    if not takes_opaque(repository):
        return dict(members)
    found = {commit_id for text in _texts(members, _NESTING) for commit_id in opaque_ids_in(text)}
    claimed: dict[str, str] = {}
    ordered = sorted(found)
    while ordered:
        records = await index.commit_records(repository.number, ordered[:LOOKUP_BATCH])
        for commit_id, record in records.items():
            claimed[commit_id.hex()] = str(parse_canonical(record)[1].get("commit_id"))
        rest = [commit_id for commit_id in ordered[:LOOKUP_BATCH] if commit_id not in records]
        ordered = (rest if records else []) + ordered[LOOKUP_BATCH:]
    replaced = _replaced(members, claimed, _NESTING)
    assert isinstance(replaced, dict)
    return replaced


async def verdict_as_sent(
    index: History, repository: Repository, members: Mapping[str, object]
) -> Mapping[str, object]:
    """Give a verdict like :func:`as_sent`; it stands and is told, also when the index cannot be asked just then."""
    try:
        return await as_sent(index, repository, members)
    except IndexUnavailable:
        return members


def refuse_opaque(repository: Repository) -> None:
    """Refuse a way to fetch whose clients recompute every id, where there are ids that cannot be."""
    if takes_opaque(repository):
        raise malformed(
            "this repository takes records of very old tools, whose ids are not their hashes: a client that recomputes "
            "ids cannot have them; one of version 0.1 can, by POST fetch"
        )


def _texts(value: object, depth: int) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item, depth - 1)
    elif depth and isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, depth - 1)


def _replaced(value: object, claimed: Mapping[str, str], depth: int) -> object:
    if isinstance(value, str):
        for commit_id in opaque_ids_in(value):
            value = value.replace(commit_id.hex(), claimed.get(commit_id.hex(), commit_id.hex()))
        return value
    if depth and isinstance(value, Mapping):
        return {key: _replaced(item, claimed, depth - 1) for key, item in value.items()}
    if depth and isinstance(value, list | tuple):
        return [_replaced(item, claimed, depth - 1) for item in value]
    return value
