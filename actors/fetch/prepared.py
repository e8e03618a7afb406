"""Full clones that were made ahead: found in one look-up, once it is known that the commits may be had.

A pack belongs to commits, so it is right however branches move. It is given while it has not expired and is in the
store; with use it lives on. The row outlives the expiry (see ``museworkd.keepers``) so that downloads can end.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from actors.fetch.making import FetchAnswer
from storage.environment import Environment
from storage.errors import ObjectMissing
from storage.index import Index
from storage.layout import fetch_pack_key
from storage.object_store import ObjectStore
from storage.prebuilt import WANT_MOST, PrebuiltPack

KEEP_S = 7 * 86_400.0
"""How long a pack is kept that nobody uses; use renews that once half of it is over."""


async def remember(
    index: Index, environment: Environment, repo: int, want: Sequence[bytes], answer: FetchAnswer
) -> None:
    """Let the next clone of these commits find what one has just been made; of branches' heads, which are few."""
    if answer.mpack_id is not None and len(want) <= WANT_MOST:
        if not set(want) <= set((await index.branch_heads(repo)).values()):
            return
        now = environment.now()
        expires = now + dt.timedelta(seconds=KEEP_S)
        sizes = (answer.commit_count, answer.object_count, answer.size_bytes)
        await index.note_prebuilt(repo, PrebuiltPack(tuple(sorted(want)), answer.mpack_id, *sizes, now, expires))


async def prepared_pack(
    index: Index, store: ObjectStore, environment: Environment, repo: int, want: Sequence[bytes]
) -> FetchAnswer | None:
    """Find the pack of a full clone of some commits; whether they may be had is the caller's to know."""
    if len(want) > WANT_MOST:
        return None
    now = environment.now()
    pack = await index.find_prebuilt(repo, want, now)
    if pack is None:
        return None
    answer = FetchAnswer(pack.mpack_id, pack.commits, pack.objects, pack.size)
    if not await is_stored(store, answer):
        await index.drop_prebuilt(repo, pack)
        return None
    keep = dt.timedelta(seconds=KEEP_S)
    if pack.expires - now < keep / 2:
        await index.extend_prebuilt(repo, pack, now + keep)
    return answer


async def is_stored(store: ObjectStore, answer: FetchAnswer) -> bool:
    """Tell whether the pack of an answer is in the store, as long as it should be; an empty answer has none."""
    if answer.mpack_id is None:
        return False
    try:
        return await store.size(fetch_pack_key(answer.mpack_id)) == answer.size_bytes
    except ObjectMissing:
        return False
