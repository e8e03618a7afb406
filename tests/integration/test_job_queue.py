"""The queue's races on a real PostgreSQL, each party stopped where it matters."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import psycopg
import pytest

from storage.job_rows import Claim, Job, JobState, NewJob
from storage.postgres import jobs, jobs_claims, jobs_endings, jobs_listing, jobs_operations
from storage.postgres.database import DatabaseSettings, connection_arguments

NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
LATER = NOW + dt.timedelta(hours=1)
GC = "gc"
OLD_ENQUEUE = """
    INSERT INTO jobs (repo, type, priority, payload, run_at, created_at)
    SELECT %(repo)s, new.type, new.priority, new.payload::jsonb, %(now)s, %(now)s
    FROM unnest(%(types)s::text[], %(priorities)s::smallint[], %(payloads)s::text[]) AS new (type, priority, payload)
    ORDER BY new.type
    ON CONFLICT (repo, type) WHERE state = 0 DO UPDATE
        SET payload = jobs.payload || excluded.payload WHERE excluded.payload <> '{}'::jsonb
"""
"""As the version before claims has it."""
GIVE_UP_S = 20.0


class Two:
    """One who is stopped in the middle of a transaction, and another in a thread who meets it."""

    def __init__(self, url: str, pool: ThreadPoolExecutor) -> None:
        self._url = url
        self._pool = pool

    def begin(self) -> psycopg.Connection:
        return psycopg.connect(self._url, **connection_arguments(DatabaseSettings(self._url)))

    def run(self, function: Callable, *arguments: object) -> object:
        """Do something, whole."""
        with self.begin() as connection:
            return function(connection, *arguments)

    def start(self, function: Callable, *arguments: object, waits: bool = True) -> Future:
        """Have something done beside, and return when it waits for a lock."""
        future = self._pool.submit(self.run, function, *arguments)
        if waits:
            self.until_one_waits()
        return future

    def until_one_waits(self) -> None:
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        give_up_at = time.monotonic() + GIVE_UP_S
        with psycopg.connect(self._url, autocommit=True) as looking:
            while looking.execute(query).fetchone() == (0,):
                assert time.monotonic() < give_up_at, "nobody waits"

    def enqueue(self, payload: dict | None = None) -> int:
        (number,) = self.run(jobs.enqueue_jobs, 1, [NewJob(GC, 0, payload or {})], NOW)
        return number

    def claim(self) -> Claim:
        (claimed,) = self.run(jobs_claims.claim_jobs, {GC: 1}, 1, "w", NOW)
        return claimed.claim

    def job(self, number: int) -> Job:
        return self.run(jobs_listing.find_job, number)


@pytest.fixture
def two(database_url: str) -> Iterator[Two]:
    with ThreadPoolExecutor(2) as pool:
        yield Two(database_url, pool)


def test_F19_the_version_before_goes_on_enqueueing(two: Two) -> None:
    """Beside claims, held jobs and endings it knows nothing of."""
    arguments = {"repo": 1, "types": [GC], "priorities": [0], "payloads": ['{"a": 1}'], "now": NOW}
    with two.begin() as old:
        old.execute(OLD_ENQUEUE, arguments)
    claim = two.claim()
    for payload in ('{"b": 1}', '{"c": 1}', "{}"):
        with two.begin() as old:
            old.execute(OLD_ENQUEUE, {**arguments, "payloads": [payload]})
    assert two.run(jobs_endings.fail_job, claim, "x", NOW, NOW) is JobState.FAILED
    assert two.run(jobs_claims.claim_jobs, {GC: 1}, 1, "w", NOW)[0].payload == {"a": 1, "b": 1, "c": 1}


@pytest.mark.parametrize("committed", [True, False])
def test_F12_an_answer_lost_while_the_completion_is_on_its_way_is_told_again(two: Two, committed: bool) -> None:
    """F12: asked again before the first has ended, it waits for it, and says it is done either way."""
    two.enqueue()
    claim = two.claim()
    with two.begin() as first:
        assert complete(first, claim, {"n": 1}, NOW)
        second = two.start(lambda c: autocommitted(c, lambda: complete(c, claim, {"n": 2}, NOW)))
        (first.commit if committed else first.rollback)()
        assert second.result() is True
    assert two.job(claim.job).result == {"n": 1 if committed else 2}


def complete(connection: psycopg.Connection, claim: Claim, result: dict[str, object], now: dt.datetime) -> bool:
    """Complete one job; gives whether its claim held."""
    return claim in jobs_endings.complete_jobs(connection, [jobs_endings.completion(claim, result, now)])


def autocommitted(connection: psycopg.Connection, call: Callable[[], object]) -> object:
    """As the pool runs what is marked as one statement."""
    connection.autocommit = True
    return call()


def test_F27_who_completes_while_its_claim_is_taken_hears_that_it_is_gone(two: Two) -> None:
    """F27: and the job waits for another."""
    number = two.enqueue()
    claim = two.claim()
    with two.begin() as recovering:
        assert jobs_endings.recover_stale(recovering, LATER, 300, 0, 9) == [(number, JobState.PENDING)]
        late = two.start(lambda c: autocommitted(c, lambda: complete(c, claim, {}, LATER)))
        recovering.commit()
        assert late.result() is False
    assert two.job(number).state is JobState.PENDING


def test_a_claim_that_beats_while_it_is_looked_at_is_not_stale(two: Two) -> None:
    """Whoever is locked by its heartbeat is alive; recovery does not wait for it."""
    two.enqueue()
    claim = two.claim()
    with two.begin() as beating:
        assert jobs_claims.beat_claims(beating, {claim: None}, LATER) == set()
        assert two.run(jobs_endings.recover_stale, LATER, 300, 0, 9) == []
        beating.commit()
    assert two.run(jobs_endings.recover_stale, LATER, 300, 0, 9) == []


@pytest.mark.parametrize("ending", ["fail", "complete", "return", "beat", "keep"])
def test_what_waits_for_a_heartbeat_of_the_same_claim_still_holds_it(two: Two, ending: str) -> None:
    """A row that changes while it is waited for is not gone."""
    two.enqueue()
    claim = two.claim()
    act, expected = {
        "fail": (lambda c: jobs_endings.fail_job(c, claim, "x", NOW, NOW), JobState.PENDING),
        "complete": (lambda c: complete(c, claim, {}, NOW), True),
        "return": (lambda c: jobs_endings.return_jobs(c, [claim], NOW), 1),
        "beat": (lambda c: jobs_claims.beat_claims(c, {claim: None}, NOW), set()),
        "keep": (lambda c: jobs_claims.keep_state(c, claim, {}, NOW), True),
    }[ending]
    with two.begin() as beating:
        jobs_claims.beat_claims(beating, {claim: None}, LATER)
        waiting = two.start(act)
        beating.commit()
        assert waiting.result() == expected


@pytest.mark.parametrize("committed", [True, False])
@pytest.mark.parametrize("way", ["fail", "return", "recover", "retry"])
def test_a_job_that_goes_back_waits_for_a_push_that_is_just_enqueueing(two: Two, way: str, committed: bool) -> None:
    """It gives way if the push is accepted, and waits itself if not; no index is violated, nothing is lost."""
    number = two.enqueue({"old": 1})
    claim = two.claim()
    if way == "retry":
        two.run(jobs_endings.fail_job, claim, "x", NOW, None)
    act = {
        "fail": lambda c: jobs_endings.fail_job(c, claim, "x", NOW, NOW),
        "return": lambda c: jobs_endings.return_jobs(c, [claim], NOW),
        "recover": lambda c: jobs_endings.recover_stale(c, LATER, 300, 0, 9),
        "retry": lambda c: jobs_operations.retry_job(c, number, NOW),
    }[way]
    with two.begin() as pushing:
        (other,) = jobs.enqueue_jobs(pushing, 1, [NewJob(GC, 0, {"new": 1})], NOW)
        going_back = two.start(act)
        (pushing.commit if committed else pushing.rollback)()
        going_back.result()
    assert two.job(number).state is (JobState.FAILED if committed else JobState.PENDING)
    waits = two.job(other if committed else number)
    assert waits.payload == ({"new": 1, "old": 1} if committed else {"old": 1})
    assert waits.state is JobState.PENDING


def test_a_push_that_finds_its_job_being_claimed_gets_one_of_its_own(two: Two) -> None:
    """The one that is claimed may have looked already."""
    number = two.enqueue()
    with two.begin() as claiming:
        assert len(jobs_claims.claim_jobs(claiming, {GC: 1}, 1, "w", NOW)) == 1
        pushing = two.start(jobs.enqueue_jobs, 1, [NewJob(GC)], NOW)
        claiming.commit()
        (other,) = pushing.result()
    assert other != number
    assert [two.job(n).state for n in (number, other)] == [JobState.RUNNING, JobState.PENDING]


def test_a_claim_waits_for_nobody(two: Two) -> None:
    """What a push or another claimer has locked is passed over, and what comes after it is claimed."""
    two.enqueue()
    (free,) = two.run(jobs.enqueue_jobs, 2, [NewJob(GC)], LATER)
    with two.begin() as pushing:
        jobs.enqueue_jobs(pushing, 1, [NewJob(GC)], NOW)
        assert [job.claim.job for job in two.run(jobs_claims.claim_jobs, {GC: 1}, 1, "w", LATER)] == [free]
        assert two.run(jobs_claims.claim_jobs, {GC: 1}, 1, "w", LATER) == []


def test_a_claim_locks_no_more_than_it_takes(two: Two) -> None:
    """Who comes while it is under way gets all the others, of the same type and of other types."""
    numbers = [two.run(jobs.enqueue_jobs, repo, [NewJob(f"t{repo % 3}")], NOW)[0] for repo in range(9)]
    room = {"t0": 3, "t1": 3, "t2": 3}
    with two.begin() as claiming:
        first = jobs_claims.claim_jobs(claiming, room, 1, "w", NOW)
        others = two.run(jobs_claims.claim_jobs, room, 9, "w", NOW)
        claiming.commit()
    assert [job.claim.job for job in [*first, *others]] == numbers


def test_a_claim_looks_beyond_what_others_are_claiming(two: Two) -> None:
    """However much of its room they have before it: it comes back with less only when there is no more."""
    numbers = [two.run(jobs.enqueue_jobs, repo, [NewJob(GC)], NOW)[0] for repo in range(7)]
    with two.begin() as claiming:
        jobs_claims.claim_jobs(claiming, {GC: 4}, 4, "w", NOW)
        others = two.run(jobs_claims.claim_jobs, {GC: 2}, 2, "w", NOW)
        claiming.commit()
    assert [job.claim.job for job in others] == numbers[4:6]


STOPPED = """
    CREATE FUNCTION stop() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NEW; END $$;
    CREATE TRIGGER stop BEFORE INSERT ON job_claims FOR EACH ROW EXECUTE FUNCTION stop();
