"""``museworkd jobs``, ``gc`` and ``scrub``: what an operator sees of jobs, and may do with them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from click.testing import CliRunner, Result

from museworkd.cli.jobs_commands import jobs_group
from museworkd.cli.upkeep_commands import gc_command, scrub_command
from storage.environment import SystemEnvironment
from storage.job_rows import JobFilter, JobProgress, JobState, NewJob
from storage.postgres.index import PostgresIndex
from storage.rows import NewRepository, RepositorySettings, Visibility

COMMANDS = {"jobs": jobs_group, "gc": gc_command, "scrub": scrub_command}
NOW = SystemEnvironment().now()


@pytest.fixture
def options(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The commands set up a process of their own; this one stays as it was."""
    monkeypatch.setattr("museworkd.cli.operator_commands.configure", lambda *_: None)
    umask = os.umask(0o022)
    yield ["--data-dir", str(tmp_path / "data"), "--database-url", database_url]
    os.umask(umask)


class Operator:
    """Calls commands without a process of its own, beside an index that is open."""

    def __init__(self, options: list[str]) -> None:
        self._options = options

    async def call(self, *arguments: str, code: int = 0) -> Result:
        name, *rest = arguments
        done = await trio.to_thread.run_sync(CliRunner().invoke, COMMANDS[name], [*rest, *self._options])
        assert done.exit_code == code, (arguments, done.output, done.exception)
        return done

    async def json(self, *arguments: str, code: int = 0) -> dict:
        return json.loads((await self.call(*arguments, "--json", code=code)).stdout)


@pytest.fixture
def operator(options: list[str]) -> Operator:
    return Operator(options)


async def make_repository(index: PostgresIndex, slug: str = "x") -> int:
    environment = SystemEnvironment()
    new = NewRepository(environment.uuid(), "ada", slug, Visibility.PRIVATE, "main", "code", NOW, RepositorySettings())
    made = await index.create_repository(new)
    assert made is not None
    return made.number


async def enqueue(index: PostgresIndex, repo: int, *types: str) -> list[int]:
    return await index.enqueue_jobs(repo, [NewJob(type_) for type_ in types], NOW)


async def test_jobs_are_listed_with_what_is_known_of_each(postgres_index: PostgresIndex, operator: Operator) -> None:
    repo = await make_repository(postgres_index)
    running, failing = await enqueue(postgres_index, repo, "a", "b")
    (waiting,) = await enqueue(postgres_index, 0, "c")
    claimed = await postgres_index.claim_jobs({"a": 1, "b": 1}, 2, "worker one", NOW)
    claims = {job.type: job.claim for job in claimed}
    await postgres_index.beat_claims({claims["a"]: JobProgress("reading", 3, 9)}, NOW)
    await postgres_index.fail_job(claims["b"], "Traceback\n  in run\nKeyError: 'x\x1b[31m'", NOW, None)

    rows = {row["job"]: row for row in (await operator.json("jobs", "list"))["jobs"]}
    assert {n: (r["type"], r["repository"], r["state"], r["attempts"]) for n, r in rows.items()} == {
        running: ("a", "ada/x", "running", 1), failing: ("b", "ada/x", "failed", 1), waiting: ("c", None, "pending", 0),
    }  # fmt: skip
    assert rows[running]["progress"] == {"stage": "reading", "done": 3, "total": 9}
    assert rows[running]["worker"] == "worker one"
    table = (await operator.call("jobs", "list")).stdout
    assert "reading 3/9" in table
    assert "KeyError" in table
    assert "\x1b[31m" not in table
    shown = (await operator.call("jobs", "show", str(failing))).stdout
    assert "in run" in shown
    assert "\x1b" not in shown
    assert "no job 999" in (await operator.call("jobs", "show", "999", code=1)).stderr


