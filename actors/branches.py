"""Moving branches: by the server's own history, never by what a client says of it (regression R7)."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import trio

from actors.history import is_ancestor
from storage.index import Index
from storage.rows import BranchMove, Outcome, Repository, Right
from wire.errors import LISTED_FACTS, Code, Refusal
from wire.graph import CommitFacts
from wire.ids import Scheme, format_id

JUDGE_S = 20.0
"""For the history of all updates of a request to be looked at."""


@dataclass(frozen=True, slots=True)
class BranchUpdate:
    """What somebody wants of one branch. ``old=None``: it does not exist yet; ``new=None``: delete it."""

    branch: str
    old: bytes | None
    new: bytes | None
    force: bool


async def update_branches(
    index: Index, repository: Repository, right: Right, handle: str, updates: Sequence[BranchUpdate], now: dt.datetime
) -> None:
    """Move, make and delete branches, all or none.

    Raises:
        Refusal: ``head_moved``, ``non_fast_forward``, ``protected_branch``, ``missing_parents`` for a commit this
            repository does not hold, ``not_found`` when the repository has gone.
    """
    scheme = repository.scheme or Scheme.TYPED
    await _require_held(index, repository, scheme, updates)
    heads = await index.branch_heads(repository.number)
    moves = []
    with trio.move_on_after(JUDGE_S):
        ancestors = Ancestors(index, repository, scheme)
        for update in updates:
            head = heads.get(update.branch)
            if head not in {update.old, update.new}:  # where it is to go already: a repetition
                raise _head_moved(update.branch, head, scheme)
            forced = await judge_move(
                ancestors, repository, right, scheme, update.branch, update.old, update.new, force=update.force
            )
            moves.append(BranchMove(update.branch, update.old, update.new, forced))
    if len(moves) < len(updates):
        raise Refusal(Code.TOO_LARGE, f"{len(updates)} updates over so long a history at once: send fewer")
    result = await index.move_branches(repository.number, moves, handle, now)
    if result.outcome is Outcome.GONE:
        raise Refusal(Code.NOT_FOUND, "the repository was deleted meanwhile")
    if result.outcome is Outcome.NOT_HELD:
        detail = f"the commit that {result.branch!r} should be at was collected meanwhile: push it first"
        raise Refusal(Code.MISSING_PARENTS, detail)
    if result.outcome is not Outcome.MOVED:
        raise _head_moved(result.branch or "", result.head, scheme)


class Ancestors:
    """Which commit is an ancestor of which, asked once for each pair.

    Args:
        index: where history is.
        repository: whose history.
        scheme: of its ids.
        own: commits that are not in the index yet.
    """

    def __init__(
        self, index: Index, repository: Repository, scheme: Scheme, own: Mapping[bytes, CommitFacts] | None = None
    ) -> None:
        self._index = index
        self._repository = repository
        self._scheme = scheme
        self._own = own
        self._known: dict[tuple[bytes, bytes], bool] = {}

    async def is_ancestor(self, old: bytes, new: bytes) -> bool:
        """Tell whether ``new`` builds on ``old``, or is it."""
        if (old, new) not in self._known:
            self._known[old, new] = await self._judge(old, new)
        return self._known[old, new]

    async def _judge(self, old: bytes, new: bytes) -> bool:
        if not self._own:  # both are there: an ancestor is of an earlier generation
            generations = await self._index.held_commits(self._repository.number, [old, new])
            if generations.get(new, 0) <= generations.get(old, 0):
                return old == new
        return await is_ancestor(self._index, self._scheme, old, new, self._own)


async def judge_move(
    ancestors: Ancestors, repository: Repository, right: Right, scheme: Scheme, branch: str, old: bytes | None,
    new: bytes | None, *, force: bool,
) -> bool:  # fmt: skip
    """Say whether a branch may move; gives whether force was needed.

    Raises:
        Refusal: ``non_fast_forward``, ``protected_branch``.
    """
    if old is None:
        return False
    protected = branch in repository.settings.protected_branches and right < Right.ADMIN
    if new is None:
        if branch == repository.default_branch:
            raise Refusal(Code.PROTECTED_BRANCH, f"{branch!r} is the default branch: name another one before it goes")
        if protected:
            raise Refusal(Code.PROTECTED_BRANCH, f"the branch {branch!r} is protected: only an admin may delete it")
        return False
    if await ancestors.is_ancestor(old, new):
        return False
    if not force:
        raise Refusal(
            Code.NON_FAST_FORWARD, f"non-fast-forward push to {branch!r}: fetch and merge first, or force",
            branch=branch, remote_head=format_id(old, scheme),
        )  # fmt: skip
    if protected:
        raise Refusal(Code.PROTECTED_BRANCH, f"the branch {branch!r} is protected: only an admin may force it")
    return True


async def _require_held(index: Index, repository: Repository, scheme: Scheme, updates: Sequence[BranchUpdate]) -> None:
    wanted = sorted({update.new for update in updates if update.new is not None})
    held = await index.held_commits(repository.number, wanted)
    missing = [format_id(commit_id, scheme) for commit_id in wanted if commit_id not in held]
    if missing:
        raise Refusal(
            Code.MISSING_PARENTS, f"commit {missing[0]} is not in this repository: push it first",
            missing=missing[:LISTED_FACTS], missing_count=len(missing),
        )  # fmt: skip


def _head_moved(branch: str, head: bytes | None, scheme: Scheme) -> Refusal:
    return Refusal(
        Code.HEAD_MOVED, f"the branch {branch!r} is not where the request says", branch=branch,
        remote_head=None if head is None else format_id(head, scheme),
    )  # fmt: skip
