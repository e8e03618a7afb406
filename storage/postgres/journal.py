"""What was decided and is not in the store yet. Triggers note it (``migrations/0013_journal.sql``)."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from storage.errors import DeploymentMismatch
from storage.journal import Deployment, DeploymentState, Entry, Outbox
from storage.postgres.arrays import Int8s
from storage.postgres.database import Connection, one_statement

_ANOTHER = "the database was made anew from the object store, or replaced, since this daemon began: restart the daemon"
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
_q_in_use = f"""
    EXISTS (SELECT 1 FROM deployment WHERE deployment = %(deployment)s AND generation = %(generation)s
                                       AND state = {DeploymentState.IN_USE.value})
"""
_q_still = f"SELECT {_q_in_use}"
_q_outbox = f"""
    SELECT o.entry, o.kind, o.gone, o.fact, o.found FROM (SELECT {_q_in_use} AS fits) AS d
    LEFT JOIN (
        SELECT *, sum(octet_length(fact::text)) OVER (ORDER BY entry) - octet_length(fact::text) AS before,
               count(*) OVER () AS found, row_number() OVER (ORDER BY entry) AS nth
        FROM (SELECT * FROM journal_outbox ORDER BY entry LIMIT %(most)s + 1) AS first
    ) AS o ON o.before < %(most_bytes)s AND o.nth <= %(most)s
    WHERE d.fits ORDER BY o.entry
"""
"""No row at all: the database is not what the daemon joined."""
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
def outbox(connection: Connection, of: Deployment, most: int, most_bytes: int) -> Outbox:
    """See ``Journal.outbox``."""
    rows = connection.execute(_q_outbox, {**_named(of), "most": most, "most_bytes": most_bytes}).fetchall()
    if not rows:
        raise DeploymentMismatch(_ANOTHER)
    entries = [Entry(*row[:4]) for row in rows if row[0] is not None]
    return Outbox(entries, bool(entries) and rows[0][4] > len(entries))


def written_out(connection: Connection, of: Deployment, numbers: Sequence[int], key: str) -> None:
    """See ``Journal.written_out``."""
    if connection.execute(_q_still, _named(of)).fetchone() != (True,):  # nobody can make it another until the end
        raise DeploymentMismatch(_ANOTHER)
    connection.execute(_q_written, {"numbers": Int8s(sorted(numbers))})
    connection.execute(_q_reached, {"key": key, "last": max(numbers)})


def _named(of: Deployment) -> dict[str, object]:
    return {"deployment": of.deployment, "generation": of.generation}
