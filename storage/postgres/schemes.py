"""Id schemes: the same digits may be an id of either, of different bytes, and a push's rows have none of their own."""

from __future__ import annotations

from storage.postgres.database import Connection, one_statement
from storage.rows import PushTicket
from wire.ids import Scheme

# Asked only of a repository without an accepted push: what it refers to is what has been tried.
_q_strange = """
    SELECT EXISTS (
        SELECT 1 FROM blob_refs r WHERE r.repo = %(repo)s AND r.push = %(push)s AND NOT EXISTS (
            SELECT 1 FROM blobs b WHERE b.blob_id = r.blob_id AND b.scheme = %(scheme)s OFFSET 0)
    ) OR EXISTS (
        SELECT 1 FROM snapshot_refs r WHERE r.repo = %(repo)s AND r.push = %(push)s AND NOT EXISTS (
            SELECT 1 FROM snapshots s WHERE s.snapshot_id = r.snapshot_id AND s.scheme = %(scheme)s OFFSET 0)
    ) OR EXISTS (
        SELECT 1 FROM commit_refs r WHERE r.repo = %(repo)s AND r.push = %(push)s AND NOT EXISTS (
            SELECT 1 FROM commits c WHERE c.commit_id = r.commit_id AND c.scheme = %(scheme)s OFFSET 0)
    )
"""


@one_statement
def is_of_scheme(connection: Connection, ticket: PushTicket, scheme: Scheme) -> bool:
    """See ``Pushes.is_of_scheme``."""
    arguments = {"repo": ticket.repo, "push": ticket.number, "scheme": scheme.value}
    row = connection.execute(_q_strange, arguments).fetchone()
    return row is not None and not row[0]
