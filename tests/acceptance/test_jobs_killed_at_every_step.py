"""F20: SIGKILL of a worker at every step of every handler; another worker ends the job, and nothing is lost by it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from storage.environment import SystemEnvironment
from storage.index import Index
from storage.job_rows import DEPLOYMENT, JobFilter, JobState, NewJob
from tests.deployments import deployed
from tests.dying_worker import Life, Lives, dying_worker
from tests.growing import WAYS, Growing, another_repository
from tests.servers import Server
from tests.stepping import Moment, Step, steps_of
from wire.ids import Scheme, parse_id

Effect = Callable[[Server, int, bytes], Awaitable[bool]]
OF_DEPLOYMENT: dict[str, dict[str, object]] = {"gc": {"keep_s": 0}, "scrub": {}}
CALLS_OF_A_NAME = 2
"""A call that comes again and again does so with more of the same."""
LOOKING = {
    "cached_contents", "oldest_cached", "packs_after", "last_commits", "kept_prebuilt", "unvisited", "reached",
    "sweepable", "repositories_numbered", "repository_bytes", "repository_places", "stored_after",
    "count_cached", "beat_claims", "claims_of",
}  # fmt: skip
"""Calls that change nothing, beside those of ``stepping.READING``; and heartbeats, which come when they come.

Between two writes nothing changes that outlives a process: to die there is to die before the second.
"""


async def _nothing(_server: Server, _repo: int, _head: bytes) -> bool:
    """What it does can be seen by what the repository has, as it is cloned, and by nothing else."""
    return True


async def _promoted(server: Server, _repo: int, _head: bytes) -> bool:
    return await server.services.index.count_cached() == (0, 0)


async def _prebuilt(server: Server, repo: int, head: bytes) -> bool:
    index, environment = server.services.index, server.services.environment
    return await index.find_prebuilt(repo, [head], environment.now()) is not None


def _line(type_: str) -> Effect:
    async def look(server: Server, repo: int, head: bytes) -> bool:
        line = await server.services.index.find_line(repo, type_, "main")
        return line is not None and line.standing.commit_id == head and line.standing.target_id is None

    return look


async def _sound(server: Server, _repo: int, _head: bytes) -> bool:
    return await server.services.index.list_findings(10) == []


HANDLERS: dict[str, tuple[str, str, Effect]] = {
    "mpack.index": ("mpack", "complete_pack", _nothing),
    "content.promote": ("stream", "promote_cached", _promoted),
    "fetch.mpack.prebuild": ("stream", "add_prebuilt", _prebuilt),
    "push.file_last_commits": ("stream", "write_line", _line("push.file_last_commits")),
    "intel.structural": ("stream", "write_line", _line("intel.structural")),
    "profile.snapshot": ("stream", "write_line", _line("profile.snapshot")),
    "mpack.gc": ("stream", "move_places", _nothing),
    "gc": ("mpack", "mark_suspects", _nothing),
    "scrub": ("mpack", "forget_findings", _sound),
}
"""Type → by which way pushes come that give it work, a call it has to make, and what is to be seen of its work."""


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lives]:
    with dying_worker(tmp_path_factory.mktemp("lives")) as running:
        yield running


@pytest.mark.parametrize("type_", HANDLERS)
async def test_F20_a_job_killed_at_any_step_is_ended_by_another_worker(
    lives: Lives, tmp_path: Path, database_url: str, type_: str
) -> None:
    way, call, seen = HANDLERS[type_]
    loose = {"limits__content_cache_object_bytes": 0} if type_ == "mpack.gc" else {}
    async with deployed(database_url, tmp_path, **loose) as server:
        repository = await server.make_repository(slug="x")
        await server.make_repository(slug="other")
        await another_repository(server)
        index, branch = server.services.index, Growing("x")
        live = partial(lives.live, tmp_path / "store", database_url, type_)
        await branch.push(server, WAYS[way])
        await _give_work(index, type_, repository.number)
        life = await live(None)
        assert life.outcome == "done", lives.log[-3000:]
        met: list[Step] = []
        for step in _steps(life.calls):
            await branch.push(server, WAYS[way])
            await _give_work(index, type_, repository.number)
            died = await live(step)
            if died.killed:
                met.append(step)
                await _end(index, live, type_)
            await _is_done(index, type_)
            assert branch.head is not None
            assert await seen(server, repository.number, parse_id(branch.head, Scheme.TYPED)), step
        await branch.is_whole(server, index)
        assert {"claim_jobs", "complete_job", call} <= {step.call for step in met}
        assert "Traceback" not in lives.log


def _steps(calls: list[str]) -> list[Step]:
    """Give before what a worker is to die: every call that changes something, of one that repeats the first ones."""
    before = [
        step for step in steps_of(calls, Moment.BEFORE, writing=True)
        if step.number <= CALLS_OF_A_NAME and step.call not in {*LOOKING, "claim_jobs"}
    ]  # fmt: skip
    return [Step("claim_jobs", 1, Moment.AFTER), *before, Step("complete_job", 1, Moment.AFTER)]


async def _give_work(index: Index, type_: str, repo: int) -> None:
    """What pushes do not enqueue comes by cron."""
    if type_ in OF_DEPLOYMENT:
        new = NewJob(type_, 0, OF_DEPLOYMENT[type_])
        await index.enqueue_jobs(DEPLOYMENT, [new], SystemEnvironment().now())
    if type_ == "mpack.gc":  # not once an hour
        await index.enqueue_jobs(repo, [NewJob(type_, 0, {"now": True})], SystemEnvironment().now())


async def _end(index: Index, live: Callable[[Step | None], Awaitable[Life]], type_: str) -> None:
    now = SystemEnvironment().now()
    await index.recover_stale(now, 0, 0, 10)
    waiting = await index.list_jobs(JobFilter(type=type_, states=frozenset({JobState.PENDING})), 10)
    if waiting:
        life = await live(None)
        assert life.outcome == "done"


async def _is_done(index: Index, type_: str) -> None:
    (job,) = (await index.list_jobs(JobFilter(type=type_), 1))[-1:]
    assert (job.state, job.attempts <= 2) == (JobState.DONE, True), job
