"""Finding out what a server has of our history, when its branches have moved on to commits that are not here.

The server acknowledges the commits it holds, and it holds no commit without its parents. So one that is not
acknowledged rules out everything that builds on it, and a few questions are enough for any history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from actors.history import range_of
from museworkd.client.errors import ClientError, TransferError
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Api
from wire.errors import Refusal
from wire.graph import CommitFacts
from wire.ids import format_id, parse_id

IDS_MOST = 1_000
"""Ids a request."""
REQUESTS_MOST = 10


async def acknowledged(api: Api, repository: LocalRepository, head: bytes, remote_heads: set[bytes]) -> set[bytes]:
    """Give commits of ``head``'s history that the server holds, beyond those its heads tell of.

    Nothing is asked when all of its heads are here. A server that answers with an error is taken to hold no more.

    Raises:
        TransferError: the connection was lost.
    """
    index, scheme = repository.index, repository.scheme
    unknown = sorted(commit_id for commit_id in remote_heads if not index.has_commit(commit_id))
    known = remote_heads - set(unknown)
    held: set[bytes] = set()
    if not unknown:
        return held
    want = [format_id(commit_id, scheme) for commit_id in unknown[:IDS_MOST]]
    asked: set[bytes] = set()
    newest_first = (await range_of(index, scheme, [head], known)).found
    for _ in range(REQUESTS_MOST):
        have = _spread(_undecided(newest_first, held, asked))
        if not have:
            break
        asked.update(have)
        try:
            answer = await api.post("negotiate", {"want": want, "have": [format_id(i, scheme) for i in have]})
            ack = answer.get("ack")
            fresh = {parse_id(i, scheme) for i in ack} & set(have) if isinstance(ack, list) else set()
        except (ClientError, Refusal) as error:
            if isinstance(error, TransferError) and not error.code:
                raise
            break  # a push that knows no better sends everything
        held |= fresh
    return held


def _undecided(newest_first: Sequence[CommitFacts], held: Iterable[bytes], asked: Iterable[bytes]) -> list[bytes]:
    """Give the commits that may be held or not, newest first.

    What a held one builds on is held; what builds on one that was asked for in vain is not.
    """
    there = set(held)
    for fact in newest_first:
        if fact.commit_id in there:
            there.update(fact.parents)
    lacked = set(asked) - there
    for fact in reversed(newest_first):
        if not lacked.isdisjoint(fact.parents):
            lacked.add(fact.commit_id)
    return [fact.commit_id for fact in newest_first if fact.commit_id not in there and fact.commit_id not in lacked]


def _spread(commit_ids: Sequence[bytes]) -> list[bytes]:
    """Choose what to ask for: all, or so many at equal distances, the oldest among them."""
    count = len(commit_ids)
    if count <= IDS_MOST:
        return list(commit_ids)
    return [commit_ids[(number + 1) * count // IDS_MOST - 1] for number in range(IDS_MOST)]
