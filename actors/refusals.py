"""What a client is told when something below fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from actors.supervisor import Draining
from storage.errors import (
    IndexUnavailable,
    LeaseLost,
    ObjectDamaged,
    ObjectMended,
    ObjectMissing,
    QuotaExceeded,
    StaleTicket,
    StoreFull,
    StoreUnavailable,
    Tombstoned,
)
from wire.errors import Code, Refusal

_LOCAL_TROUBLE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
"""Of the disk a push or a fetch is spooled on, or of the system: nothing is wrong with what the client sent."""


def refusal_for(error: BaseException) -> Refusal | None:
    """Give the refusal that stands for an error or a group of them; ``None`` when it is a bug of ours.

    When several tasks of one nursery failed, the client's own mistake is told before anything that may only have
    followed from it.
    """
    leaves = list(leaves_of(error))
    for leaf in leaves:
        if isinstance(leaf, Refusal):
            return leaf
    for leaf in leaves:
        found = _infrastructure(leaf)
        if found is not None:
            return found
    return None


def quota_refusal(used: int, reserved: int, quota: int | None) -> Refusal:
    """Say that an owner may not store as much; all in bytes."""
    detail = f"{used} bytes are stored and {reserved} on their way, and with this it would be more than the quota"
    return Refusal(Code.QUOTA_EXCEEDED, f"{detail} of {quota}", used=used, reserved=reserved, quota=quota)


def _infrastructure(error: BaseException) -> Refusal | None:
    match error:
        case StaleTicket():
            return Refusal(Code.PUSH_SUPERSEDED, "another connection has taken this push over, or it has its verdict")
        case Tombstoned():
            return Refusal(Code.BUSY, "an object of this push is being collected at the moment: send it again")
        case LeaseLost():
            return Refusal(Code.BUSY, "it took too long, and what it relied on may have been collected: try again")
        case QuotaExceeded():
            return quota_refusal(error.used, error.reserved, error.quota)
        case Draining():
            return Refusal(Code.DRAINING, "the server is shutting down and takes no new work")
        case StoreFull():
            return Refusal(Code.STORE_UNAVAILABLE, "the object store has no room left")
        case StoreUnavailable():
            return Refusal(Code.STORE_UNAVAILABLE, "the object store does not answer at the moment")
        case ObjectMended():
            return Refusal(Code.BUSY, f"ask again: {str(error)[:200]}")
        case ObjectMissing() | ObjectDamaged():
            return Refusal(Code.STORE_DAMAGED, f"stored data is missing or damaged: {str(error)[:200]}")
        case OSError() if error.errno in _LOCAL_TROUBLE:
            return Refusal(Code.STORE_UNAVAILABLE, f"the server has no room to work: {os.strerror(error.errno or 0)}")
        case IndexUnavailable():
            return Refusal(Code.INDEX_UNAVAILABLE, "the database does not answer at the moment")
        case _:
            return None


def leaves_of(error: BaseException) -> Iterator[BaseException]:
    """Give the errors of a group and of the groups in it; an error by itself is its own."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves_of(inner)
    else:
        yield error
