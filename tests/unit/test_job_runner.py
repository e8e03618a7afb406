"""What an attempt at a job comes to: recorded once, under its claim, with counts and timings. Under a mock clock."""

from __future__ import annotations

import datetime as dt

import pytest
import trio
import trio.testing

from actors.jobs.handler import ClaimLost, JobContext, JobObsolete, JobRefused
from storage.errors import IndexUnavailable, StoreUnavailable
from storage.job_rows import DEPLOYMENT, ERROR_MOST, JobState, NewJob
from storage.memory.index import MemoryIndex
from tests.job_workers import Scripted, Worker, ended, job_services, working


async def enqueue(index: MemoryIndex, *types: str, repo: int = DEPLOYMENT) -> list[int]:
    return await index.enqueue_jobs(repo, [NewJob(type_) for type_ in types], job_services(index).environment.now())


async def phases(context: JobContext) -> dict[str, object]:
    with context.phase("object_refs"):
        await trio.sleep(0.25)
    await context.progress("refs", 3, 4)
    return {"objects": 4}


async def test_a_result_has_the_counts_and_a_timing_for_each_phase(
    memory_index: MemoryIndex, logs: list[dict], autojump_clock: trio.testing.MockClock
) -> None:
    (number,) = await enqueue(memory_index, "a")
    async with working(job_services(memory_index), {"a": Scripted(phases)}) as worker:
        job = await ended(memory_index, number)
    assert job.state is JobState.DONE
    assert job.result == {"objects": 4, "object_refs_ms": pytest.approx(250), "elapsed_ms": pytest.approx(250)}
    (line,) = [entry for entry in logs if entry["event"] == "job"]
    assert (line["type"], line["outcome"], line["job"], line["attempt"]) == ("a", "done", number, 1)
    assert line["result"] == job.result
    assert worker.outcomes() == [("a", "done")]
    assert worker.seen[0].timings["object_refs_ms"] == pytest.approx(250)


@pytest.mark.parametrize("error", [RuntimeError("broken"), StoreUnavailable("away"), KeyError("k\0")])
async def test_a_job_is_tried_three_times_with_growing_pauses_and_keeps_its_traceback(
    memory_index: MemoryIndex, error: Exception, autojump_clock: trio.testing.MockClock
) -> None:
    handler, began = Scripted(error, error, error), []

    async def noting(context: JobContext) -> object:
        began.append(trio.current_time())
        return await handler(context)

    (number,) = await enqueue(memory_index, "a")
    async with working(job_services(memory_index, retry_s=10, poll_s=0.1), {"a": noting}) as worker:
        job = await ended(memory_index, number)
    assert (job.state, job.attempts, len(began)) == (JobState.FAILED, 3, 3)
    assert 7 <= began[1] - began[0] <= 14
    assert 30 <= began[2] - began[1] <= 52
    assert job.error is not None
    assert "Traceback" in job.error
    assert "in noting" in job.error
    assert "\0" not in job.error
    assert [outcome for _, outcome in worker.outcomes()] == ["again", "again", "failed"]


