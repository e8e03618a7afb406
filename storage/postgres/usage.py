"""What owners' repositories take up, and their quotas.

A push counts what it brings in its own row; its acceptance adds that to its repository. Both are the last things their
transactions lock, in the order push, repository, branch, usage, jobs, quota, so nobody waits for anybody in a circle.
Two pushes that bring the same blob to one repository at the same time both count it.

While a push is under way its owner's quota is looked at without a lock; what cannot be exceeded is decided once more,
under the lock of the quota's row, when it is accepted.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence

from storage.errors import QuotaExceeded
from storage.postgres.arrays import Byteas
from storage.postgres.database import Connection
from storage.rows import ABANDONED_S, QUOTA_NONE, OwnerUsage, PushTicket
from wire.ids import Scheme

_q_count = """
    UPDATE pushes SET bytes = bytes + %(bytes)s WHERE push = %(push)s
    RETURNING (SELECT r.owner FROM repositories r WHERE r.repo = pushes.repo),
              (SELECT q.quota_bytes FROM owner_quotas q
               WHERE q.owner = (SELECT r.owner FROM repositories r WHERE r.repo = pushes.repo)),
              lease_expires
"""
_q_let_go = """
    UPDATE pushes SET lease_expires = lease_expires - %(long)s WHERE push = %(push)s AND attempt = %(attempt)s
        AND state = 0
"""
_q_sizes = """
    SELECT sum(b.size)::bigint FROM unnest(%(ids)b) AS wanted (id)
    CROSS JOIN LATERAL (SELECT size FROM blobs WHERE blob_id = wanted.id AND scheme = %(scheme)s OFFSET 0) AS b
"""
once_it_has_some = "ON CONFLICT (repo) DO UPDATE SET bytes = repository_usage.bytes + excluded.bytes"
"""What ends a statement that begins with :func:`add_to_repository`."""
_q_owner = "SELECT owner FROM repositories WHERE repo = %s"
_q_quota = "SELECT quota_bytes FROM owner_quotas WHERE owner = %s"
_q_lock_quota = """
    INSERT INTO owner_quotas (owner) VALUES (%s) ON CONFLICT (owner) DO UPDATE SET owner = excluded.owner
    RETURNING quota_bytes
"""
"""A default needs a row, too: it is what pushes of one owner wait for."""
_q_set_quota = """
    INSERT INTO owner_quotas (owner, quota_bytes) VALUES (%s, %s)
    ON CONFLICT (owner) DO UPDATE SET quota_bytes = excluded.quota_bytes
"""
# The pair of repository and lease is in one index only: another would give everybody's open pushes.
_q_totals = """
    SELECT coalesce(sum((SELECT u.bytes FROM repository_usage u WHERE u.repo = r.repo)), 0)::bigint,
           coalesce(sum((SELECT sum(p.bytes) FROM pushes p
                         WHERE p.repo = r.repo AND p.state = 0
                               AND (p.repo, p.lease_expires) > (r.repo, %(since)s))), 0)::bigint,
           coalesce(sum((SELECT sum(v.bytes) FROM upload_reservations v
                         WHERE v.repo = r.repo AND v.expires_at > %(now)s
                               AND (v.repo, v.reservation) IS DISTINCT FROM (%(repo)s, %(but)s::bytea))), 0)::bigint
    FROM repositories r WHERE r.owner = %(owner)s AND r.deleted_at IS NULL
"""
_q_reserve = """
    INSERT INTO upload_reservations (repo, reservation, bytes, push_id, expires_at)
    VALUES (%(repo)s, %(but)s, %(bytes)s, %(push_id)s, %(expires)s)
    ON CONFLICT (repo, reservation) DO UPDATE
        SET bytes = greatest(upload_reservations.bytes, excluded.bytes), push_id = excluded.push_id,
            expires_at = greatest(upload_reservations.expires_at, excluded.expires_at)
"""
_q_release = "DELETE FROM upload_reservations WHERE repo = %s AND reservation = %s"
_q_release_expired = "DELETE FROM upload_reservations WHERE repo = %s AND expires_at <= %s"
_q_release_push = """
    DELETE FROM upload_reservations v USING pushes p
    WHERE p.push = %(push)s AND v.repo = %(repo)s AND v.push_id = p.push_id
        AND %(size)s >= (SELECT sum(o.bytes) FROM upload_reservations o
                         WHERE o.repo = %(repo)s AND o.push_id = p.push_id)
