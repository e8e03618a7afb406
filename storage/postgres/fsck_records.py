"""Which pack the commits and snapshots of a push are in, and what has to be in it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from storage.collection_rows import RefKind
from storage.fsck import AcceptedPush, BroughtRecord
from storage.index import READ_BYTES
from storage.postgres.arrays import Byteas, Int8s
from storage.postgres.database import Connection, one_statement

_q_pushes = """
    SELECT p.push, p.repo, p.record_pack FROM pushes p
    WHERE p.push > %(after)s AND p.state = 1
      AND (SELECT y.deleted_at IS NULL FROM repositories y WHERE y.repo = p.repo)
    ORDER BY p.push LIMIT %(most)s
"""
_q_with_records = """
    SELECT DISTINCT push FROM commit_refs WHERE repo = %(repo)s AND push = ANY (%(pushes)b)
    UNION SELECT DISTINCT push FROM snapshot_refs WHERE repo = %(repo)s AND push = ANY (%(pushes)b)
"""
_q_commits = """
    SELECT r.commit_id, r.push, coalesce((SELECT c.generation FROM commits c WHERE c.commit_id = r.commit_id
        AND c.scheme = (SELECT scheme FROM repositories WHERE repo = %(repo)s)), 0)
    FROM commit_refs r
    WHERE r.repo = %(repo)s AND (r.commit_id, r.push) > (%(id)s, %(push)s) AND r.push = ANY (%(pushes)b)
    ORDER BY r.commit_id, r.push LIMIT %(most)s
"""
_q_snapshots = """
    SELECT r.snapshot_id, r.push, coalesce((SELECT s.depth FROM snapshots s WHERE s.snapshot_id = r.snapshot_id
        AND s.scheme = (SELECT scheme FROM repositories WHERE repo = %(repo)s)), 0)
    FROM snapshot_refs r
    WHERE r.repo = %(repo)s AND (r.snapshot_id, r.push) > (%(id)s, %(push)s) AND r.push = ANY (%(pushes)b)
    ORDER BY r.snapshot_id, r.push LIMIT %(most)s
"""
_q_bodies = f"""
    SELECT id, record, record_id FROM (
        SELECT wanted.id, b.record, b.record_id, wanted.at,
               sum(octet_length(b.record)) OVER (ORDER BY wanted.at) - octet_length(b.record) AS before
        FROM unnest(%(ids)b) WITH ORDINALITY AS wanted (id, at)
        CROSS JOIN LATERAL (SELECT record_id FROM commit_refs
                            WHERE repo = %(repo)s AND commit_id = wanted.id AND push = %(push)s OFFSET 0) AS r
        JOIN commit_records b USING (record_id)
    ) AS sized
    WHERE before < {READ_BYTES} ORDER BY at
"""
_q_extras = """
    SELECT r.snapshot_id, r.extras FROM unnest(%(ids)b) AS wanted (id)
    CROSS JOIN LATERAL (SELECT snapshot_id, extras FROM snapshot_refs
                        WHERE repo = %(repo)s AND snapshot_id = wanted.id AND push = %(push)s OFFSET 0) AS r
    WHERE r.extras <> ''
"""
_q_before = """
    SELECT wanted.id FROM unnest(%(ids)b) AS wanted (id)
    WHERE EXISTS (SELECT 1 FROM snapshot_refs r JOIN pushes p USING (push)
                  WHERE r.repo = %(repo)s AND r.snapshot_id = wanted.id AND p.state = 1
                    AND p.finished_at <= (SELECT finished_at FROM pushes WHERE push = %(push)s) OFFSET 0)
"""
_q_name = """
    UPDATE pushes SET record_pack = %(pack)s
    WHERE push = %(push)s AND state = 1 AND record_pack IS NOT DISTINCT FROM %(known)s::bytea
"""


@one_statement
def pushes_after(connection: Connection, after: int, most: int) -> list[AcceptedPush]:
    """See ``RecordPacks.pushes_after``."""
    rows = connection.execute(_q_pushes, {"after": after, "most": most})
    return [AcceptedPush(push, repo, None if pack is None else bytes(pack)) for push, repo, pack in rows]


@one_statement
def pushes_with_records(connection: Connection, repo: int, pushes: Sequence[int]) -> set[int]:
    """See ``RecordPacks.pushes_with_records``."""
    return {row[0] for row in connection.execute(_q_with_records, {"repo": repo, "pushes": Int8s(pushes)})}


@one_statement
def brought_records(
    connection: Connection, repo: int, pushes: Sequence[int], kind: RefKind, after: tuple[bytes, int], most: int
) -> list[BroughtRecord]:
    """See ``RecordPacks.brought_records``."""
    query = _q_commits if kind is RefKind.COMMIT else _q_snapshots
    arguments = {"repo": repo, "pushes": Int8s(pushes), "id": after[0], "push": after[1], "most": most}
    return [BroughtRecord(bytes(found), push, order) for found, push, order in connection.execute(query, arguments)]


@one_statement
def brought_commits(connection: Connection, repo: int, push: int, commit_ids: Sequence[bytes]) -> dict[bytes, bytes]:
    """See ``RecordPacks.brought_commits``."""
    rows = connection.execute(_q_bodies, {"repo": repo, "push": push, "ids": Byteas(commit_ids)}, binary=True)
    return {  # what is not what was written is as good as lost
        bytes(commit_id): bytes(record)
        for commit_id, record, record_id in rows
        if hashlib.sha256(record).digest() == record_id
    }


@one_statement
def brought_extras(connection: Connection, repo: int, push: int, snapshot_ids: Sequence[bytes]) -> dict[bytes, bytes]:
    """See ``RecordPacks.brought_extras``."""
    rows = connection.execute(_q_extras, {"repo": repo, "push": push, "ids": Byteas(snapshot_ids)}, binary=True)
    return {bytes(snapshot_id): bytes(extras) for snapshot_id, extras in rows}


@one_statement
def brought_before(connection: Connection, repo: int, push: int, snapshot_ids: Sequence[bytes]) -> set[bytes]:
    """See ``RecordPacks.brought_before``."""
    rows = connection.execute(_q_before, {"repo": repo, "push": push, "ids": Byteas(snapshot_ids)})
    return {bytes(row[0]) for row in rows}


@one_statement
def name_record_pack(connection: Connection, push: int, known: bytes | None, pack_id: bytes) -> bool:
    """See ``RecordPacks.name_record_pack``."""
    return connection.execute(_q_name, {"push": push, "known": known, "pack": pack_id}).rowcount == 1