"""


def test_a_claim_that_one_came_to_run_before_is_tried_again(two: Two) -> None:
    """What happens after a claim has looked and before it writes is refused by an index, and is nobody's error."""
    number = two.enqueue()
    with two.begin() as other:
        other.execute(STOPPED)
        other.commit()
        other.execute("SELECT pg_advisory_lock(1)")
        claim = jobs_claims.claim_jobs
        claiming = two.start(lambda c: autocommitted(c, lambda: claim(c, {GC: 1}, 1, "w", NOW)))
        other.execute(
            "INSERT INTO jobs (repo, type, state, priority, payload, run_at, created_at)"
            " VALUES (1, %s, 1, 0, '{}', now(), now())", (GC,),
        )  # fmt: skip
        other.commit()
        other.execute("SELECT pg_advisory_unlock(1)")
        assert claiming.result() == []
    assert two.job(number) == replace(two.job(number), state=JobState.PENDING, attempts=0, claim=None)


@pytest.mark.parametrize("claimed_first", [True, False])
def test_a_cancellation_that_meets_a_claim_leaves_neither_job_nor_claim(two: Two, claimed_first: bool) -> None:
    """Whichever comes first, the job is cancelled and nobody holds it."""
    number = two.enqueue()
    with two.begin() as first:
        if claimed_first:
            jobs_claims.claim_jobs(first, {GC: 1}, 1, "w", NOW)
            cancelling = two.start(jobs_operations.cancel_job, number, NOW)
            first.commit()
            assert cancelling.result() is True
        else:
            jobs_operations.cancel_job(first, number, NOW)
            assert two.run(jobs_claims.claim_jobs, {GC: 1}, 1, "w", NOW) == []
            first.commit()
    assert two.job(number).state is JobState.CANCELLED
    with two.begin() as looking:
        assert looking.execute("SELECT job FROM job_claims").fetchall() == []


def test_a_cancellation_that_meets_a_completion_comes_too_late(two: Two) -> None:
    """Done is done."""
    number = two.enqueue()
    claim = two.claim()
    with two.begin() as completing:
        complete(completing, claim, {}, NOW)
        cancelling = two.start(jobs_operations.cancel_job, number, NOW)
        completing.commit()
        assert cancelling.result() is False
    assert two.job(number).state is JobState.DONE
