"""Making an answer again after what was found damaged on the way has been mended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from actors.repair.reading import RepairServices
from actors.repair.search import SEARCH_S
from actors.repair.snapshots import mend_snapshots
from storage.errors import ObjectMended, SnapshotDamaged
from wire.ids import Scheme

T = TypeVar("T")
ATTEMPTS = 4
"""At one answer."""


async def until_whole(services: RepairServices, scheme: Scheme, work: Callable[[], Awaitable[T]]) -> T:
    """Do some work, and again when a blob was mended in it or a snapshot could be.

    Raises:
        ObjectDamaged: what it found has no other copy; and whatever it raises otherwise.
    """
    for _ in range(ATTEMPTS - 1):
        try:
            return await work()
        except ObjectMended:
            continue
        except SnapshotDamaged as error:
            mended: set[bytes] = set()
            with trio.move_on_after(SEARCH_S):
                mended = await mend_snapshots(services, scheme, [error.snapshot_id])
            if error.snapshot_id not in mended:
                raise
    return await work()
