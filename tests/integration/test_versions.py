"""F19: a version that still runs while the database is migrated finds everything it says understood as before.

What earlier versions say was recorded by ``tools/conversations.py``, one file for each released schema.
"""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from storage.environment import SystemEnvironment
from storage.index import Index
from storage.job_rows import Claim, JobFilter, JobState
from storage.migrate import known_migrations
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from tests.behaviour.test_index import emptied_url, tables
from tests.conversations import FOLDER, UUID, Conversation, Differs, Said, Speaker, read

__all__ = ["emptied_url", "tables"]

RECORDED = sorted(FOLDER.glob("*.txt.xz"))
AGES = dt.timedelta(days=36_500)
_CLAIMS, _COMPLETES = "INSERT INTO job_claims", "completed_by ="


def test_what_the_last_released_schema_was_told_is_recorded() -> None:
    """And nothing of a schema nobody has."""
    numbers = [int(path.name[:4]) for path in RECORDED]
    assert numbers
    assert set(numbers) <= {migration.version for migration in known_migrations()}


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name[:4])
async def test_F19_what_an_earlier_version_says_is_answered_as_before(
    path: Path, module_database_url: str, tables: str
) -> None:
    """Every statement of it, with its arguments; and this version can go on with what it leaves."""
    conversations = list(read(path))
    assert len(conversations) > 10
    differing = {}
    async with PostgresIndex(DatabaseSettings(module_database_url, pool_size=1)) as index:
        for conversation in conversations:
            with psycopg.connect(module_database_url) as connection:
                connection.execute(f"TRUNCATE {tables} RESTART IDENTITY")
            try:
                with Speaker(module_database_url) as speaker:
                    speaker.say(conversation)
            except Differs as why:
                differing[conversation.name] = str(why)
            else:
                await goes_on(index)
    assert differing == {}


async def goes_on(index: Index) -> None:
    """Take over whatever an earlier version has left: jobs that run and jobs that wait, repositories, tombstones."""
    now = SystemEnvironment().now() + AGES
    await index.recover_stale(now, 0, 0, 1_000)
    assert await index.list_jobs(JobFilter(states=frozenset({JobState.RUNNING})), 1) == []
    waiting = await index.list_jobs(JobFilter(states=frozenset({JobState.PENDING})), 1_000)
    paused, room = await index.paused_types(), {job.type: 1_000 for job in waiting}
    claimed = await index.claim_jobs(room, 1_000, "this version", now) if room else []
    assert {job.claim.job for job in claimed} == {
        job.number for job in waiting if not job.held and job.type not in paused
    }  # fmt: skip
    for job in claimed:
        assert await index.complete_job(job.claim, {}, now)
    for repo in range(1, 4):
        for found in (await index.repositories_numbered([repo])).values():
            assert await index.branch_heads(found.number) is not None
    await index.forget_tombstones(now, 0)


def claiming(path: Path) -> Conversation:
    """Give what an earlier version says until it has claimed something and completed a job."""
    for conversation in read(path):
        claims = 0
        for at, said in enumerate(conversation.said):
            claims += _CLAIMS in said.statement and tells_a_token(said)
            if _COMPLETES in said.statement and said.answer is not None and said.answer.get("rows"):
                if claims and said.statement.lstrip().startswith("WITH"):
                    return replace(conversation, said=conversation.said[: at + 1])
                break
    raise AssertionError("nobody claims and completes")


def tells_a_token(said: Said) -> bool:
    answer = said.answer or {}
    at = [number for number, column in enumerate(answer.get("columns", ())) if column == UUID]
    return any(row[number] is not None for row in answer.get("rows", ()) for number in at)


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name[:4])
async def test_F19_F27_two_versions_fence_each_other(path: Path, emptied_url: str) -> None:
    """What an earlier version has claimed is taken over by this one; what the earlier one then says changes nothing."""
    conversation = claiming(path)
    now = SystemEnvironment().now() + AGES
    async with PostgresIndex(DatabaseSettings(emptied_url, pool_size=1)) as index:
        with Speaker(emptied_url) as speaker:
            *before, completes = conversation.said
            speaker.say(replace(conversation, said=before))
            running = await index.list_jobs(JobFilter(states=frozenset({JobState.RUNNING})), 10)
            assert running
            assert not await index.complete_job(Claim(running[0].number, uuid.UUID(int=1)), {}, now)
            await index.recover_stale(now, 0, 0, 10)
            taken = await index.claim_jobs({job.type: 10 for job in running}, 10, "this version", now)
            assert {job.claim.job for job in taken} == {job.number for job in running}
            with pytest.raises(Differs):
                speaker.say(replace(conversation, said=[completes]))
        for job in taken:
            assert await index.complete_job(job.claim, {"by": "this version"}, now)
        found = await index.find_job(running[0].number)
        assert found is not None
        assert (found.state, found.result) == (JobState.DONE, {"by": "this version"})


@pytest.mark.parametrize("change", [
    "ALTER TABLE jobs DROP COLUMN held CASCADE", "ALTER TABLE jobs ADD COLUMN new integer NOT NULL",
    "DROP INDEX jobs_pending", "ALTER TABLE jobs ADD CONSTRAINT stricter CHECK (state < 2)",
])  # fmt: skip
def test_a_change_an_earlier_version_could_not_live_with_is_noticed(database_url: str, change: str) -> None:
    """A column that is gone, one it does not fill, an index its conflicts are judged by, a value that is refused."""
    conversation = claiming(RECORDED[-1])
    with psycopg.connect(database_url) as connection:
        connection.execute(change)
    with Speaker(database_url) as speaker, pytest.raises(Differs):
        speaker.say(conversation)
