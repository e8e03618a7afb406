"""``fsck``: one look at everything, in an order in which what comes later can rely on what came before.

It runs beside daemons. Whatever looks wrong is looked at once more before it is told, so that a push, a collection or a
folding under way is no problem; a repository's history is looked at under a lease.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass

from actors.fsck.branches import BranchCheck
from actors.fsck.deep import DeepCheck
from actors.fsck.history import HistoryCheck
from actors.fsck.inventory import inventory_of
from actors.fsck.mending import Mending
from actors.fsck.places import PlaceCheck
from actors.fsck.problems import FsckReport, Watch
from actors.fsck.records import RecordCheck
from actors.jobs.handler import JobServices
from actors.leases import leased
from storage.fsck import RecordPacks
from storage.rows import Repository


@dataclass(frozen=True, slots=True)
class FsckOptions:
    """What is asked for."""

    deep: bool = False
    """Read and hash every byte."""
    repair: bool = False
    repository: Repository | None = None
    """Only this one."""


async def fsck(services: JobServices, options: FsckOptions, watch: Watch) -> FsckReport:
    """Check everything, or one repository; gives what was found, and what of it was mended.

    Raises:
        StoreUnavailable, IndexUnavailable: it cannot be known now.
    """
    report = FsckReport()
    one = options.repository
    if one is None:
        await _store(services, report, watch)
    else:
        with watch.phase("places") as phase:
            await PlaceCheck(services, report, phase).of_repository(one.number)
    if isinstance(services.index, RecordPacks):
        with watch.phase("record packs") as phase:
            await RecordCheck(services, services.index, report, phase).run(None if one is None else one.number)
    repositories = await services.index.list_repositories(None, everything=True) if one is None else [one]
    for repository in repositories:
        await _repository(services, report, repository, watch)
    if options.deep:
        with watch.phase("reading") as phase:
            deep = DeepCheck(services, report, phase)
            await (deep.all() if one is None else deep.of_repository(one.number))
    if options.repair and report.found:
        with watch.phase("mending", len(report.found)) as phase:
            await Mending(services, report, phase).run()
    return report


async def _store(services: JobServices, report: FsckReport, watch: Watch) -> None:
    async with AsyncExitStack() as stack:
        with watch.phase("listing the store") as phase:
            inventory = await stack.enter_async_context(inventory_of(services, report, phase))
        with watch.phase("places") as phase:
            places = PlaceCheck(services, report, phase)
            await places.all(inventory)
            await places.packs(inventory)


async def _repository(services: JobServices, report: FsckReport, repository: Repository, watch: Watch) -> None:
    name = f"{repository.owner}/{repository.slug}"
    with watch.phase(name) as phase:
        async with leased(services.index, services.environment, repository.number):
            if repository.scheme is not None:
                await HistoryCheck(services, report, repository, repository.scheme, phase).run()
            await BranchCheck(services, report, repository, phase).run()
    report.checked["repositories"] += 1
