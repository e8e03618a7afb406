"""Lines: what is known of branches, and the last commits of their files."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from psycopg.types.json import Json

from storage.insights import LastCommits, Line, LineStanding, LineTicket, PathChanges, path_id
from storage.postgres.arrays import Byteas
from storage.postgres.database import Connection, one_statement

_standing_columns = "commit_id, target, done_path, state, report"
_q_begin = f"""
    INSERT INTO insight_lines (repo, type, branch, epoch, updated_at) VALUES (%s, %s, %s, 1, %s)
    ON CONFLICT (repo, type, branch) DO UPDATE SET epoch = insight_lines.epoch + 1
    RETURNING line, epoch, {_standing_columns}
"""
_q_find_line = f"""
    SELECT line, epoch, {_standing_columns} FROM insight_lines WHERE repo = %s AND type = %s AND branch = %s
"""
_q_write_line = """
    UPDATE insight_lines
    SET commit_id = %(commit)s, target = %(target)s, done_path = %(done)s, state = %(state)s, report = %(report)s,
        updated_at = %(now)s
    WHERE line = %(line)s AND epoch = %(epoch)s
"""
_q_is_current = "SELECT 1 FROM insight_lines WHERE line = %s AND epoch = %s FOR SHARE"
_q_set_paths = """
    INSERT INTO file_last_commits (line, path_hash, commit_id)
    SELECT %(line)s, new.path, new.commit FROM unnest(%(paths)b, %(commits)b) AS new (path, commit)
    ON CONFLICT (line, path_hash) DO UPDATE SET commit_id = excluded.commit_id
    WHERE file_last_commits.commit_id <> excluded.commit_id
"""
_q_remove_paths = """
    DELETE FROM file_last_commits
    WHERE line = %(line)s AND path_hash = ANY (%(paths)b)
"""
# The first ones in order, up to the last of them: one range of the key.
_q_clear_paths = """
    DELETE FROM file_last_commits
    WHERE line = %(line)s AND path_hash <= (
        SELECT max(path_hash) FROM (
            SELECT path_hash FROM file_last_commits WHERE line = %(line)s ORDER BY path_hash LIMIT %(most)s
        ) AS first
    )
"""
_q_copy_paths = """
    WITH copied AS (
        INSERT INTO file_last_commits (line, path_hash, commit_id)
        SELECT %(line)s, path_hash, commit_id FROM file_last_commits
        WHERE line = %(source)s AND path_hash > %(after)b ORDER BY path_hash LIMIT %(most)s
        ON CONFLICT (line, path_hash) DO UPDATE SET commit_id = excluded.commit_id
        RETURNING path_hash
    )
    SELECT path_hash FROM copied ORDER BY path_hash DESC LIMIT 1
"""
_q_last_commits = """
    SELECT f.path_hash, f.commit_id FROM unnest(%(paths)b) AS wanted (id)
    CROSS JOIN LATERAL (
        SELECT path_hash, commit_id FROM file_last_commits WHERE line = %(line)s AND path_hash = wanted.id OFFSET 0
    ) AS f
"""
_q_forgotten_line = """
    SELECT line FROM insight_lines WHERE repo = %s AND type = %s AND branch <> ALL (%s) ORDER BY branch LIMIT 1
    FOR UPDATE
"""
_q_deleted_line = """
    SELECT line FROM insight_lines l
    WHERE NOT EXISTS (SELECT 1 FROM repositories r WHERE r.repo = l.repo AND r.deleted_at IS NULL)
    ORDER BY line LIMIT 1 FOR UPDATE