"""
"""Of a push that has not brought what was announced for it, the rest may still be uploaded: it expires."""
_ABANDONED = dt.timedelta(seconds=ABANDONED_S)


def add_to_repository(size: str) -> str:
    """Give the beginning of a statement that adds to what a repository takes up."""
    return f"INSERT INTO repository_usage (repo, bytes) SELECT %(repo)s, {size}"


def count(connection: Connection, ticket: PushTicket, size: int, default: int) -> QuotaExceeded | None:
    """Count bytes a push has recorded, and look at the quota; with an error for an answer, all was rolled back.

    Others count as under way by their leases against this push's own, which is never much older than now.
    """
    if not size:
        return None
    owner, own_quota, lease_expires = _count(connection, ticket, size)
    quota = default if own_quota is None else own_quota
    if quota == QUOTA_NONE:
        return None
    used, reserved = _totals(connection, owner, lease_expires)
    if used + reserved <= quota:
        return None
    connection.rollback()
    arguments = {"push": ticket.number, "attempt": ticket.attempt, "long": 2 * _ABANDONED}
    connection.execute(_q_let_go, arguments)
    return QuotaExceeded(used, reserved - size, quota)


def count_claimed(connection: Connection, ticket: PushTicket, scheme: Scheme, object_ids: Sequence[bytes]) -> None:
    """Count stored blobs a push has claimed; they were announced before, so the quota is not looked at."""
    if not object_ids:
        return
    row = connection.execute(_q_sizes, {"ids": Byteas(object_ids), "scheme": scheme.value}).fetchone()
    assert row is not None
    if row[0]:
        _count(connection, ticket, row[0])


def decide(
    connection: Connection, ticket: PushTicket, size: int, now: dt.datetime, default: int, *, owner: str,
    own_quota: int | None,
) -> OwnerUsage | None:  # fmt: skip
    """Look whether a push that was just added to its repository is too much; gives what there is without it if so."""
    if (default if own_quota is None else own_quota) == QUOTA_NONE:
        return None
    own_quota, quota = _locked_quota(connection, owner, default)
    connection.execute(_q_release_push, {"repo": ticket.repo, "push": ticket.number, "size": size})
    used, reserved = _totals(connection, owner, now)
    if quota == QUOTA_NONE or used <= quota:
        return None
    return OwnerUsage(used - size, reserved, quota, own_quota is None)


def owner_usage(connection: Connection, owner: str, now: dt.datetime, default: int = QUOTA_NONE) -> OwnerUsage:
    """See ``Quotas.owner_usage``."""
    row = connection.execute(_q_quota, (owner,)).fetchone()
    own_quota = None if row is None else row[0]
    quota = default if own_quota is None else own_quota
    used, reserved = _totals(connection, owner, now)
    return OwnerUsage(used, reserved, None if quota == QUOTA_NONE else quota, own_quota is None)


def set_quota(connection: Connection, owner: str, quota: int | None) -> None:
    """See ``Quotas.set_quota``."""
    connection.execute(_q_set_quota, (owner, quota))


def reserve_bytes(
    connection: Connection, repo: int, reservation: bytes, size: int, now: dt.datetime, expires: dt.datetime,
    push_id: uuid.UUID | None = None, default: int = QUOTA_NONE,
) -> None:  # fmt: skip
    """See ``Quotas.reserve_bytes``."""
    row = connection.execute(_q_owner, (repo,)).fetchone()
    assert row is not None
    (owner,) = row
    found = connection.execute(_q_quota, (owner,)).fetchone()
    own_quota = None if found is None else found[0]
    if (default if own_quota is None else own_quota) == QUOTA_NONE:
        return
    _, quota = _locked_quota(connection, owner, default)
    connection.execute(_q_release_expired, (repo, now))
    used, reserved = _totals(connection, owner, now, repo, reservation)
    if quota != QUOTA_NONE and used + reserved + size > quota:
        raise QuotaExceeded(used, reserved, quota)
    connection.execute(
        _q_reserve, {"repo": repo, "but": reservation, "bytes": size, "push_id": push_id, "expires": expires}
    )


def release_bytes(connection: Connection, repo: int, reservation: bytes) -> None:
    """See ``Quotas.release_bytes``."""
    connection.execute(_q_release, (repo, reservation))


def _count(connection: Connection, ticket: PushTicket, size: int) -> tuple[str, int | None, dt.datetime]:
    """Give the owner, its own quota and when the push's lease ends."""
    row = connection.execute(_q_count, {"bytes": size, "push": ticket.number}).fetchone()
    assert row is not None
    return row[0], row[1], row[2]


def _locked_quota(connection: Connection, owner: str, default: int) -> tuple[int | None, int]:
    """Wait until no other push of the owner is being accepted; gives its own quota and the one that holds."""
    row = connection.execute(_q_lock_quota, (owner,)).fetchone()
    assert row is not None
    return row[0], default if row[0] is None else row[0]


def _totals(
    connection: Connection, owner: str, now: dt.datetime, repo: int | None = None, but: bytes | None = None
) -> tuple[int, int]:
    """Give what is used and what is on its way, one reservation left out."""
    row = connection.execute(
        _q_totals, {"owner": owner, "now": now, "since": now - _ABANDONED, "repo": repo, "but": but}
    ).fetchone()
    assert row is not None
    used, under_way, announced = row
    return used, under_way + announced
