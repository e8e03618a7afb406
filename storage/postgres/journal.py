"""What was decided and is not in the store yet. Triggers note it (``migrations/0013_journal.sql``)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from storage.journal import Deployment, DeploymentState, Entry
from storage.postgres.arrays import Int8s
from storage.postgres.database import Connection, one_statement

_columns = "deployment, generation, state, journalled, segment"
_q_deployment = f"SELECT {_columns} FROM deployment"
_q_found = f"""
    INSERT INTO deployment (deployment, generation, state) VALUES (%s, 1, {DeploymentState.NEW.value})
    ON CONFLICT DO NOTHING
"""
_q_announce = "UPDATE deployment SET state = %s"
_q_facts = """
    SELECT EXISTS (SELECT 1 FROM identities) OR EXISTS (SELECT 1 FROM repositories)
        OR EXISTS (SELECT 1 FROM pushes) OR EXISTS (SELECT 1 FROM journal_outbox)
"""
_q_last = """
    SELECT greatest((SELECT journalled FROM deployment),
                    (SELECT entry FROM journal_outbox ORDER BY entry DESC LIMIT 1), 0)
"""
_q_outbox = """
    SELECT entry, kind, gone, fact FROM (
        SELECT *, sum(octet_length(fact::text)) OVER (ORDER BY entry) - octet_length(fact::text) AS before
        FROM (SELECT * FROM journal_outbox ORDER BY entry LIMIT %s) AS first
    ) AS sized
    WHERE before < %s ORDER BY entry
"""
_q_written = "DELETE FROM journal_outbox WHERE entry = ANY (%(numbers)b)"
_q_reached = """
    UPDATE deployment SET segment = %(key)s, journalled = %(last)s WHERE journalled < %(last)s
"""


def deployment(connection: Connection, candidate: uuid.UUID | None) -> Deployment | None:
    """See ``Journal.deployment``."""
    row = connection.execute(_q_deployment).fetchone()
    if row is None and candidate is not None:
        connection.execute(_q_found, (candidate,))
        row = connection.execute(_q_deployment).fetchone()
    return None if row is None else Deployment(row[0], row[1], DeploymentState(row[2]), row[3], row[4])


@one_statement
def announce(connection: Connection, state: DeploymentState) -> None:
    """See ``Journal.announce``."""
    connection.execute(_q_announce, (state.value,))


@one_statement
def holds_facts(connection: Connection) -> bool:
    """See ``Journal.holds_facts``."""
    row = connection.execute(_q_facts).fetchone()
    assert row is not None
    return bool(row[0])


@one_statement
def last_entry(connection: Connection) -> int:
    """See ``Journal.last_entry``."""
    row = connection.execute(_q_last).fetchone()
    assert row is not None
    return int(row[0])


@one_statement
def outbox(connection: Connection, most: int, most_bytes: int) -> list[Entry]:
    """See ``Journal.outbox``."""
    return [Entry(*row) for row in connection.execute(_q_outbox, (most, most_bytes))]


def written_out(connection: Connection, numbers: Sequence[int], key: str) -> None:
    """See ``Journal.written_out``."""
    connection.execute(_q_written, {"numbers": Int8s(sorted(numbers))})
    connection.execute(_q_reached, {"key": key, "last": max(numbers)})
