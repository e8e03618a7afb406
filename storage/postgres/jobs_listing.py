"""Looking at jobs: one, the newest of a kind, and how many there are."""

from __future__ import annotations

from storage.job_rows import COUNTED_JOBS, LISTED_JOBS, ClaimFacts, Job, JobCounts, JobFilter, JobProgress, JobState
from storage.postgres.database import Connection, one_statement

_columns = """
    j.job, j.repo, j.type, j.state, j.priority, j.payload, j.run_at, j.attempts, j.created_at, j.finished_at, j.result,
    j.error, j.held, c.worker, c.claimed_at, c.heartbeat_at, c.progress
"""
_claim = "LEFT JOIN LATERAL (SELECT * FROM job_claims WHERE job = j.job OFFSET 0) c ON true"
_q_find = f"SELECT {_columns} FROM jobs j {_claim} WHERE j.job = %s"
_q_list = f"""
    SELECT {_columns} FROM jobs j {_claim} ORDER BY j.job DESC LIMIT %(most)s
"""
_q_list_of_repository = f"""
    SELECT {_columns} FROM jobs j {_claim}
    WHERE j.repo = %(repo)s AND (%(type)s::text IS NULL OR j.type = %(type)s) AND j.state = ANY (%(states)s)
    ORDER BY j.job DESC LIMIT %(most)s
"""
# Types are few: each is found by skipping to the next one in the index. Of each type and state, the newest are looked
# up in the index, and only the rows of the newest of them all are read. They are asked for as a range, because a type's
# newest would be looked for among the newest of all, where a rare one has none for a million rows.
_types = """
    WITH RECURSIVE types (type) AS (
        (SELECT type FROM jobs ORDER BY type LIMIT 1)
        UNION ALL
        SELECT (SELECT j.type FROM jobs j WHERE j.type > types.type ORDER BY j.type LIMIT 1)
        FROM types WHERE types.type IS NOT NULL
    )
"""
_of_type_and_state = f"""
    (j.type, j.state::int, j.job) >= (types.type, wanted.state, 0)
    AND (j.type, j.state::int, j.job) <= (types.type, wanted.state, {2**63 - 1})
"""
_q_list_of_types = f"""
    {_types}, newest AS MATERIALIZED (
        SELECT n.job FROM types CROSS JOIN unnest(%(states)s::int[]) AS wanted (state) CROSS JOIN LATERAL (
            SELECT j.job FROM jobs j
            WHERE {_of_type_and_state}
            ORDER BY j.type DESC, j.state::int DESC, j.job DESC LIMIT %(most)s
        ) AS n
        WHERE %(type)s::text IS NULL OR types.type = %(type)s
        ORDER BY n.job DESC LIMIT %(most)s
    )
    SELECT {_columns} FROM newest JOIN jobs j USING (job) {_claim} ORDER BY j.job DESC
"""
# Of what has ended, the index alone is read.
_q_count = f"""
    {_types}
    SELECT types.type, 0, n.count, n.oldest FROM types CROSS JOIN LATERAL (
        SELECT count(*), min(f.run_at) FILTER (WHERE NOT f.held) AS oldest FROM (
            SELECT j.run_at, j.held FROM (SELECT 0) AS wanted (state) CROSS JOIN jobs j WHERE {_of_type_and_state}
            ORDER BY j.type, j.state::int, j.job LIMIT {COUNTED_JOBS}
        ) AS f
    ) AS n WHERE n.count > 0
    UNION ALL
    SELECT types.type, wanted.state, n.count, NULL FROM types CROSS JOIN generate_series(1, 4) AS wanted (state)
    CROSS JOIN LATERAL (
        SELECT count(*) FROM (
            SELECT j.job FROM jobs j WHERE {_of_type_and_state}
            ORDER BY j.type, j.state::int, j.job LIMIT {COUNTED_JOBS}
        ) AS f
    ) AS n WHERE n.count > 0
    ORDER BY 1, 2
"""


@one_statement
def find_job(connection: Connection, number: int) -> Job | None:
    """See ``Jobs.find_job``."""
    row = connection.execute(_q_find, (number,)).fetchone()
    return None if row is None else _job(*row)


@one_statement
def list_jobs(connection: Connection, wanted: JobFilter, most: int) -> list[Job]:
    """See ``Jobs.list_jobs``."""
    states = [int(state) for state in (JobState if wanted.states is None else wanted.states)]
    arguments = {"repo": wanted.repo, "type": wanted.type, "states": states, "most": min(most, LISTED_JOBS)}
    if wanted.repo is not None:
        query = _q_list_of_repository
    elif wanted == JobFilter():
        query = _q_list
    else:
        query = _q_list_of_types
    rows = connection.execute(query, arguments).fetchall()
    return [_job(*row) for row in reversed(rows)]


@one_statement
def count_jobs(connection: Connection) -> list[JobCounts]:
    """See ``Jobs.count_jobs``."""
    rows = connection.execute(_q_count)
    return [JobCounts(kind, JobState(state), count, oldest) for kind, state, count, oldest in rows]


def _job(  # type: ignore[no-untyped-def]
    number, repo, kind, state, priority, payload, run_at, attempts, created_at, finished_at, result, error, held,
    worker, claimed_at, heartbeat_at, progress,
) -> Job:  # fmt: skip
    claim = None
    if worker is not None:
        far = None if progress is None else JobProgress(progress["stage"], progress["done"], progress["total"])
        claim = ClaimFacts(worker, claimed_at, heartbeat_at, far)
    return Job(
        number, repo, kind, JobState(state), priority, payload, run_at, attempts, created_at, finished_at, result,
        error, held, claim,
    )  # fmt: skip