async def test_a_long_traceback_keeps_its_end(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    (number,) = await enqueue(memory_index, "a")
    handler = Scripted(JobRefused("x" * 2 * ERROR_MOST + "the end"))
    async with working(job_services(memory_index), {"a": handler}):
        job = await ended(memory_index, number)
    assert job.error is not None
    assert len(job.error) == ERROR_MOST
    assert job.error.endswith("the end")


@pytest.mark.parametrize(
    ("raised", "state", "attempts"),
    [
        (JobRefused("no such thing"), JobState.FAILED, 1),
        (ExceptionGroup("nursery", [JobRefused("one"), JobRefused("two")]), JobState.FAILED, 1),
        (JobObsolete(), JobState.DONE, 1),
        (ExceptionGroup("nursery", [ExceptionGroup("inner", [JobObsolete()])]), JobState.DONE, 1),
        (ExceptionGroup("nursery", [JobObsolete(), KeyError("bug")]), JobState.FAILED, 3),
    ],
)  # fmt: skip
async def test_an_exception_says_what_a_job_comes_to(
    memory_index: MemoryIndex, raised: Exception, state: JobState, attempts: int, autojump_clock: trio.testing.MockClock
) -> None:
    (number,) = await enqueue(memory_index, "a")
    async with working(job_services(memory_index, poll_s=1), {"a": Scripted(*[raised] * 3)}):
        job = await ended(memory_index, number)
    assert (job.state, job.attempts) == (state, attempts)
    if state is JobState.DONE:
        assert job.result is not None
        assert job.result["obsolete"] is True
    else:
        assert job.error


@pytest.mark.parametrize("result", [{"a": float("nan")}, {"a": {1, 2}}, {"a": "nul\0"}, {"a": "x" * 300_000}])
async def test_a_result_that_no_index_can_keep_fails_the_job(
    memory_index: MemoryIndex, result: dict[str, object], autojump_clock: trio.testing.MockClock
) -> None:
    (number,) = await enqueue(memory_index, "a")
    async with working(job_services(memory_index, poll_s=1), {"a": Scripted(*[result] * 3)}):
        job = await ended(memory_index, number)
    assert job.state is JobState.FAILED


async def test_a_job_of_a_repository_that_is_gone_is_obsolete(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    async def of_repository(context: JobContext) -> dict[str, object]:
        return {"slug": (await context.repository()).slug}

    numbers = [*await enqueue(memory_index, "a", repo=77), *await enqueue(memory_index, "b")]
    handlers = {"a": of_repository, "b": of_repository}
    async with working(job_services(memory_index), handlers):
        of_nobody, of_deployment = [await ended(memory_index, number) for number in numbers]
    assert of_nobody.state is JobState.DONE
    assert of_nobody.result is not None
    assert of_nobody.result["obsolete"] is True
    assert of_deployment.state is JobState.FAILED


async def test_what_a_job_keeps_is_there_for_its_next_attempt(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    async def keeping(context: JobContext) -> dict[str, object]:
        await context.keep_state({"cursor": "m"})
        raise RuntimeError("broken")

    async def going_on(context: JobContext) -> dict[str, object]:
        return {"began_at": context.job.state["cursor"]}

    (number,) = await enqueue(memory_index, "a")
    async with working(job_services(memory_index, poll_s=1), {"a": Scripted(keeping, going_on)}):
        job = await ended(memory_index, number)
    assert job.result is not None
    assert job.result["began_at"] == "m"


class Flaky(MemoryIndex):
    """An index that is away for a while, and whose answers may be lost although it did what was asked."""

    away = 0
    lose_answers = 0

    async def complete_job(self, *arguments: object) -> bool:
        await trio.lowlevel.checkpoint()
        if self.away:
            self.away -= 1
            raise IndexUnavailable("away")
        done = await super().complete_job(*arguments)  # type: ignore[arg-type]
        if self.lose_answers:
            self.lose_answers -= 1
            raise IndexUnavailable("the answer was lost")
        return done


@pytest.mark.parametrize(("away", "lose_answers"), [(5, 0), (0, 2), (3, 1)])
async def test_F12_an_end_is_recorded_once_however_often_it_has_to_be_said(
    away: int, lose_answers: int, autojump_clock: trio.testing.MockClock
) -> None:
    index = Flaky()
    index.away, index.lose_answers = away, lose_answers
    handler = Scripted({"n": 1})
    (number,) = await enqueue(index, "a")
    async with working(job_services(index), {"a": handler}) as worker:
        await ended(index, number)
        await trio.sleep(60)
    assert worker.outcomes() == [("a", "done")]
    assert len(handler.begun) == 1


async def test_an_end_that_cannot_be_recorded_leaves_the_job_to_recovery(
    autojump_clock: trio.testing.MockClock,
) -> None:
    index = Flaky()
    index.away = 1_000_000
    (number,) = await enqueue(index, "a")
    async with working(job_services(index, stale_s=60, poll_s=1), {"a": Scripted()}) as worker:
        await trio.sleep(70)
        assert worker.outcomes() == [("a", "unrecorded")]
        index.away = 0
        job = await ended(index, number)
    assert (job.state, job.attempts) == (JobState.DONE, 2)


async def cut_by(worker: Worker, handler: Scripted) -> None:
    await handler.started.wait()
    with trio.fail_after(30):
        while not worker.seen:
            await trio.sleep(0.1)


async def test_a_cancelled_job_is_cut_at_once(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    handler = Scripted(lambda _: trio.sleep_forever())
    (number,) = await enqueue(memory_index, "a")
    services = job_services(memory_index)
    async with working(services, {"a": handler}) as worker:
        await handler.started.wait()
        await trio.sleep(2)
        cancelled_at = trio.current_time()
        assert await memory_index.cancel_job(number, services.environment.now())
        await cut_by(worker, handler)
        assert trio.current_time() - cancelled_at < 2
        assert len(worker.work.runs) == 0
    assert (worker.outcomes(), handler.cut) == ([("a", "lost")], 1)
    job = await memory_index.find_job(number)
    assert job is not None
    assert job.state is JobState.CANCELLED


async def test_a_handler_that_learns_of_it_itself_ends_quietly(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    async def losing(context: JobContext) -> dict[str, object]:
        await memory_index.cancel_job(context.job.claim.job, context.services.environment.now())
        with pytest.raises(ClaimLost):
            await context.keep_state({"a": 1})
        await context.keep_state({"a": 1})
        return {}

    handler = Scripted(losing)
    await enqueue(memory_index, "a")
    async with working(job_services(memory_index), {"a": handler}) as worker:
        await cut_by(worker, handler)
    assert worker.outcomes() == [("a", "lost")]


async def test_a_mix_of_cancellation_and_errors_in_a_handlers_nursery_leaves_no_claim(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    async def stubborn() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise RuntimeError("while it was cut")

    async def nursing(_context: JobContext) -> dict[str, object]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stubborn)
            nursery.start_soon(trio.sleep_forever)
        return {}

    handler = Scripted(nursing)
    (number,) = await enqueue(memory_index, "a")
    services = job_services(memory_index)
    async with working(services, {"a": handler}) as worker:
        await handler.started.wait()
        await memory_index.cancel_job(number, services.environment.now() + dt.timedelta(seconds=1))
        await cut_by(worker, handler)
        assert len(worker.work.runs) == 0
    assert worker.outcomes() == [("a", "lost")]


async def test_progress_is_seen_while_a_job_runs(
    memory_index: MemoryIndex, autojump_clock: trio.testing.MockClock
) -> None:
    async def telling(context: JobContext) -> dict[str, object]:
        await context.progress("reading", 10, 40)
        await trio.sleep(30)
        return {}

    (number,) = await enqueue(memory_index, "a")
    async with working(job_services(memory_index, stale_s=60), {"a": telling}):
        await trio.sleep(10)
        job = await memory_index.find_job(number)
        assert job is not None
        assert job.claim is not None
        assert job.claim.progress is not None
        assert (job.claim.progress.stage, job.claim.progress.done, job.claim.progress.total) == ("reading", 10, 40)
        await ended(memory_index, number)
