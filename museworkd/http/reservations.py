"""Announced uploads are counted against the quota of the repository's owner before a byte of them is sent (threat T28).

What is announced again counts once. It counts until what was uploaded cannot be there any more, or until a push has it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Iterable, Mapping

import trio

from actors.push.context import mpack_reservation
from museworkd.http.services import HttpServices
from storage.rows import HELD_S, Repository

KEPT_LIVES = 3
"""Lives of its URL an upload may be kept: it may come at the end of the first, and is removed two later."""
_IN_LOOP_IDS = 2_000


async def reserve_mpack(services: HttpServices, repository: Repository, mpack_id: bytes, size: int) -> None:
    """Reserve room for one file; raises ``QuotaExceeded``."""
    now = services.environment.now()
    await services.index.reserve_bytes(repository.number, mpack_reservation(mpack_id), size, now, now + _kept(services))


async def reserve_objects(
    services: HttpServices, repository: Repository, wanted: Mapping[str, bytes], sizes: Mapping[str, int],
    push_id: uuid.UUID | None,
) -> None:  # fmt: skip
    """Reserve room for the objects of one request, by the texts of their ids; raises ``QuotaExceeded``.

    Verified, they are held longer than the upload was; with a push id that counts, too, until the push is accepted.
    """
    if not wanted:
        return
    now = services.environment.now()
    kept = _kept(services) if push_id is None else max(_kept(services), dt.timedelta(seconds=HELD_S))
    if len(wanted) <= _IN_LOOP_IDS:
        reservation = _name_of(wanted.values())
    else:
        reservation = await trio.to_thread.run_sync(_name_of, list(wanted.values()))
    size = sum(sizes[text] for text in wanted)
    await services.index.reserve_bytes(repository.number, reservation, size, now, now + kept, push_id)


def _name_of(object_ids: Iterable[bytes]) -> bytes:
    return hashlib.sha256(b"".join(sorted(object_ids))).digest()


def _kept(services: HttpServices) -> dt.timedelta:
    return dt.timedelta(seconds=KEPT_LIVES * services.presign_s)
