"""``museworkd jobs``: what waits, runs and has failed, and an operator's hand in it. Works on the database directly."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import click
from rich.markup import escape

from museworkd.cli.guards import EXIT_USER, guarded
from museworkd.cli.job_following import (
    check_type,
    enqueue,
    exit_code,
    last_line,
    name_of,
    printable,
    progress_of,
    repositories_of,
    repository_number,
    say_end,
    seconds,
    shown,
    state_of,
)
from museworkd.cli.operator_commands import with_index
from museworkd.cli.output import emit, say, table_of
from museworkd.cli.server_options import config_options, load_config
from storage.environment import SystemEnvironment
from storage.index import Index
from storage.job_rows import LISTED_JOBS, Job, JobCounts, JobFilter, JobState
from storage.rows import Repository
from wire.errors import Code, Refusal, malformed

_STATES = {state.name.lower(): state for state in JobState}
_SHOWN = 50
_DETAIL_CHARACTERS = 60
Found = tuple[list[Job], dict[int, Repository]]


@click.group("jobs")
def jobs_group() -> None:
    """See and steer the work behind pushes; works beside running daemons."""


@jobs_group.command("list")
@click.option("--repo", "name", metavar="OWNER/NAME", help="Of one repository.")
@click.option("--deployment", is_flag=True, help="Of no repository.")
@click.option("--type", "type_", help="Of one type.")
@click.option("--state", "states", type=click.Choice(list(_STATES)), multiple=True, help="In one of some states.")
@click.option("--limit", type=click.IntRange(1, LISTED_JOBS), default=_SHOWN, show_default=True, help="The newest.")
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def jobs_list(
    name: str | None, deployment: bool, type_: str | None, states: tuple[str, ...], limit: int,
    config_file: Path | None, data_dir: str | None, database_url: str | None, settings: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """List jobs, oldest first."""
    config, _ = load_config(config_file, data_dir, database_url, settings)

    async def work(index: Index) -> Found:
        repo = await repository_number(index, name) if name or deployment else None
        wanted = frozenset(_STATES[state] for state in states) or None
        jobs = await index.list_jobs(JobFilter(repo, type_, wanted), limit)
        return jobs, await repositories_of(index, jobs)

    jobs, repositories = with_index(config, work)
    rows: list[list[object]] = [
        [
            job.number, job.type, name_of(job, repositories) or "-", state_of(job), job.attempts,
            job.created_at.isoformat(timespec="seconds"), _detail(job),
        ]
        for job in jobs
    ]  # fmt: skip
    columns = ["job", "type", "repository", "state", "attempts", "created", "detail"]
    emit({"jobs": [shown(job, repositories) for job in jobs]}, as_json, lambda: table_of(columns, rows))


@jobs_group.command("types")
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def jobs_types(
    config_file: Path | None, data_dir: str | None, database_url: str | None, settings: tuple[str, ...], as_json: bool
) -> None:
    """Count jobs by type and state; tells which types are paused, and since when the oldest job could run."""
    config, _ = load_config(config_file, data_dir, database_url, settings)

    async def work(index: Index) -> tuple[list[JobCounts], set[str]]:
        return await index.count_jobs(), await index.paused_types()

    counts, paused = with_index(config, work)
    rows = []
    for type_ in sorted({entry.type for entry in counts} | paused):
        of_type = [entry for entry in counts if entry.type == type_]
        oldest = min((entry.oldest for entry in of_type if entry.oldest is not None), default=None)
        rows.append({
            "type": type_, "paused": type_ in paused,
            **{state: sum(e.count for e in of_type if e.state is value) for state, value in _STATES.items()},
            "oldest": None if oldest is None else oldest.isoformat(),
        })  # fmt: skip
    columns = ["type", "paused", *_STATES, "oldest"]
    cells: list[list[object]] = [[_cell(value) for value in row.values()] for row in rows]
    emit({"types": rows}, as_json, lambda: table_of(columns, cells))


@jobs_group.command("show")
@click.argument("job", type=click.IntRange(1))
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def jobs_show(
    job: int, config_file: Path | None, data_dir: str | None, database_url: str | None, settings: tuple[str, ...],
    as_json: bool,
) -> None:  # fmt: skip
    """Show all there is to know of a job: who works on it, how far it is, its result or its error."""
    config, _ = load_config(config_file, data_dir, database_url, settings)

    async def work(index: Index) -> Found:
        found = await index.find_job(job)
        if found is None:
            raise Refusal(Code.NOT_FOUND, f"there is no job {job}")
        return [found], await repositories_of(index, [found])

    (found,), repositories = with_index(config, work)
    value = shown(found, repositories)
    emit(value, as_json, lambda: "\n".join(_lines(value)))


def _act(name: str, words: str, act: Callable[[Index, int], Awaitable[bool]], refused: str) -> Callable[..., None]:
    """Make a command that does something with jobs one by one."""

    @jobs_group.command(name, help=words)
    @click.argument("jobs", type=click.IntRange(1), nargs=-1, required=True, metavar="JOB...")
    @config_options
    @click.option("--json", "as_json", is_flag=True)
    @guarded
    def command(
        jobs: tuple[int, ...], config_file: Path | None, data_dir: str | None, database_url: str | None,
        settings: tuple[str, ...], as_json: bool,
    ) -> None:  # fmt: skip
        config, _ = load_config(config_file, data_dir, database_url, settings)

        async def work(index: Index) -> dict[int, bool]:
            return {number: await act(index, number) for number in jobs}

        done = with_index(config, work)
        worked = [number for number, well in done.items() if well]
        left = [number for number, well in done.items() if not well]
        emit({"done": worked, "refused": left}, as_json, lambda: "\n".join(f"{name}: job {n}" for n in worked))
        for number in left:
            say(f"error: job {number} {refused}")
        if left:
            raise SystemExit(EXIT_USER)

    return command


jobs_retry = _act(
    "retry", "Let jobs that failed or were cancelled wait again, with all attempts, and waiting ones run now.",
    lambda index, number: index.retry_job(number, SystemEnvironment().now()),
    "neither failed, nor was cancelled, nor waits",
)  # fmt: skip
jobs_cancel = _act(
    "cancel", "Cancel jobs that wait or run; one that runs is cut.",
    lambda index, number: index.cancel_job(number, SystemEnvironment().now()), "neither waits nor runs",
)  # fmt: skip
jobs_hold = _act(
    "hold", "Keep waiting jobs from being begun.", lambda index, number: index.hold_job(number, True), "does not wait"
)
jobs_release = _act(
    "release", "Let held jobs go.", lambda index, number: index.hold_job(number, False), "does not wait"
)


@jobs_group.command("run")
@click.argument("type_", metavar="TYPE")
@click.argument("name", metavar="[OWNER/NAME]", required=False)
@click.option("--payload", default="{}", help="JSON that its handler understands.")
@click.option("--wait", is_flag=True, help="Follow the job to its end.")
@click.option("--wait-s", type=float, callback=seconds, default=3600.0, show_default=True, help="For so long at most.")
@config_options
@click.option("--json", "as_json", is_flag=True)
@guarded
def jobs_run(
    type_: str, name: str | None, payload: str, wait: bool, wait_s: float, config_file: Path | None,
    data_dir: str | None, database_url: str | None, settings: tuple[str, ...], as_json: bool,
) -> None:  # fmt: skip
    """Enqueue a job of a type for a repository, or for the deployment, before all others.

    With --wait the exit code is 0 when it is done, 1 when it was cancelled, and 3 when it failed or took too long.
    """
    check_type(type_)
    members = _payload(payload)
    config, _ = load_config(config_file, data_dir, database_url, settings)

    async def work(index: Index) -> Found:
        repo = await repository_number(index, name)
        job = await enqueue(index, repo, type_, members, wait_s if wait else None)
        return [job], await repositories_of(index, [job])

    (job,), repositories = with_index(config, work)
    value = shown(job, repositories)
    emit(value, as_json, lambda: "\n".join(_lines(value)) if wait else f"job {job.number} waits")
    say_end(job, wait)
    raise SystemExit(exit_code(job, wait))


def _pausing(name: str, words: str, paused: bool) -> Callable[..., None]:
    @jobs_group.command(name, help=words)
    @click.argument("types", nargs=-1, required=True, metavar="TYPE...")
    @config_options
    @click.option("--json", "as_json", is_flag=True)
    @guarded
    def command(
        types: tuple[str, ...], config_file: Path | None, data_dir: str | None, database_url: str | None,
        settings: tuple[str, ...], as_json: bool,
    ) -> None:  # fmt: skip
        config, _ = load_config(config_file, data_dir, database_url, settings)

        async def work(index: Index) -> list[str]:
            already = await index.paused_types()
            for type_ in types:
                if type_ not in already:  # one whose package is gone can still be resumed
                    check_type(type_)
            for type_ in types:
                await index.pause_type(type_, paused)
            return sorted(await index.paused_types())

        now = with_index(config, work)
        emit({"paused": now}, as_json, lambda: f"paused: {', '.join(now) or 'none'}")

    return command


jobs_pause = _pausing("pause", "Keep jobs of some types from being begun, in all daemons; running ones go on.", True)
jobs_resume = _pausing("resume", "Let jobs of paused types be begun again.", False)


def _cell(value: object) -> object:
    if value is None or value is False:
        return "-"
    return "yes" if value is True else value


def _payload(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise malformed("a payload is a JSON object")
    return value


def _detail(job: Job) -> str:
    """Give what matters most of a job in a few words, safe for a terminal."""
    words = {
        JobState.RUNNING: progress_of(job),
        JobState.FAILED: last_line(job.error),
        JobState.PENDING: last_line(job.error) if job.attempts else "",
    }.get(job.state, "")
    return escape(printable(words)[:_DETAIL_CHARACTERS])


def _lines(value: dict[str, object]) -> list[str]:
    """Give a line for each fact, the error last."""
    width = max(len(name) for name in value)
    facts = [(name, fact) for name, fact in value.items() if fact is not None and name != "error"]
    lines = [f"{name:<{width}}  {json.dumps(fact) if isinstance(fact, dict) else fact}" for name, fact in facts]
    error = value.get("error")
    if isinstance(error, str):
        lines += ["error", *(f"  {printable(line)}" for line in error.splitlines())]
    return lines
