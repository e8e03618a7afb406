"""Is each branch where its log says, is the log a chain, and does the repository hold what the branch is at?"""

from __future__ import annotations

from dataclasses import dataclass

from actors.fsck.problems import Found, FsckReport, Phase, Problem
from actors.repair.reading import RepairServices
from storage.collection_rows import RefKind
from storage.rows import Repository

MOVES_AT_ONCE = 1_000
_TRIES = 5
"""At a branch that moves while it is looked at."""


@dataclass(slots=True)
class BranchCheck:
    """Looks at the branches of one repository."""

    services: RepairServices
    report: FsckReport
    repository: Repository
    phase: Phase

    async def run(self) -> None:
        """Look at all of them, deleted ones included."""
        index, repo = self.services.index, self.repository.number
        heads = await index.branch_heads(repo)
        ends: dict[str, bytes | None] = {}
        after = ("", 0)
        while moves := await index.branch_moves_after(repo, after, MOVES_AT_ONCE):
            for move in moves:
                entry = move.entry
                if entry.old != ends.get(entry.branch):
                    detail = f"a move from {_shown(entry.old)} follows one to {_shown(ends.get(entry.branch))}"
                    self._tell(Problem.BRANCH_LOG, entry.branch, detail)
                ends[entry.branch] = entry.new
            after = (moves[-1].entry.branch, moves[-1].number)
            self.report.checked["branch moves"] += len(moves)
            self.phase.advance(len(moves))
        for branch in sorted(heads.keys() | {branch for branch, end in ends.items() if end is not None}):
            await self._branch(branch, ends.get(branch))
        self.report.checked["branches"] += len(heads)

    async def _branch(self, branch: str, end: bytes | None) -> None:
        """Hold a branch against where its log ended when it was read."""
        index, repo = self.services.index, self.repository.number
        head: bytes | None = None
        for _ in range(_TRIES):
            head = (await index.branch_heads(repo)).get(branch)
            if head == end:
                break
            end = await self._end_of(branch)
        else:
            self._tell(Problem.BRANCH_LOG, branch, f"it is at {_shown(head)}, its log ends at {_shown(end)}")
        if (
            head is not None
            and await index.unheld(repo, RefKind.COMMIT, [head])
            and (await index.branch_heads(repo)).get(branch) == head
        ):
            self._tell(Problem.HEAD_MISSING, branch, f"it is at {head.hex()}, which the repository does not hold")

    async def _end_of(self, branch: str) -> bytes | None:
        """Read a branch's log anew."""
        end: bytes | None = None
        after = (branch, 0)
        while moves := await self.services.index.branch_moves_after(self.repository.number, after, MOVES_AT_ONCE):
            own = [move for move in moves if move.entry.branch == branch]
            end = own[-1].entry.new if own else end
            if len(own) < len(moves):
                return end
            after = (branch, moves[-1].number)
        return end

    def _tell(self, problem: Problem, branch: str, detail: str) -> None:
        name = f"{self.repository.owner}/{self.repository.slug}"
        self.report.add(Found(problem, f"branch {branch}: {detail}", repository=name))


def _shown(commit_id: bytes | None) -> str:
    return "nothing" if commit_id is None else commit_id.hex()
