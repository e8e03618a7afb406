"""What the scrub reads of the index, and what it found."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from storage.insights import Finding, KeptFinding, StoredPlace
from storage.layout import Place
from storage.postgres.database import Connection, one_statement
from wire.ids import Scheme

_q_stored = """
    SELECT b.blob_id, b.scheme, b.size, (SELECT p.pack_id FROM packs p WHERE p.pack = b.pack), b."offset"
    FROM blobs b WHERE (b.blob_id, b.scheme) > (%(id)b, %(scheme)s) AND NOT b.pending
    ORDER BY b.blob_id, b.scheme LIMIT %(most)s
"""
_q_packs_after = "SELECT pack_id FROM packs WHERE pack_id > %b ORDER BY pack_id LIMIT %s"
_q_record_findings = """
    INSERT INTO scrub_findings (key, object, problem, detail, found_at, seen_at)
    SELECT new.key, new.id, new.problem, new.detail, %(now)s, %(now)s
    FROM unnest(%(keys)s::text[], %(ids)s::bytea[], %(problems)s::text[], %(details)s::text[])
        AS new (key, id, problem, detail)
    ON CONFLICT (key, object) DO UPDATE
    SET problem = excluded.problem, detail = excluded.detail, seen_at = excluded.seen_at
"""
_q_forget_findings = "DELETE FROM scrub_findings WHERE seen_at < %s"
_q_list_findings = """
    SELECT key, object, problem, detail, found_at, seen_at FROM scrub_findings ORDER BY key, object LIMIT %s
"""


@one_statement
def stored_after(connection: Connection, after: tuple[bytes, Scheme] | None, most: int) -> list[StoredPlace]:
    """See ``Insights.stored_after``."""
    object_id, scheme = (b"", "") if after is None else (after[0], after[1].value)
    rows = connection.execute(_q_stored, {"id": object_id, "scheme": scheme, "most": most})
    return [
        StoredPlace(Scheme(of), Place(bytes(blob_id), size, None if pack_id is None else bytes(pack_id), offset))
        for blob_id, of, size, pack_id, offset in rows
    ]


@one_statement
def packs_after(connection: Connection, after: bytes, most: int) -> list[bytes]:
    """See ``Insights.packs_after``."""
    return [bytes(row[0]) for row in connection.execute(_q_packs_after, (after, most))]


@one_statement
def record_findings(connection: Connection, findings: Sequence[Finding], now: dt.datetime) -> None:
    """See ``Insights.record_findings``."""
    unique = {(finding.key, finding.object_id or b""): finding for finding in findings}
    arguments = {
        "now": now,
        "keys": [key for key, _ in unique],
        "ids": [object_id for _, object_id in unique],
        "problems": [finding.problem for finding in unique.values()],
        "details": [finding.detail for finding in unique.values()],
    }
    connection.execute(_q_record_findings, arguments)


@one_statement
def forget_findings(connection: Connection, before: dt.datetime) -> int:
    """See ``Insights.forget_findings``."""
    return connection.execute(_q_forget_findings, (before,)).rowcount


@one_statement
def list_findings(connection: Connection, most: int) -> list[KeptFinding]:
    """See ``Insights.list_findings``."""
    return [
        KeptFinding(Finding(key, bytes(object_id) or None, problem, detail), found_at, seen_at)
        for key, object_id, problem, detail, found_at, seen_at in connection.execute(_q_list_findings, (most,))
    ]
