"""Is there a record pack in the store for every accepted push that brought commits or snapshots (protocol §2)?"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from actors.fsck.places import in_parallel
from actors.fsck.problems import Found, FsckReport, Phase, Problem
from actors.repair.reading import RepairServices
from storage.errors import ObjectMissing
from storage.fsck import AcceptedPush, RecordPacks
from storage.layout import record_pack_key

PUSHES_AT_ONCE = 1_000


@dataclass(slots=True)
class RecordCheck:
    """Looks at what pushes brought."""

    services: RepairServices
    packs: RecordPacks
    report: FsckReport
    phase: Phase

    async def run(self, repo: int | None = None) -> None:
        """Look at all pushes, or at those of one repository."""
        after = 0
        while pushes := await self.packs.pushes_after(after, PUSHES_AT_ONCE):
            after = pushes[-1].number
            wanted = [push for push in pushes if repo in {None, push.repo}]
            await in_parallel([push for push in wanted if push.record_pack is not None], self._named)
            unnamed: dict[int, list[int]] = defaultdict(list)
            for push in wanted:
                if push.record_pack is None:
                    unnamed[push.repo].append(push.number)
            for number, of_repository in unnamed.items():
                for push_number in sorted(await self.packs.pushes_with_records(number, of_repository)):
                    detail = (
                        f"push {push_number} brought commits or snapshots, and no record pack is known to have them"
                    )
                    self.report.add(Found(Problem.RECORDS_UNNAMED, detail, push=push_number))
            self.report.checked["pushes"] += len(wanted)
            self.phase.advance(len(pushes))

    async def _named(self, push: AcceptedPush) -> None:
        assert push.record_pack is not None
        key = record_pack_key(push.record_pack)
        try:
            await self.services.store.size(key)
        except ObjectMissing:
            detail = f"the commits and snapshots of push {push.number} are not in the store"
            self.report.add(Found(Problem.RECORDS_MISSING, detail, key, push=push.number))
