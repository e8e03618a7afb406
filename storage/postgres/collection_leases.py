"""Leases: who relies on what is stored, besides pushes. They need not survive the death of the database server."""

from __future__ import annotations

import datetime as dt
import uuid

from storage.postgres.database import Connection

_q_not_durable = "SELECT set_config('synchronous_commit', 'off', true)"
_q_take = """
    INSERT INTO leases (lease, repo, expires_at) VALUES (%s, %s, %s)
    ON CONFLICT (lease) DO UPDATE SET expires_at = excluded.expires_at
"""
_q_renew = "UPDATE leases SET expires_at = %s WHERE lease = %s AND expires_at > %s"
_q_end = "DELETE FROM leases WHERE lease = %s"


def take_lease(connection: Connection, lease: uuid.UUID, repo: int, now: dt.datetime, lease_s: float) -> None:
    """See ``Leases.take_lease``."""
    connection.execute(_q_not_durable)
    connection.execute(_q_take, (lease, repo, now + dt.timedelta(seconds=lease_s)))


def renew_lease(connection: Connection, lease: uuid.UUID, now: dt.datetime, lease_s: float) -> bool:
    """See ``Leases.renew_lease``."""
    connection.execute(_q_not_durable)
    return connection.execute(_q_renew, (now + dt.timedelta(seconds=lease_s), lease, now)).rowcount == 1


def end_lease(connection: Connection, lease: uuid.UUID) -> None:
    """See ``Leases.end_lease``."""
    connection.execute(_q_not_durable)
    connection.execute(_q_end, (lease,))
