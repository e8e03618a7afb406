"""Jobs, in a list; see ``storage.postgres.jobs``."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace

from storage.memory.tables import Tables
from storage.rows import LISTED_JOBS, PAYLOAD_MEMBERS, WHOLE, Job, JobState, NewJob


def enqueue(tables: Tables, repo: int, jobs: Sequence[NewJob], now: dt.datetime) -> None:
    """Enqueue jobs of different types, at once."""
    for new in sorted(jobs, key=lambda job: job.type):
        waiting = next((j for j in tables.jobs.values() if (j.repo, j.type, j.state) == (repo, new.type, 0)), None)
        if waiting is None:
            number = tables.next_number()
            tables.jobs[number] = Job(
                number, repo, new.type, JobState.PENDING, new.priority, dict(new.payload), now, 0, now, None, None,
                None,
            )  # fmt: skip
        else:
            merged = {**waiting.payload, **new.payload}
            payload = WHOLE if len(merged) > PAYLOAD_MEMBERS else merged
            tables.jobs[waiting.number] = replace(waiting, payload=dict(payload))


def list_jobs(tables: Tables, repo: int) -> list[Job]:
    """See ``Jobs.list_jobs``."""
    return [job for job in tables.jobs.values() if job.repo == repo][-LISTED_JOBS:]
