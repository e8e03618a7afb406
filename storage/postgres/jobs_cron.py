"""Jobs of the deployment that come back: which, how often, and when next."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence

from storage.job_rows import DEPLOYMENT, CronEntry, NewJob
from storage.postgres.database import Connection
from storage.postgres.jobs import enqueue

_q_others = "DELETE FROM cron WHERE name <> ALL (%s)"
_q_set = """
    INSERT INTO cron (name, type, every_s, priority, payload, next_at)
    VALUES (%(name)s, %(type)s, %(every_s)s, %(priority)s, %(payload)s::jsonb,
            %(now)s + %(every_s)s * interval '1 second')
    ON CONFLICT (name) DO UPDATE SET
        type = excluded.type, every_s = excluded.every_s, priority = excluded.priority, payload = excluded.payload,
        next_at = cron.next_at + (excluded.every_s - cron.every_s) * interval '1 second'
"""
_q_due = """
    UPDATE cron SET next_at = %(now)s + every_s * interval '1 second'
    WHERE name = ANY (ARRAY(SELECT name FROM cron WHERE next_at <= %(now)s FOR UPDATE SKIP LOCKED))
    RETURNING type, name, priority, payload
"""


def set_cron(connection: Connection, entries: Sequence[CronEntry], now: dt.datetime) -> None:
    """See ``Jobs.set_cron``."""
    connection.execute(_q_others, ([entry.name for entry in entries],))
    for entry in sorted(entries, key=lambda entry: entry.name):
        arguments = {
            "name": entry.name, "type": entry.type, "every_s": entry.every_s, "priority": entry.priority,
            "payload": json.dumps(dict(entry.payload)), "now": now,
        }  # fmt: skip
        connection.execute(_q_set, arguments)


def run_cron(connection: Connection, now: dt.datetime) -> list[str]:
    """See ``Jobs.run_cron``; one that another daemon is just running is left to it."""
    due = sorted(connection.execute(_q_due, {"now": now}).fetchall(), key=lambda row: row[:2])
    for kind, _, priority, payload in due:  # one by one: two of them may be of one type
        enqueue(connection, DEPLOYMENT, [NewJob(kind, priority, payload)], now)
    return sorted(name for _, name, _, _ in due)
