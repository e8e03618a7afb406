"""Enqueueing a job for an operator and, if wished, following it to its end; and how a job is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points

import click
import trio

from actors.jobs.builtin import BUILT_IN
from actors.jobs.registry import ENTRY_POINTS
from museworkd.cli.guards import EXIT_INTEGRITY, EXIT_OK, EXIT_USER
from museworkd.cli.operator_commands import repository_name
from museworkd.cli.output import say
from storage.environment import SystemEnvironment
from storage.index import Index
from storage.job_rows import DEPLOYMENT, Job, JobState, NewJob
from storage.rows import Repository
from wire.errors import Code, Refusal, malformed

LOOK_EVERY_S = 0.3
WAIT_MOST_S = 30 * 86_400.0
_ENDED = {JobState.DONE, JobState.FAILED, JobState.CANCELLED}


def known_types() -> list[str]:
    """Name the types of jobs there are handlers for here."""
    return sorted({*BUILT_IN, *(entry.name for entry in entry_points(group=ENTRY_POINTS))})


def check_type(type_: str) -> str:
    """Refuse a type nobody would do."""
    if type_ not in known_types():
        raise malformed(f"there are no jobs {type_!r}; there are {', '.join(known_types())}")
    return type_


async def repository_number(index: Index, name: str | None) -> int:
    """Find what a job is for: a repository, or without a name the deployment."""
    if name is None:
        return DEPLOYMENT
    owner, slug = repository_name(name)
    found = await index.find_repository(owner, slug)
    if found is None:
        raise Refusal(Code.NOT_FOUND, f"there is no repository {owner}/{slug}")
    return found.number


async def enqueue(index: Index, repo: int, type_: str, payload: Mapping[str, object], wait_s: float | None) -> Job:
    """Enqueue a job before all others, and follow it for up to ``wait_s`` seconds; gives it as it stands then."""
    (number,) = await index.enqueue_jobs(repo, [NewJob(type_, -1, payload)], SystemEnvironment().now())
    if wait_s is None:
        return await _found(index, number)
    return await _follow(index, number, wait_s)


def exit_code(job: Job, followed: bool) -> int:
    """Give 0 for a job that is done or only had to be enqueued, 1 for a cancelled one, 3 for one that is not done."""
    if not followed or job.state is JobState.DONE:
        return EXIT_OK
    return EXIT_USER if job.state is JobState.CANCELLED else EXIT_INTEGRITY


def say_end(job: Job, followed: bool) -> None:
    """Tell a person how a job ended that was to be followed."""
    if job.state is JobState.FAILED:
        say(f"error: job {job.number} failed: {last_line(job.error)}")
    elif job.state is JobState.CANCELLED:
        say(f"error: job {job.number} was cancelled")
    elif followed and job.state is not JobState.DONE:
        say(f"error: job {job.number} is still {state_of(job)}; `museworkd jobs show {job.number}` tells more")


def seconds(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Check an option that is a time to wait."""
    if value is not None and not 0 < value <= WAIT_MOST_S:
        raise click.BadParameter("a time above 0 of up to 30 days", context, parameter)
    return value


def state_of(job: Job) -> str:
    """Give a job's state in a word."""
    return "held" if job.held else job.state.name.lower()


def last_line(error: str | None) -> str:
    """Give what a traceback comes to."""
    return printable((error or "").strip().rpartition("\n")[2][:200])


def printable(text: str) -> str:
    """Keep what a job has met from steering an operator's terminal (threat T26)."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def progress_of(job: Job) -> str:
    """Give how far a running job is."""
    progress = job.claim.progress if job.claim is not None else None
    if progress is None:
        return ""
    counts = "" if not (progress.done or progress.total) else f" {progress.done}"
    return f"{printable(progress.stage)}{counts}{'' if progress.total is None else f'/{progress.total}'}"


def shown(job: Job, repositories: Mapping[int, Repository]) -> dict[str, object]:
    """Give a job as ``--json`` shows it."""
    claim = job.claim
    progress = claim.progress if claim is not None else None
    return {
        "job": job.number,
        "type": job.type,
        "repository": name_of(job, repositories),
        "state": state_of(job),
        "priority": job.priority,
        "attempts": job.attempts,
        "payload": dict(job.payload),
        "created_at": job.created_at.isoformat(),
        "run_at": job.run_at.isoformat(),
        "finished_at": None if job.finished_at is None else job.finished_at.isoformat(),
        "worker": None if claim is None else claim.worker,
        "claimed_at": None if claim is None else claim.claimed_at.isoformat(),
        "heartbeat_at": None if claim is None else claim.heartbeat_at.isoformat(),
        "progress": None
        if progress is None
        else {"stage": progress.stage, "done": progress.done, "total": progress.total},
        "result": None if job.result is None else dict(job.result),
        "error": job.error,
    }


def name_of(job: Job, repositories: Mapping[int, Repository]) -> str | None:
    """Name a job's repository: ``None`` for the deployment, a number for one that is gone."""
    if job.repo == DEPLOYMENT:
        return None
    found = repositories.get(job.repo)
    return f"#{job.repo}" if found is None else f"{found.owner}/{found.slug}"


async def repositories_of(index: Index, jobs: Sequence[Job]) -> dict[int, Repository]:
    """Find the repositories of jobs."""
    numbers = sorted({job.repo for job in jobs} - {DEPLOYMENT})
    return await index.repositories_numbered(numbers) if numbers else {}


async def _found(index: Index, number: int) -> Job:
    job = await index.find_job(number)
    if job is None:
        raise Refusal(Code.NOT_FOUND, f"there is no job {number}")
    return job


async def _follow(index: Index, number: int, wait_s: float) -> Job:
    told, job = "", await _found(index, number)
    with trio.move_on_after(wait_s):
        while job.state not in _ENDED:
            waits = "waits for a daemon that does it" if job.state is JobState.PENDING else state_of(job)
            words = f"job {number} {job.type}: {progress_of(job) or waits}"
            if words != told:
                say(words)
                told = words
            await trio.sleep(LOOK_EVERY_S)
            job = await _found(index, number)
    return job
