"""Branches: moved by compare-and-swap, each move with a line in the log."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from storage.postgres.database import Connection
from storage.rows import BranchMove, MoveResult, Outcome

q_repository = "SELECT scheme FROM repositories WHERE repo = %s AND deleted_at IS NULL FOR SHARE"
"""It cannot be deleted before this transaction ends."""
_q_lock_branch = "SELECT head FROM branches WHERE repo = %s AND name = %s FOR UPDATE"
_q_insert_branch = """
    INSERT INTO branches (repo, name, head, updated_at) VALUES (%s, %s, %s, %s) ON CONFLICT DO NOTHING
"""
_q_move_branch = "UPDATE branches SET head = %s, updated_at = %s WHERE repo = %s AND name = %s AND head = %s"
_q_delete_branch = "DELETE FROM branches WHERE repo = %s AND name = %s AND head = %s"
_q_log = """
    INSERT INTO branch_log (repo, branch, old, new, handle, forced, at) VALUES (%s, %s, %s, %s, %s, %s, %s)
"""


def move_branches(
    connection: Connection, repo: int, moves: Sequence[BranchMove], handle: str, now: dt.datetime
) -> MoveResult:
    """See ``Repositories.move_branches``."""
    if connection.execute(q_repository, (repo,)).fetchone() is None:
        return MoveResult(Outcome.GONE)
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
        done = connection.execute(_q_insert_branch, (repo, move.branch, move.new, now))
    elif move.new is None:
        done = connection.execute(_q_delete_branch, (repo, move.branch, move.old))
    else:
        done = connection.execute(_q_move_branch, (move.new, now, repo, move.branch, move.old))
    if done.rowcount == 1:
        return move.new, True
    row = connection.execute(_q_lock_branch, (repo, move.branch)).fetchone()
    return (None if row is None else bytes(row[0])), False