"""
_q_forget_line = "DELETE FROM insight_lines WHERE line = %s"


@one_statement
def begin_line(connection: Connection, repo: int, type_: str, branch: str, now: dt.datetime) -> Line:
    """See ``Insights.begin_line``."""
    row = connection.execute(_q_begin, (repo, type_, branch, now)).fetchone()
    assert row is not None
    return _line_of(row)


@one_statement
def find_line(connection: Connection, repo: int, type_: str, branch: str) -> Line | None:
    """See ``Insights.find_line``."""
    row = connection.execute(_q_find_line, (repo, type_, branch)).fetchone()
    return None if row is None else _line_of(row)


def write_line(
    connection: Connection,
    ticket: LineTicket,
    standing: LineStanding,
    now: dt.datetime,
    paths: PathChanges | None = None,
) -> bool:
    """See ``Insights.write_line``."""
    arguments = {
        "line": ticket.line,
        "epoch": ticket.epoch,
        "commit": standing.commit_id,
        "target": standing.target_id,
        "done": standing.done_path,
        "state": standing.state,
        "report": None if standing.report is None else Json(dict(standing.report)),
        "now": now,
    }
    if connection.execute(_q_write_line, arguments).rowcount != 1:
        return False
    if paths is not None and paths.gone:
        gone = {"line": ticket.line, "paths": Byteas([path_id(path) for path in paths.gone])}
        connection.execute(_q_remove_paths, gone)
    if paths is not None and paths.last:
        last = {
            "line": ticket.line,
            "paths": Byteas([path_id(path) for path in paths.last]),
            "commits": Byteas(list(paths.last.values())),
        }
        connection.execute(_q_set_paths, last)
    return True


def clear_paths(connection: Connection, ticket: LineTicket, most: int) -> int | None:
    """See ``Insights.clear_paths``."""
    if not _is_current(connection, ticket):
        return None
    return connection.execute(_q_clear_paths, {"line": ticket.line, "most": most}).rowcount


def copy_paths(connection: Connection, ticket: LineTicket, source: int, after: bytes, most: int) -> bytes | None:
    """See ``Insights.copy_paths``."""
    if not _is_current(connection, ticket):
        return None
    arguments = {"line": ticket.line, "source": source, "after": after, "most": most}
    row = connection.execute(_q_copy_paths, arguments).fetchone()
    return None if row is None else bytes(row[0])


def last_commits(connection: Connection, repo: int, type_: str, branch: str, paths: Sequence[str]) -> LastCommits:
    """See ``Insights.last_commits``."""
    line = find_line(connection, repo, type_, branch)
    if line is None:
        return LastCommits(None, {})
    by_id = {path_id(path): path for path in paths}
    arguments = {"line": line.ticket.line, "paths": Byteas(list(by_id))}
    found = {by_id[bytes(path)]: bytes(commit) for path, commit in connection.execute(_q_last_commits, arguments)}
    return LastCommits(None if line.standing.target_id is not None else line.standing.commit_id, found)


def forget_lines(connection: Connection, repo: int, type_: str, keep: Sequence[str], most: int) -> int:
    """See ``Insights.forget_lines``."""
    return _forget(connection, connection.execute(_q_forgotten_line, (repo, type_, list(keep))).fetchone(), most)


def forget_deleted_lines(connection: Connection, most: int) -> int:
    """See ``Insights.forget_deleted_lines``."""
    return _forget(connection, connection.execute(_q_deleted_line).fetchone(), most)


def _forget(connection: Connection, row: tuple[int] | None, most: int) -> int:
    if row is None:
        return 0
    gone = connection.execute(_q_clear_paths, {"line": row[0], "most": most}).rowcount
    if gone < most:
        connection.execute(_q_forget_line, (row[0],))
        gone += 1
    return gone


def _is_current(connection: Connection, ticket: LineTicket) -> bool:
    return connection.execute(_q_is_current, (ticket.line, ticket.epoch)).fetchone() is not None


def _line_of(row: tuple[object, ...]) -> Line:
    line, epoch, commit_id, target_id, done_path, state, report = row
    assert isinstance(line, int) and isinstance(epoch, int)  # noqa: PT018 - one row
    assert report is None or isinstance(report, dict)
    standing = LineStanding(_bytes(commit_id), _bytes(target_id), _bytes(done_path), _bytes(state), report)
    return Line(LineTicket(line, epoch), standing)


def _bytes(value: object) -> bytes | None:
    assert value is None or isinstance(value, bytes | memoryview)
    return None if value is None else bytes(value)
