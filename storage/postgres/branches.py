"""Branches: moved by compare-and-swap, each move with a line in the log."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from storage.postgres.database import Connection
from storage.rows import BranchMove, MoveResult, Outcome

q_repository = "SELECT scheme FROM repositories WHERE repo = %s AND deleted_at IS NULL FOR SHARE"
"""It cannot be deleted before this transaction ends."""
q_lock_branch = "SELECT head FROM branches WHERE repo = %s AND name = %s FOR UPDATE"
insert_branch = """
    INSERT INTO branches (repo, name, head, updated_at) VALUES (%(repo)s, %(branch)s, %(new)s, %(now)s)
    ON CONFLICT DO NOTHING
"""
move_branch = """
    UPDATE branches SET head = %(new)s, updated_at = %(now)s
    WHERE repo = %(repo)s AND name = %(branch)s AND head = %(old)s
"""
_q_is_lost = """
    SELECT 1 FROM repositories y WHERE y.repo = %(repo)s AND y.collected > 0 AND %(commit)s::bytea IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM commit_refs r JOIN pushes p USING (push)
                        WHERE r.repo = %(repo)s AND r.commit_id = %(commit)s AND p.state = 1 OFFSET 0)
"""
"""It was held when the move was judged, and may have been collected since; nobody collects now."""
_q_insert_branch, _q_move_branch = insert_branch, move_branch
_q_delete_branch = "DELETE FROM branches WHERE repo = %(repo)s AND name = %(branch)s AND head = %(old)s"
_q_log = """
    INSERT INTO branch_log (repo, branch, old, new, handle, forced, at) VALUES (%s, %s, %s, %s, %s, %s, %s)
"""


def move_branches(
    connection: Connection, repo: int, moves: Sequence[BranchMove], handle: str, now: dt.datetime
) -> MoveResult:
    """See ``Repositories.move_branches``."""
    if connection.execute(q_repository, (repo,)).fetchone() is None:
        return MoveResult(Outcome.GONE)
    for move in moves:
        if connection.execute(_q_is_lost, {"repo": repo, "commit": move.new}).fetchone() is not None:
            return MoveResult(Outcome.NOT_HELD, None, move.branch)
    for move in sorted(moves, key=lambda one: one.branch):  # in one order: two callers cannot deadlock
        head, moved = swap(connection, repo, move, now)
        if head != move.new:
            connection.rollback()
            return MoveResult(Outcome.HEAD_DIFFERS, head, move.branch)
        if moved and move.old != move.new:
            connection.execute(_q_log, (repo, move.branch, move.old, move.new, handle, move.forced, now))
    return MoveResult(Outcome.MOVED)


def swap(connection: Connection, repo: int, move: BranchMove, now: dt.datetime) -> tuple[bytes | None, bool]:
    """Compare and swap; gives the head the branch has now and whether this call put it there."""
    if move.old is None:
        query = _q_insert_branch
    else:
        query = _q_delete_branch if move.new is None else _q_move_branch
    arguments = {"repo": repo, "branch": move.branch, "old": move.old, "new": move.new, "now": now}
    done = connection.execute(query, arguments)
    if done.rowcount == 1:
        return move.new, True
    row = connection.execute(q_lock_branch, (repo, move.branch)).fetchone()
    return (None if row is None else bytes(row[0])), False
