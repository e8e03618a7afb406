"""One attempt at one job: a temporary child of the supervisor.

1. The handler runs in a cancel scope of its own; a claim that is gone cancels it.
2. What it comes to is recorded under the claim, again and again while the index is away: doing so twice is no harm.
3. One line in the log tells counts and timings; ``observe`` counts the attempt.

If the daemon dies after 1 or in 2, the claim goes stale and the job runs again elsewhere; if it dies after 2, only the
line is missing. If it is cancelled before 2 is done, the claim stays with ``JobRuns``, which gives it back.
"""

from __future__ import annotations

import datetime as dt
import enum
import json
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
import trio

from actors.actor import Actor
from actors.jobs.handler import ClaimLost, JobObsolete, JobRefused
from actors.jobs.registry import Registry
from actors.jobs.runs import JobRun, JobRuns
from actors.refusals import leaves_of
from storage.errors import IndexUnavailable
from storage.job_rows import JobState

log = structlog.get_logger("jobs")

RESULT_CHARACTERS = 262_144
"""Of a result as JSON; a handler that finds more than that names examples."""
RECORD_PAUSE_S = 0.5
RECORD_PAUSE_MOST_S = 10.0
_LONGER = 4


class Outcome(enum.Enum):
    """What an attempt came to."""

    DONE = "done"
    OBSOLETE = "obsolete"
    AGAIN = "again"
    """It failed, and another attempt follows."""
    FAILED = "failed"
    LOST = "lost"
    """Its claim was gone: somebody else has the job, or it was cancelled."""
    UNRECORDED = "unrecorded"
    """The index did not take its end in time; the job is recovered when its claim is stale."""


@dataclass(frozen=True, slots=True)
class JobObservation:
    """An attempt that has ended, for whoever counts."""

    type: str
    outcome: Outcome
    waited_s: float
    """From the enqueueing of the job to its attempt."""
    timings: Mapping[str, float]


JobObserver = Callable[[JobObservation], None]


def unobserved(_job: JobObservation) -> None:
    """Do not count."""


@dataclass(frozen=True, slots=True)
class _Ending:
    """What is to be recorded: a result, or an error."""

    result: Mapping[str, object] | None = None
    error: str = ""
    for_good: bool = False


class JobRunner(Actor[None]):
    """Run a job once."""

    def __init__(self, run: JobRun, runs: JobRuns, registry: Registry, observe: JobObserver = unobserved) -> None:
        super().__init__(f"job {run.context.job.type}", mailbox_size=0)
        self._run = run
        self._runs = runs
        self._registry = registry
        self._observe = observe

    async def handle(self, message: None) -> None:
        """A job takes no messages."""

    async def run(self) -> None:
        """Run the handler and record what it came to."""
        context = self._run.context
        waited = context.services.environment.now() - context.job.created_at
        ending = await self._attempt()
        try:
            outcome = Outcome.LOST if ending is None else await self._record(ending)
        except Exception:  # a bug: nobody beats for the job any more, so it is recovered
            self._runs.leave(self._run)
            raise
        if outcome is Outcome.UNRECORDED:
            self._runs.leave(self._run)
        else:
            self._runs.remove(self._run)
        self._tell(ending or _Ending(), outcome, waited.total_seconds())

    async def _attempt(self) -> _Ending | None:
        """Run the handler; gives ``None`` when its claim is gone."""
        run, result = self._run, None
        try:
            with run.scope:
                counts = await self._registry.get(run.context.job.type)(run.context)
                result = {**counts, **run.context.timings()}
                _check_result(result)
        except Exception as error:  # noqa: BLE001 - whatever a handler dies of, its job keeps it
            return None if run.lost else _judged(error)
        return None if result is None else _Ending(result)

    async def _record(self, ending: _Ending) -> Outcome:
        """Record an end for as long as the claim may hold without a heartbeat."""
        services, pause_s = self._run.context.services, RECORD_PAUSE_S
        with trio.move_on_after(services.settings.stale_s):
            while not self._run.lost:
                try:
                    return await self._write(ending)
                except IndexUnavailable as error:
                    log.warning("a job's end is not recorded yet", job=self._run.claim.job, error=str(error))
                await trio.sleep(pause_s * (0.5 + services.environment.jitter()))
                pause_s = min(2 * pause_s, RECORD_PAUSE_MOST_S)
        return Outcome.LOST if self._run.lost else Outcome.UNRECORDED

    async def _write(self, ending: _Ending) -> Outcome:
        context, claim = self._run.context, self._run.claim
        index, now = context.services.index, context.services.environment.now()
        if ending.result is not None:
            if not await index.complete_job(claim, ending.result, now):
                return Outcome.LOST
            return Outcome.OBSOLETE if ending.result.get("obsolete") is True else Outcome.DONE
        again_at = None if ending.for_good else now + dt.timedelta(seconds=self._pause_s())
        match await index.fail_job(claim, ending.error, now, again_at):
            case None:
                return Outcome.LOST
            case JobState.PENDING:
                return Outcome.AGAIN
            case _:
                return Outcome.FAILED

    def _pause_s(self) -> float:
        services, attempt = self._run.context.services, self._run.context.job.attempt
        grown: float = services.settings.retry_s * _LONGER ** (attempt - 1)
        return grown * (0.75 + services.environment.jitter() / 2)

    def _tell(self, ending: _Ending, outcome: Outcome, waited_s: float) -> None:
        job, timings = self._run.context.job, self._run.context.timings()
        facts = {"job": job.claim.job, "repo": job.repo, "attempt": job.attempt, "waited_s": round(waited_s, 3)}
        told = dict(ending.result or timings)
        if ending.error:
            told["error"] = ending.error.strip().rpartition("\n")[2]
        level = {Outcome.FAILED: "error", Outcome.AGAIN: "warning", Outcome.UNRECORDED: "error"}.get(outcome, "info")
        getattr(log, level)("job", type=job.type, outcome=outcome.value, **facts, result=told)
        self._observe(JobObservation(job.type, outcome, waited_s, timings))


def _check_result(result: Mapping[str, object]) -> None:
    """Raise ``ValueError`` or ``TypeError`` for what no index could keep."""
    text = json.dumps(result, allow_nan=False)
    if len(text) > RESULT_CHARACTERS or "\\u0000" in text:
        raise ValueError(f"a result is JSON of up to {RESULT_CHARACTERS} characters without NUL")


def _judged(error: Exception) -> _Ending | None:
    """Say what an exception of a handler comes to."""
    kinds = {type(leaf) for leaf in leaves_of(error)}
    if ClaimLost in kinds:
        return None
    if kinds == {JobObsolete}:
        return _Ending({"obsolete": True})
    if kinds == {JobRefused}:
        return _Ending(error="; ".join(str(leaf) for leaf in leaves_of(error)).replace("\0", "\\0"), for_good=True)
    return _Ending(error="".join(traceback.format_exception(error)).replace("\0", "\\0"))