@pytest.mark.parametrize(
    ("arguments", "types"),
    [
        ([], ["a", "b", "c"]), (["--repo", "ada/x"], ["a", "b"]), (["--deployment"], ["c"]), (["--type", "b"], ["b"]),
        (["--state", "pending"], ["b", "c"]), (["--state", "running", "--state", "pending"], ["a", "b", "c"]),
        (["--limit", "1"], ["c"]), (["--type", "none"], []),
    ],
)  # fmt: skip
async def test_a_list_can_be_filtered(
    postgres_index: PostgresIndex, operator: Operator, arguments: list[str], types: list[str]
) -> None:
    await enqueue(postgres_index, await make_repository(postgres_index), "a", "b")
    await enqueue(postgres_index, 0, "c")
    await postgres_index.claim_jobs({"a": 1}, 1, "w", NOW)
    assert [row["type"] for row in (await operator.json("jobs", "list", *arguments))["jobs"]] == types


async def test_a_job_of_a_repository_that_is_gone_is_still_listed(
    postgres_index: PostgresIndex, operator: Operator
) -> None:
    repo = await make_repository(postgres_index)
    await enqueue(postgres_index, repo, "a")
    await postgres_index.delete_repository(repo, NOW)
    assert [row["repository"] for row in (await operator.json("jobs", "list"))["jobs"]] == [f"#{repo}"]


async def test_jobs_are_held_released_cancelled_and_retried(postgres_index: PostgresIndex, operator: Operator) -> None:
    (number,) = await enqueue(postgres_index, 0, "a")

    async def state() -> str:
        return (await operator.json("jobs", "show", str(number)))["state"]

    for command, after in [("hold", "held"), ("release", "pending"), ("cancel", "cancelled"), ("retry", "pending")]:
        assert await operator.json("jobs", command, str(number)) == {"done": [number], "refused": []}
        assert await state() == after
    await operator.call("jobs", "cancel", str(number))
    for command in ("hold", "release", "cancel"):
        done = await operator.call("jobs", command, str(number), "999", code=1)
        assert f"job {number} " in done.stderr
        assert "job 999 " in done.stderr
        assert await state() == "cancelled"


async def test_types_are_paused_and_resumed_and_counted(postgres_index: PostgresIndex, operator: Operator) -> None:
    for repo in (1, 2, 3):
        await enqueue(postgres_index, repo, "gc", "scrub")
    assert await operator.json("jobs", "pause", "gc") == {"paused": ["gc"]}
    assert await postgres_index.claim_jobs({"gc": 9}, 9, "w", NOW) == []
    rows = {row["type"]: row for row in (await operator.json("jobs", "types"))["types"]}
    assert (rows["gc"]["paused"], rows["gc"]["pending"], rows["scrub"]["paused"]) == (True, 3, False)
    await operator.call("jobs", "types")
    assert await operator.json("jobs", "resume", "gc") == {"paused": []}
    assert "there are no jobs 'gcc'" in (await operator.call("jobs", "pause", "gcc", code=1)).stderr


async def test_run_enqueues_a_job_before_all_others(postgres_index: PostgresIndex, operator: Operator) -> None:
    repo = await make_repository(postgres_index)
    await enqueue(postgres_index, repo, "gc")
    row = await operator.json("jobs", "run", "scrub", "--payload", '{"prefix": "records"}')
    assert (row["type"], row["repository"], row["payload"]) == ("scrub", None, {"prefix": "records"})
    row = await operator.json("jobs", "run", "mpack.gc", "ada/x")
    assert row["repository"] == "ada/x"
    claimed = await postgres_index.claim_jobs({"gc": 1, "scrub": 1, "mpack.gc": 1}, 2, "w", SystemEnvironment().now())
    assert {job.type for job in claimed} == {"scrub", "mpack.gc"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scrubb"], "there are no jobs 'scrubb'"), (["scrub", "ada/nowhere"], "no repository ada/nowhere"),
        (["scrub", "ada"], "OWNER/NAME"), (["scrub", "--payload", "[1]"], "JSON object"),
        (["scrub", "--payload", "{"], "JSON object"),
    ],
)  # fmt: skip
async def test_run_refuses_what_makes_no_sense(
    postgres_index: PostgresIndex, operator: Operator, arguments: list[str], words: str
) -> None:
    assert words in (await operator.call("jobs", "run", *arguments, code=1)).stderr
    assert await postgres_index.list_jobs(JobFilter(), 10) == []


