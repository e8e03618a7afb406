"""Whether a push is accepted: is its attempt the current one, may its branch move, is there room for it.

These are the last steps of the transaction that holds the most locks, beside many others of its kind, and the thread
that runs them waits for the interpreter after each statement. So there are few: one that locks and looks, one that
writes. Within a statement locks are taken in the order of the transaction: each part asks for what the one before it
gave.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg.types.json import Json

from storage.job_rows import NewJob
from storage.postgres import jobs, usage
from storage.postgres.branches import insert_branch, move_branch, q_lock_branch, q_repository
from storage.postgres.database import Connection
from storage.postgres.schemes import is_of_scheme
from storage.rows import BranchMove, MoveResult, Outcome, PushState, PushTicket
from wire.ids import Scheme

_q_lock = f"""
    WITH attempted AS MATERIALIZED (
        SELECT state, attempt, bytes, verdict, collected FROM pushes WHERE push = %(push)s FOR UPDATE
    ), settled AS MATERIALIZED (
        SELECT scheme, collected FROM repositories
        WHERE repo = %(repo)s AND deleted_at IS NULL AND scheme IS NOT NULL AND EXISTS (
            SELECT 1 FROM attempted WHERE state = {PushState.OPEN.value} AND attempt = %(attempt)s)
        FOR SHARE
    )
    SELECT attempted.*, settled.* FROM attempted LEFT JOIN settled ON true
"""
"""The push is locked from the start: two attempts that both hold a share of its row could not both get it alone."""
_q_fix_scheme = """
    UPDATE repositories SET scheme = %s WHERE repo = %s AND scheme IS NULL AND deleted_at IS NULL RETURNING scheme
"""
_branch_there = """
    SELECT 1 FROM branches WHERE repo = %(repo)s AND name = %(branch)s AND head = %(new)s FOR UPDATE
"""


def accepted(size: str) -> str:
    """Give the parts of a statement that accept a push whose branch was ``swapped``; ``size`` is all it has brought."""
    return f"""
    logged AS (
        INSERT INTO branch_log (repo, branch, old, new, handle, push, forced, at)
        SELECT %(repo)s, %(branch)s, %(old)s, %(new)s, handle, push, %(forced)s, %(now)s
        FROM pushes WHERE push = %(push)s AND %(is_change)s AND EXISTS (SELECT 1 FROM swapped)
    ), finished AS (
        UPDATE pushes SET state = {PushState.ACCEPTED.value}, verdict = %(verdict)s, finished_at = %(now)s,
                          record_pack = %(record_pack)s
        WHERE push = %(push)s AND EXISTS (SELECT 1 FROM swapped)
    ), settled AS (
        {usage.add_to_repository(size)} WHERE {size} > 0 AND EXISTS (SELECT 1 FROM swapped) {usage.once_it_has_some}
        RETURNING 1
    ), {jobs.queued("(SELECT count(*) FROM settled) >= 0 AND EXISTS (SELECT 1 FROM swapped)")}
    """


_result = """
    SELECT (SELECT 1 FROM swapped), r.owner, (SELECT quota_bytes FROM owner_quotas q WHERE q.owner = r.owner),
           CASE WHEN %(wakes)s THEN pg_notify(%(channel)s, '') END
    FROM repositories r WHERE r.repo = %(repo)s
"""
_accept = f", {accepted('%(bytes)s')} {_result}"
_q_accept_new = f"WITH swapped AS ({insert_branch} RETURNING 1) {_accept}"
_q_accept_moved = f"WITH swapped AS ({move_branch} RETURNING 1) {_accept}"
_q_accept_there = f"WITH swapped AS MATERIALIZED ({_branch_there}) {_accept}"


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a push is found as when its row has been locked; ``decided`` when there is nothing left to do."""

    decided: MoveResult | None
    brought_bytes: int = 0


def lock_attempt(connection: Connection, ticket: PushTicket, scheme: Scheme) -> Attempt:
    """Lock a push that is to be accepted and its repository, whose scheme the first push fixes."""
    arguments = {"push": ticket.number, "repo": ticket.repo, "attempt": ticket.attempt}
    row = connection.execute(_q_lock, arguments).fetchone()
    if row is None:
        return Attempt(MoveResult(Outcome.SUPERSEDED))
    state, attempt, brought, verdict, knew, found, collected = row
    if (state, attempt) == (PushState.ACCEPTED.value, ticket.attempt):  # by a call like this one, its answer lost
        return Attempt(MoveResult(Outcome.MOVED, verdict=verdict))
    if (state, attempt) != (PushState.OPEN.value, ticket.attempt):
        return Attempt(MoveResult(Outcome.SUPERSEDED))
    if found is None:  # its scheme is not fixed yet, or it is not there
        if ticket.attempt > 1 and not is_of_scheme(connection, ticket, scheme):
            return Attempt(MoveResult(Outcome.SCHEME_DIFFERS))
        found = _fix_scheme(connection, ticket.repo, scheme)
    if found is None:
        return Attempt(MoveResult(Outcome.GONE))
    if found != scheme.value:
        return Attempt(MoveResult(Outcome.SCHEME_DIFFERS))
    if collected not in {None, knew}:  # nothing was collected from a repository without an accepted push
        return Attempt(MoveResult(Outcome.COLLECTED))
    return Attempt(None, brought)


def accept_current(
    connection: Connection, ticket: PushTicket, move: BranchMove, verdict: Mapping[str, object], now: dt.datetime,
    size: int, new_jobs: Sequence[NewJob], quota: int, record_pack: bytes | None = None,
) -> MoveResult:  # fmt: skip
    """Accept a push that :func:`lock_attempt` has found to be current; ``size`` is all it has brought.

    Unless its branch is moved, everything is rolled back.
    """
    arguments = {
        "repo": ticket.repo, "push": ticket.number, "branch": move.branch, "old": move.old, "new": move.new,
        "forced": move.forced, "is_change": move.old != move.new, "now": now, "bytes": size, "record_pack": record_pack,
        "verdict": Json(dict(verdict)), **jobs.job_arguments(new_jobs),
    }  # fmt: skip
    done = connection.execute(_q_accept_new if move.old is None else _q_accept_moved, arguments).fetchone()
    assert done is not None
    if done[0] is None:
        row = connection.execute(q_lock_branch, (ticket.repo, move.branch)).fetchone()
        head = None if row is None else bytes(row[0])
        if head != move.new:
            connection.rollback()  # nothing of this attempt may stay
            return MoveResult(Outcome.HEAD_DIFFERS, head)
        done = connection.execute(_q_accept_there, {**arguments, "is_change": False}).fetchone()
        assert done is not None
    if size:
        too_much = usage.decide(connection, ticket, size, now, quota, owner=done[1], own_quota=done[2])
        if too_much is not None:
            connection.rollback()
            return MoveResult(Outcome.QUOTA_EXCEEDED, head=None, usage=too_much)
    return MoveResult(Outcome.MOVED, move.new)


def _fix_scheme(connection: Connection, repo: int, scheme: Scheme) -> str | None:
    """Give the scheme a repository has from now on; ``None``: it is not there."""
    # no lock before: first pushes would deadlock
    row = connection.execute(_q_fix_scheme, (scheme.value, repo)).fetchone()
    row = row or connection.execute(q_repository, (repo,)).fetchone()
    return None if row is None else row[0]
