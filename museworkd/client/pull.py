"""Pulling: fetch, then bring the current branch and the work tree up to what the remote has.

The order is what makes a pull that was cut off safe to repeat: what was fetched is whole before refs name it, files are
changed before the branch is moved, and a merge that has conflicts changes nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from museworkd.client.checkout import switch
from museworkd.client.errors import ClientError
from museworkd.client.fetch import fetch
from museworkd.client.merging import merge_bases, merge_commits, write_merge
from museworkd.client.pack_intake import FetchReport
from museworkd.client.progress import Meter
from museworkd.client.remote import Remote
from museworkd.client.repository import LocalRepository
from storage.environment import Environment, SystemEnvironment
from wire.ids import format_id

UP_TO_DATE, AHEAD, FAST_FORWARD, MERGE, CONFLICT = "up to date", "ahead", "fast-forward", "merge", "conflict"


@dataclass(slots=True)
class PullReport:
    """What a pull did."""

    fetched: FetchReport
    branch: str
    result: str
    """``up to date``, ``ahead`` (nothing to bring), ``fast-forward``, ``merge`` or ``conflict``."""
    head: str | None
    """Where the branch is now."""
    files: int = 0
    """Files of the work tree that were written or removed."""
    conflicts: list[str] = field(default_factory=list)
    """Paths both sides changed differently."""


async def pull(
    repository: LocalRepository, remote: Remote, meter: Meter, *, name: str = "origin", author: str = "",
    fast_forward_only: bool = False, environment: Environment | None = None,
) -> PullReport:  # fmt: skip
    """Fetch, and move the current branch to what the remote's branch of its name has, merging where both went on.

    A merge commit has the time of ``environment``, or the system's.

    Raises:
        ClientError: the remote has no such branch, local changes are in the way, or the histories have nothing in
            common. What was fetched is kept.
    """
    fetched = await fetch(repository, remote, meter, name=name)
    branch = repository.head_branch
    theirs = repository.remote_branches(name).get(branch)
    ours = repository.branches().get(branch)
    if theirs is None:
        raise ClientError(f"{name} has no branch {branch!r}")
    report = PullReport(fetched, branch, UP_TO_DATE, None)
    target = ours
    if ours is None:
        report.result, target = FAST_FORWARD, theirs
    elif ours != theirs:
        bases = merge_bases(repository, ours, theirs)
        if bases == [theirs]:
            report.result = AHEAD
        elif bases == [ours]:
            report.result, target = FAST_FORWARD, theirs
        elif fast_forward_only:
            raise ClientError(f"{branch!r} has commits that {name} does not have: no fast-forward")
        else:
            merged = await merge_commits(repository, ours, theirs)
            if merged.conflicts:
                report.result, report.conflicts = CONFLICT, merged.conflicts
            else:
                message = f"Merge branch '{branch}' of {remote.url}"
                report.result = MERGE
                world = environment or SystemEnvironment()
                target = await write_merge(repository, ours, theirs, merged, branch, message, author, world)
    assert target is not None
    if report.result in {FAST_FORWARD, MERGE} or (report.result != CONFLICT and repository.checked_out != target):
        report.files = await switch(repository, target, meter)
        repository.set_branch(branch, target)
    report.head = format_id(repository.branches()[branch], repository.scheme)
    return report
