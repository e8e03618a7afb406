"""What ``fsck`` reads of what repositories hold, page by page."""

from __future__ import annotations

from collections.abc import Sequence

from storage.collection_rows import RefKind
from storage.fsck import LoggedMove
from storage.history_rows import SnapshotRow
from storage.postgres.arrays import Byteas
from storage.postgres.database import Connection, one_statement
from storage.rows import BranchLogEntry
from wire.ids import Scheme

_held = """
    SELECT DISTINCT r.{id} FROM {table} r JOIN pushes p USING (push)
    WHERE r.repo = %(repo)s AND r.{id} > %(after)s AND p.state = 1 ORDER BY r.{id} LIMIT %(most)s
"""
_unheld = """
    SELECT wanted.id FROM unnest(%(ids)b) AS wanted (id)
    WHERE NOT EXISTS (SELECT 1 FROM {table} r JOIN pushes p USING (push)
                      WHERE r.repo = %(repo)s AND r.{id} = wanted.id AND p.state = 1 OFFSET 0)
"""
_of_blobs = {"table": "blob_refs", "id": "blob_id"}
_of_snapshots = {"table": "snapshot_refs", "id": "snapshot_id"}
_of_commits = {"table": "commit_refs", "id": "commit_id"}
_q_held_blobs, _q_unheld_blobs = _held.format(**_of_blobs), _unheld.format(**_of_blobs)
_q_held_snapshots, _q_unheld_snapshots = _held.format(**_of_snapshots), _unheld.format(**_of_snapshots)
_q_held_commits, _q_unheld_commits = _held.format(**_of_commits), _unheld.format(**_of_commits)
_HELD = {RefKind.BLOB: _q_held_blobs, RefKind.SNAPSHOT: _q_held_snapshots, RefKind.COMMIT: _q_held_commits}
_UNHELD = {RefKind.BLOB: _q_unheld_blobs, RefKind.SNAPSHOT: _q_unheld_snapshots, RefKind.COMMIT: _q_unheld_commits}
_q_moves = """
    SELECT l.entry, l.branch, l.old, l.new, l.handle,
           (SELECT p.push_id FROM pushes p WHERE p.push = l.push), l.forced, l.at
    FROM branch_log l WHERE l.repo = %(repo)s AND (l.branch, l.entry) > (%(branch)s, %(entry)s)
    ORDER BY l.branch, l.entry LIMIT %(most)s
"""
_q_insert_snapshot = """
    INSERT INTO snapshots (snapshot_id, scheme, base_id, depth, delta, "full")
    VALUES (%(id)s, %(scheme)s, %(base)s, %(depth)s, %(delta)b, %(full)b) ON CONFLICT DO NOTHING
"""
_q_mend_snapshot = """
    UPDATE snapshots SET base_id = %(base)s, depth = %(depth)s, delta = %(delta)b, "full" = %(full)b
    WHERE snapshot_id = %(id)s AND scheme = %(scheme)s AND base_id IS NOT DISTINCT FROM %(old_base)s
      AND delta = %(old_delta)b AND "full" IS NOT DISTINCT FROM %(old_full)b::bytea
"""


@one_statement
def held_ids(connection: Connection, repo: int, kind: RefKind, after: bytes, most: int) -> list[bytes]:
    """See ``Checks.held_ids``."""
    rows = connection.execute(_HELD[kind], {"repo": repo, "after": after, "most": most})
    return [bytes(row[0]) for row in rows]


@one_statement
def unheld(connection: Connection, repo: int, kind: RefKind, ids: Sequence[bytes]) -> set[bytes]:
    """See ``Checks.unheld``."""
    return {bytes(row[0]) for row in connection.execute(_UNHELD[kind], {"repo": repo, "ids": Byteas(ids)})}


@one_statement
def branch_moves_after(connection: Connection, repo: int, after: tuple[str, int], most: int) -> list[LoggedMove]:
    """See ``Checks.branch_moves_after``."""
    rows = connection.execute(_q_moves, {"repo": repo, "branch": after[0], "entry": after[1], "most": most})
    return [
        LoggedMove(
            number,
            BranchLogEntry(branch, _digest(old), _digest(new), handle, push_id, forced, at),
        )
        for number, branch, old, new, handle, push_id, forced, at in rows
    ]


@one_statement
def mend_snapshot(connection: Connection, scheme: Scheme, wrong: SnapshotRow | None, right: SnapshotRow) -> bool:
    """See ``Checks.mend_snapshot``."""
    arguments: dict[str, object] = {
        "id": right.snapshot_id, "scheme": scheme.value, "base": right.base_id, "depth": right.depth,
        "delta": right.delta, "full": right.full,
    }  # fmt: skip
    if wrong is None:
        return connection.execute(_q_insert_snapshot, arguments).rowcount == 1
    arguments |= {"old_base": wrong.base_id, "old_delta": wrong.delta, "old_full": wrong.full}
    return connection.execute(_q_mend_snapshot, arguments).rowcount == 1


def _digest(found: bytes | None) -> bytes | None:
    return None if found is None else bytes(found)
