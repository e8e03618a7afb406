"""The life of a push: begin, renew, accept, refuse.

A ticket names one attempt. Every writing function first checks that the attempt is still the newest and open, by
locking the push's row, so a half-open connection that wakes up late cannot add to or finish a push that another
connection has taken over.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from psycopg.types.json import Json

from storage.errors import StaleTicket
from storage.job_rows import NewJob
from storage.postgres.acceptance import accept_current, lock_attempt
from storage.postgres.database import Connection, one_statement
from storage.rows import ABANDONED_S, QUOTA_NONE, BranchMove, MoveResult, Outcome, PushRecord, PushState, PushTicket
from wire.ids import Scheme

_q_begin = """
    INSERT INTO pushes (repo, push_id, handle, branch, attempt, state, lease_expires, created_at, collected)
    VALUES (%(repo)s, %(push_id)s, %(handle)s, %(branch)s, 1, 0, %(expires)s, %(now)s,
            coalesce((SELECT r.collected FROM repositories r WHERE r.repo = %(repo)s), 0))
    ON CONFLICT (repo, push_id) DO UPDATE
        SET attempt = pushes.attempt + 1, lease_expires = excluded.lease_expires, verdict = NULL,
            begun = excluded.begun
        WHERE pushes.state = 0 AND pushes.handle = excluded.handle
    RETURNING push, attempt, collected,
              coalesce((SELECT r.collected FROM repositories r WHERE r.repo = %(repo)s), 0)
"""
_q_forget_snapshots = "DELETE FROM snapshot_refs WHERE repo = %s AND push = %s"
_q_know_of_collection = "UPDATE pushes SET collected = %s WHERE push = %s"
_record_columns = "push_id, handle, branch, state, verdict, created_at, finished_at, lease_expires"
_q_find = f"SELECT {_record_columns} FROM pushes WHERE repo = %s AND push_id = %s"
_q_renew = """
    UPDATE pushes SET lease_expires = %s WHERE push = %s AND attempt = %s AND state = 0 AND lease_expires > %s
"""
_q_lock = "SELECT state, attempt FROM pushes WHERE push = %s FOR UPDATE"
_q_look = "SELECT state, attempt FROM pushes WHERE push = %s FOR KEY SHARE"
"""Nobody can finish the push before this transaction ends; several may write for it at once."""
_q_finish = "UPDATE pushes SET state = %s, verdict = %s, finished_at = %s WHERE push = %s"
_q_interrupt = "UPDATE pushes SET verdict = %s, lease_expires = %s WHERE push = %s"


def begin_push(
    connection: Connection, repo: int, push_id: uuid.UUID, handle: str, branch: str, now: dt.datetime,
    lease_s: float,
) -> PushTicket | PushRecord:  # fmt: skip
    """See ``Pushes.begin_push``."""
    expires = now + dt.timedelta(seconds=lease_s)
    row = connection.execute(
        _q_begin,
        {"repo": repo, "push_id": push_id, "handle": handle, "branch": branch, "expires": expires, "now": now},
    ).fetchone()
    if row is not None:
        number, attempt, knew, collected = row
        if knew != collected:  # what its snapshots were built on may be gone: they are to be recorded anew
            connection.execute(_q_forget_snapshots, (repo, number))
            connection.execute(_q_know_of_collection, (collected, number))
        return PushTicket(number, repo, push_id, attempt)
    found = find_push(connection, repo, push_id)
    assert found is not None
    return found


@one_statement
def find_push(connection: Connection, repo: int, push_id: uuid.UUID) -> PushRecord | None:
    """See ``Pushes.find_push``."""
    row = connection.execute(_q_find, (repo, push_id)).fetchone()
    return None if row is None else _record(row)


def renew_pushes(connection: Connection, tickets: Sequence[PushTicket], now: dt.datetime, lease_s: float) -> None:
    """See ``Pushes.renew_pushes``."""
    expires = now + dt.timedelta(seconds=lease_s)
    given_up = now - dt.timedelta(seconds=ABANDONED_S)  # refused for its owner's quota: the lease was let go
    ordered = sorted(tickets, key=lambda t: t.number)
    with connection.cursor() as cursor:
        cursor.executemany(_q_renew, [(expires, t.number, t.attempt, given_up) for t in ordered])


def accept_push(
    connection: Connection, ticket: PushTicket, scheme: Scheme, move: BranchMove, verdict: Mapping[str, object],
    now: dt.datetime, record_bytes: int = 0, new_jobs: Sequence[NewJob] = (), quota: int = QUOTA_NONE,
) -> MoveResult:  # fmt: skip
    """See ``Pushes.accept_push``; ``quota`` is the deployment's default."""
    attempt = lock_attempt(connection, ticket, scheme)
    if attempt.decided is not None:
        return MoveResult(Outcome.MOVED, move.new) if attempt.decided.outcome is Outcome.MOVED else attempt.decided
    return accept_current(connection, ticket, move, verdict, now, attempt.brought_bytes + record_bytes, new_jobs, quota)


def refuse_push(connection: Connection, ticket: PushTicket, verdict: Mapping[str, object], now: dt.datetime) -> None:
    """See ``Pushes.refuse_push``."""
    if _is_current(connection, ticket, _q_lock):
        connection.execute(_q_finish, (PushState.REFUSED.value, Json(dict(verdict)), now, ticket.number))


def interrupt_push(connection: Connection, ticket: PushTicket, news: Mapping[str, object], now: dt.datetime) -> None:
    """See ``Pushes.interrupt_push``."""
    if _is_current(connection, ticket, _q_lock):
        connection.execute(_q_interrupt, (Json(dict(news)), now, ticket.number))


def require_current(connection: Connection, ticket: PushTicket) -> None:
    """Guard a writing function of a push; raises :class:`StaleTicket`."""
    if not _is_current(connection, ticket, _q_look):
        raise StaleTicket(f"push {ticket.push_id} attempt {ticket.attempt}")


def _is_current(connection: Connection, ticket: PushTicket, query: str) -> bool:
    row = connection.execute(query, (ticket.number,)).fetchone()
    return row == (PushState.OPEN.value, ticket.attempt)


def _record(row: tuple[Any, ...]) -> PushRecord:
    push_id, handle, branch, state, verdict, created_at, finished_at, lease_expires = row
    return PushRecord(push_id, handle, branch, PushState(state), verdict, created_at, finished_at, lease_expires)
