"""Reading and hashing every byte, as ``scrub`` does: the same walk, whose findings become problems."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from actors.fsck.places import ROWS_AT_ONCE
from actors.fsck.problems import Found, FsckReport, Phase, Problem
from actors.jobs.handler import JobContext, JobServices
from actors.jobs.handlers.scrub import Scrub
from actors.jobs.reading import Condition, Pace, StoreReader
from actors.repair.listing import listed
from storage.insights import Finding
from storage.job_rows import DEPLOYMENT, Claim, ClaimedJob
from storage.journal import SEGMENT_MOST
from storage.layout import Place, parse_journal_key
from wire.ids import Scheme

_BY_PREFIX = {
    "objects": Problem.OBJECT_DAMAGED, "packs": Problem.PACK_DAMAGED, "records": Problem.RECORDS_DAMAGED,
}  # fmt: skip


class _Attempt(JobContext):
    """A scrub that is nobody's job: it keeps nothing, and goes through everything."""

    def __init__(self, services: JobServices, phase: Phase) -> None:
        environment = services.environment
        job = ClaimedJob(Claim(0, environment.uuid()), DEPLOYMENT, "scrub", {}, 1, environment.now(), {})
        super().__init__(services, job)
        self._phase = phase

    async def progress(self, stage: str, done: int = 0, total: int | None = None) -> None:
        await super().progress(stage, done, total)
        self._phase.advance()

    async def keep_state(self, state: Mapping[str, object]) -> None:  # noqa: ARG002 - the base's
        await trio.lowlevel.checkpoint()


@dataclass(slots=True)
class DeepCheck:
    """Hashes what is stored."""

    services: JobServices
    report: FsckReport
    phase: Phase

    async def all(self) -> None:
        """Read everything the index and the store name."""
        scrub = Scrub(_Attempt(self.services, self.phase), self._record)
        await scrub.read_all()
        self.report.checked["bytes"] += int(str(scrub.counts()["bytes"]))
        await self._journal()

    async def of_repository(self, repo: int) -> None:
        """Read the blobs one repository holds."""
        pace = Pace(self.services.settings.scrub_bytes_per_s)
        reader = StoreReader(self.services.store, pace)
        after: bytes | None = b""
        while after is not None:
            scheme, places = await self.services.index.repository_places(repo, after, ROWS_AT_ONCE)
            if scheme is None:
                return
            for place in places:
                if not place.pending:
                    await self._blob(reader, scheme, place)
                self.phase.advance()
            after = places[-1].object_id if len(places) == ROWS_AT_ONCE else None
        self.report.checked["bytes"] += pace.read_bytes

    async def _blob(self, reader: StoreReader, scheme: Scheme, place: Place) -> None:
        for last in (False, True):
            condition = await reader.blob_in(
                place.key(scheme), place.offset, place.size, place.object_id, scheme
            )  # fmt: skip
            now = await self.services.index.places(scheme, [place.object_id])
            if condition is Condition.SOUND or now.get(place.object_id) != place:
                return
            if last:
                await self._record(Finding(place.key(scheme), place.object_id, condition.value, ""))

    async def _journal(self) -> None:
        async with listed(self.services.store, "journal") as keys:
            async for stored in keys:
                named = parse_journal_key(stored.key)
                if named is None:
                    continue
                content = await self.services.store.get(stored.key, SEGMENT_MOST)
                digest = await trio.to_thread.run_sync(lambda c=content: hashlib.sha256(c).digest())  # type: ignore[misc]
                if digest != named.digest:
                    self.report.add(
                        Found(Problem.JOURNAL_DAMAGED, "the segment does not hash to its name", key=stored.key)
                    )
                self.report.checked["bytes"] += len(content)
                self.phase.advance()

    async def _record(self, finding: Finding) -> None:
        """Turn a finding of the scrub into problems: of a blob one for each scheme that reads it from there."""
        if finding.problem == Condition.MISSING.value:
            return  # told already, by the look at places
        problem = _BY_PREFIX[finding.key.partition("/")[0]]
        if finding.problem == Condition.UNREADABLE.value:
            problem = Problem.UNREADABLE
        elif finding.object_id is not None and problem is Problem.PACK_DAMAGED:
            problem = Problem.OBJECT_DAMAGED
        detail = finding.detail or "its bytes do not hash to its id"
        if finding.object_id is not None and problem in {Problem.OBJECT_DAMAGED, Problem.UNREADABLE}:
            for scheme in Scheme:
                place = (await self.services.index.places(scheme, [finding.object_id])).get(finding.object_id)
                if place is not None and not place.pending and place.key(scheme) == finding.key:
                    self.report.add(Found(problem, detail, finding.key, finding.object_id, scheme=scheme, place=place))
            return
        self.report.add(Found(problem, detail, finding.key, finding.object_id))
