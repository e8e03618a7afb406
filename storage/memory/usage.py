"""What owners' repositories take up, and their quotas, in dictionaries; see ``storage.postgres.usage``."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Iterable

from storage.errors import QuotaExceeded
from storage.memory.tables import PushEntry, Reservation, Tables
from storage.rows import ABANDONED_S, QUOTA_NONE, OwnerUsage, PushState
from wire.ids import Scheme

_ABANDONED = dt.timedelta(seconds=ABANDONED_S)


def count(tables: Tables, entry: PushEntry, size: int, default: int) -> None:
    """Count bytes a push is about to record; raises :class:`QuotaExceeded`."""
    owner = tables.owners[entry.repo]
    quota = _quota(tables, owner, default)
    entry.size += size
    if size and quota != QUOTA_NONE:
        used, reserved = _totals(tables, owner, entry.lease_expires)
        if used + reserved > quota:
            entry.size -= size
            entry.lease_expires -= 2 * _ABANDONED
            raise QuotaExceeded(used, reserved - size, quota)


def count_claimed(tables: Tables, entry: PushEntry, scheme: Scheme, object_ids: Iterable[bytes]) -> None:
    """Count stored blobs a push has claimed."""
    entry.size += sum(tables.blobs[scheme, object_id].size for object_id in object_ids)


def settle(tables: Tables, entry: PushEntry, size: int, now: dt.datetime, default: int) -> OwnerUsage | None:
    """Add an accepted push to its repository; gives what there is without it, and adds nothing, when it is too much."""
    if not size:
        return None
    owner = tables.owners[entry.repo]
    quota = _quota(tables, owner, default)
    used, reserved = _totals(tables, owner, now, without=entry)
    if quota != QUOTA_NONE:
        if used + size > quota:
            return OwnerUsage(used, reserved, quota, tables.quotas.get(owner) is None)
        own = {key: found.size for key, found in tables.reservations.items() if _is_of(entry, key, found)}
        if size >= sum(own.values()):  # else the rest may still be uploaded
            for key in own:
                del tables.reservations[key]
    tables.usage[entry.repo] += size
    return None


def owner_usage(tables: Tables, owner: str, now: dt.datetime, default: int) -> OwnerUsage:
    """See ``Quotas.owner_usage``."""
    quota = _quota(tables, owner, default)
    used, reserved = _totals(tables, owner, now)
    return OwnerUsage(used, reserved, None if quota == QUOTA_NONE else quota, tables.quotas.get(owner) is None)


def reserve_bytes(
    tables: Tables, repo: int, reservation: bytes, size: int, now: dt.datetime, expires: dt.datetime,
    push_id: uuid.UUID | None, default: int,
) -> None:  # fmt: skip
    """See ``Quotas.reserve_bytes``."""
    owner = tables.owners[repo]
    quota = _quota(tables, owner, default)
    if quota == QUOTA_NONE:
        return
    for key, announced in list(tables.reservations.items()):
        if key[0] == repo and announced.expires <= now:
            del tables.reservations[key]
    used, reserved = _totals(tables, owner, now, but=(repo, reservation))
    if used + reserved + size > quota:
        raise QuotaExceeded(used, reserved, quota)
    before = tables.reservations.get((repo, reservation))
    if before is not None:
        size, expires = max(size, before.size), max(expires, before.expires)
    tables.reservations[repo, reservation] = Reservation(size, push_id, expires)


def _quota(tables: Tables, owner: str, default: int) -> int:
    own = tables.quotas.get(owner)
    return default if own is None else own


def _is_of(entry: PushEntry | None, key: tuple[int, bytes], reservation: Reservation) -> bool:
    return entry is not None and (key[0], reservation.push_id) == (entry.repo, entry.record.push_id)


def _totals(
    tables: Tables, owner: str, now: dt.datetime, but: tuple[int, bytes] | None = None,
    without: PushEntry | None = None,
) -> tuple[int, int]:  # fmt: skip
    repos = {repository.number for repository in tables.repositories.values() if repository.owner == owner}
    used = sum(tables.usage[repo] for repo in repos)
    under_way = sum(
        push.size
        for push in tables.pushes.values()
        if push.repo in repos
        and push.record.state is PushState.OPEN
        and push is not without
        and push.lease_expires > now - _ABANDONED
    )
    announced = sum(
        reservation.size
        for key, reservation in tables.reservations.items()
        if key[0] in repos and reservation.expires > now and key != but and not _is_of(without, key, reservation)
    )
    return used, under_way + announced
