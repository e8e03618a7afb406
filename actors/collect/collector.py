"""One run of the collector, from what repositories hold in vain to bytes that are gone.

A run that does not wait deletes what earlier runs have marked, and marks for later ones. Any number of collectors may
run at once (fault F38), and may die anywhere (F39).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import structlog
import trio

from actors.collect.burial import ORPHAN_S, Burial
from actors.collect.report import Report
from actors.collect.sweep import Sweeper
from actors.heartbeat import LEASE_S
from storage.collection_rows import TOMBSTONE_S
from storage.environment import Environment
from storage.errors import ObjectDamaged
from storage.index import Index
from storage.object_store import ObjectStore
from wire.limits import DEFAULT_LIMITS, Limits

log = structlog.get_logger("collector")

KEEP_S = 14 * 86_400.0
"""How long what no branch leads to any more is kept, so that a branch can be put back."""
REPOSITORIES_AT_ONCE = 100
HOLDINGS_AT_ONCE = 1_000
LINES_AT_ONCE = 5_000
"""Rows of what was found out about repositories that are gone."""
ROUNDS_MOST = 3
"""Of a run that waits: rows go in the first, packs without any in the second."""
_WAIT_MORE_S = 1.0

Say = Callable[[str, int], Awaitable[None]]
Phase = Callable[[str], AbstractContextManager[None]]


async def _unsaid(_stage: str, _done: int) -> None:
    await trio.lowlevel.checkpoint()


@contextmanager
def _unmeasured(_name: str) -> Iterator[None]:
    yield


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a run is to do. Times in seconds."""

    repositories: Sequence[int] | None = None
    """``None`` for all that may hold what they need no more."""
    keep_s: float = KEEP_S
    orphan_s: float = ORPHAN_S
    lease_s: float = LEASE_S
    dry_run: bool = False
    wait: bool = False
    """Whether to wait until what was marked can be deleted."""
    patient: bool = False
    """Whether to wait for tombstones another collector has left: until they are buried, pushes that meet them wait."""


async def collect(
    index: Index, store: ObjectStore, environment: Environment, wishes: Wishes, limits: Limits = DEFAULT_LIMITS,
    say: Say = _unsaid, phase: Phase = _unmeasured,
) -> Report:  # fmt: skip
    """Run the collector once."""
    report = Report()
    burial = Burial(index, store, environment, report, wishes.lease_s)
    if not wishes.dry_run:
        with phase("finish"):
            await burial.bury()  # what another one has left
            if wishes.patient and (await index.count_marks())["tombstoned"]:
                await say("finish", 0)
                await trio.sleep(TOMBSTONE_S + _WAIT_MORE_S)
                await burial.bury()
    with phase("sweep"):
        await _sweep(index, environment, wishes, limits, report, say)
    if wishes.dry_run:
        report.waiting = (await index.count_marks())["marked"]
        return report
    with phase("holdings"):
        while await index.forget_held(environment.now(), HOLDINGS_AT_ONCE):
            pass
    with phase("insights"):
        while await index.forget_deleted_lines(LINES_AT_ONCE):
            pass
    with phase("orphans"):
        await say("orphans", 0)
        await burial.mark_orphans(wishes.orphan_s)
    for turn in range(ROUNDS_MOST if wishes.wait else 1):
        await burial.mark_suspects()
        if wishes.wait:
            counts = await index.count_marks()
            if turn and not counts["marked"]:
                break
            with phase("wait"):
                await say("wait", turn)
                await trio.sleep(wishes.lease_s + _WAIT_MORE_S)
        with phase("review"):
            await say("review", turn)
            number = await burial.review()
        with phase("delete"):
            if number is not None:
                await say("delete", turn)
                await burial.condemn(number)
            await burial.bury()
            await burial.mark_suspects()
            await burial.forget()
    return report


async def _sweep(
    index: Index, environment: Environment, wishes: Wishes, limits: Limits, report: Report, say: Say
) -> None:
    if wishes.repositories is not None:
        for repo in wishes.repositories:
            await _sweep_one(index, environment, wishes, limits, report, repo)
        return
    after = 0
    while numbers := await index.sweepable(environment.now(), wishes.keep_s, after, REPOSITORIES_AT_ONCE):
        for repo in numbers:
            await say("sweep", report.repositories)
            await _sweep_one(index, environment, wishes, limits, report, repo)
        after = numbers[-1]


async def _sweep_one(
    index: Index, environment: Environment, wishes: Wishes, limits: Limits, report: Report, repo: int
) -> None:
    sweeper = Sweeper(index, environment, limits, wishes.keep_s, report, dry_run=wishes.dry_run)
    try:
        await sweeper.run(repo)
    except ObjectDamaged as error:  # of one repository; the others need not wait for it
        report.postponed += 1
        log.error("a repository is not whole, nothing is collected from it", repo=repo, error=str(error))