@pytest.mark.parametrize(
    ("ending", "code", "state"), [("done", 0, "done"), ("failed", 3, "failed"), ("cancelled", 1, "cancelled")]
)
async def test_who_waits_for_a_job_hears_how_far_it_is_and_how_it_ends(
    postgres_index: PostgresIndex, operator: Operator, ending: str, code: int, state: str
) -> None:
    results: list[Result] = []

    async def follow() -> None:
        results.append(await operator.call("scrub", "--now", "--wait", "--json", code=code))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow)
        with trio.fail_after(30):
            while not (claimed := await postgres_index.claim_jobs({"scrub": 1}, 1, "w", SystemEnvironment().now())):
                await trio.sleep(0.02)
        claim, now = claimed[0].claim, SystemEnvironment().now()
        await postgres_index.beat_claims({claim: JobProgress("packs", 5, 7)}, now)
        if ending == "done":
            await postgres_index.complete_job(claim, {"objects": 7}, now)
        elif ending == "failed":
            await postgres_index.fail_job(claim, "Traceback\nKeyError: 1", now, None)
        else:
            await postgres_index.cancel_job(claim.job, now)
    assert json.loads(results[0].stdout)["state"] == state
    assert "scrub" in results[0].stderr


async def test_who_waits_does_so_for_a_limited_time(postgres_index: PostgresIndex, operator: Operator) -> None:
    done = await operator.call("gc", "--wait", "--wait-s", "0.05", code=3)
    assert "is still pending" in done.stderr
    await operator.call("gc", "--wait", "--wait-s", "0", code=2)


async def test_a_collection_is_enqueued_as_it_was_asked_for(postgres_index: PostgresIndex, operator: Operator) -> None:
    repo = await make_repository(postgres_index)
    await operator.call("gc")
    await operator.call("gc", "ada/x", "--now", "--dry-run", "--until-deleted")
    jobs = await postgres_index.list_jobs(JobFilter(), 10)
    assert {(job.repo, job.type): dict(job.payload) for job in jobs} == {
        (0, "gc"): {"dry_run": False}, (repo, "gc"): {"dry_run": True, "keep_s": 0, "wait": True},
    }  # fmt: skip


async def test_a_collection_tells_when_what_it_took_is_deleted(
    postgres_index: PostgresIndex, operator: Operator
) -> None:
    """Not at once, however it was asked for; where nothing was taken there is nothing to tell."""
    for result, told in [
        ({"released_bytes": 7, "dry_run": False}, True), ({"released_bytes": 7, "dry_run": True}, False),
        ({"released_bytes": 0, "dry_run": False}, False),
    ]:  # fmt: skip
        found: list[str] = []

        async def follow(found: list[str] = found) -> None:
            found.append((await operator.call("gc", "--now", "--wait")).stdout)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            with trio.fail_after(30):
                while not (claimed := await postgres_index.claim_jobs({"gc": 1}, 1, "w", SystemEnvironment().now())):
                    await trio.sleep(0.02)
            await postgres_index.complete_job(claimed[0].claim, result, SystemEnvironment().now())
        assert ("held for 2 h" in found[0]) is told, found


async def test_the_last_scrub_is_shown(postgres_index: PostgresIndex, operator: Operator) -> None:
    assert (await operator.json("scrub"))["scrub"] is None
    await operator.call("scrub", "--now")
    claimed = await postgres_index.claim_jobs({"scrub": 1}, 1, "w", SystemEnvironment().now())
    await postgres_index.complete_job(claimed[0].claim, {"objects": 7, "damaged": 0}, SystemEnvironment().now())
    assert (await operator.json("scrub"))["scrub"]["result"] == {"objects": 7, "damaged": 0}
    assert "damaged: 0" in (await operator.call("scrub")).stdout
    (job,) = await postgres_index.list_jobs(JobFilter(), 10)
    assert job.state is JobState.DONE
