"""What proving a repository says, and the commits it is about."""

from __future__ import annotations

from dataclasses import dataclass, field

from museworkd.client.errors import IntegrityError
from museworkd.client.limits import CLIENT_LIMITS
from museworkd.client.repository import LocalRepository
from wire.canonical import parse_canonical
from wire.errors import Refusal
from wire.records import Commit, parse_commit

PROBLEMS_LISTED = 50


@dataclass(slots=True)
class VerifyReport:
    """What was proved, and what is wrong."""

    commits: int = 0
    snapshots: int = 0
    blobs: int = 0
    git_commits: int = 0
    git_files: int = 0
    """Git's own files that were compared, over all commits."""
    shallow: int = 0
    """Commits whose parents are not here."""
    work_tree_files: int = 0
    """Files compared with the commit they were checked out from."""
    work_tree_changes: list[str] = field(default_factory=list)
    """The first of the files that differ from it."""
    work_tree_change_count: int = 0
    problems: list[str] = field(default_factory=list)
    problem_count: int = 0

    def problem(self, text: str) -> None:
        """Note something wrong."""
        self.problem_count += 1
        if len(self.problems) < PROBLEMS_LISTED:
            self.problems.append(text)

    def change(self, text: str) -> None:
        """Note a file of the work tree that is not as it was checked out."""
        self.work_tree_change_count += 1
        if len(self.work_tree_changes) < PROBLEMS_LISTED:
            self.work_tree_changes.append(text)


def read_commit(repository: LocalRepository, commit_id: bytes) -> Commit:
    """Read a stored commit and recompute its id."""
    try:
        _, record = parse_canonical(repository.index.record(commit_id))
        commit = parse_commit(record, repository.scheme, CLIENT_LIMITS)
    except Refusal as refusal:
        raise IntegrityError(f"its record is damaged: {refusal.detail}") from refusal
    if commit.commit_id != commit_id:
        raise IntegrityError("its record is another commit's")
    return commit
