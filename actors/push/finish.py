"""The finish of a push, whatever way its bytes came: check that it is whole, store its records, move the branch.

Steps, and what is left if the process dies after each:

1. everything the commits reference is in this push or in this repository, the graph has no cycle — nothing new;
2. the record pack is durable in the object store, and with it what waits in the index for its place there — packs no
   row names; collected, or written again by the retry;
3. the commits are rows of the push, 100 per transaction, but for the last batch — rows nobody else sees, found again
   by the retry. Where ids prove nothing, the last batch as well, and the rows are proved to be this push's;
4. one transaction records what waits for it (of a small push, everything), moves the branch by compare-and-swap, logs
   it, keeps the verdict, counts what the push brought and enqueues the jobs that follow: from here the push is visible
   and complete, and a repetition gets the same verdict;
5. what was decided is in the store as well, or follows (see ``actors.journal.writing``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial

import trio

from actors.branches import Ancestors, judge_move
from actors.opaque import takes_opaque
from actors.push.context import Attempt, Counts, PushRequest, PushServices, Timings
from actors.push.followups import followups
from actors.push.kept_pack import kept_pack
from actors.push.opaque_records import collected_meanwhile, commit_of_another, taken
from actors.push.record_pack import RecordPack
from actors.push.records import BATCH_BYTES, BATCH_RECORDS, PendingCommit
from actors.refusals import quota_refusal
from storage.rows import BranchMove, BranchTip, CommitRow, Outcome, PushRows, PushState, Written
from wire.canonical import parse_canonical
from wire.errors import LISTED_FACTS, Code, Refusal, malformed
from wire.graph import CommitFacts
from wire.ids import Scheme, format_id
from wire.opaque import is_opaque

_LOOKUP_BATCH = 2_000
_ORDERED_IN_LOOP = 500
"""Commits whose graph takes less time than a thread takes to begin."""
_MOVE_ATTEMPTS = 16
"""Times a branch may be moved under a push before it gives up; each is a concurrent push that won."""


@dataclass(frozen=True, slots=True)
class Finish:
    """Bring one push to its verdict."""

    services: PushServices
    request: PushRequest
    attempt: Attempt
    pack: RecordPack
    commits: dict[bytes, PendingCommit]
    snapshots: AbstractSet[bytes]
    counts: Counts
    timings: Timings
    progress: Callable[[str, int, int | None], None]
    tip: BranchTip | None
    """Where the branch was when the push began."""
    tagged: Collection[bytes] = ()
    """Commits that tags of the push name."""
    packs: Sequence[bytes] = ()
    """Ids of the packs of blobs it has left in place."""

    async def run(self) -> Mapping[str, object]:
        """Finish; gives the verdict, which is already stored.

        Raises:
            Refusal: ``missing_parents``, ``missing_objects``, ``non_fast_forward``, ``head_moved`` …
        """
        with self.timings.measure("connectivity"):
            outside = await self._outside_generations()
            await self._require_snapshots()
        arguments = (self.commits, outside, self.attempt.plan.scheme)
        many = len(self.commits) > _ORDERED_IN_LOOP
        facts = await trio.to_thread.run_sync(_ordered, *arguments) if many else _ordered(*arguments)
        with self.timings.measure("put"):
            record_pack = await self.pack.store(self.services.store, kept_pack(self.attempt.kept.contents()))
        with self.timings.measure("record"):
            last = replace(await self._record(facts), record_pack=record_pack)
        with self.timings.measure("move"):
            return await self._move({fact.commit_id: fact for fact in facts}, last)

    async def _outside_generations(self) -> dict[bytes, int]:
        """Look up every commit this push builds on; the head must be one of its own or one of those."""
        plan = self.attempt.plan
        wanted = {p for c in self.commits.values() for p in c.parents if p not in self.commits}
        wanted |= {commit_id for commit_id in self.tagged if commit_id not in self.commits}
        if plan.head not in self.commits:
            wanted.add(plan.head)
        held: dict[bytes, int] = {}
        if self.tip is not None and self.tip.head in wanted:
            held[self.tip.head] = self.tip.generation
        for part in _parts(wanted - held.keys()):
            held.update(await self.services.index.held_commits(self.attempt.ticket.repo, part))
        missing = wanted - held.keys()
        if missing:
            shown = [format_id(commit_id, plan.scheme) for commit_id in sorted(missing)[:LISTED_FACTS]]
            raise Refusal(
                Code.MISSING_PARENTS,
                f"commit {shown[0]} is neither in this push nor in this repository: push it first",
                missing=shown,
                missing_count=len(missing),
            )
        return held

    async def _require_snapshots(self) -> None:
        wanted = {c.snapshot_id for c in self.commits.values()} - self.snapshots
        lacking: list[bytes] = []
        for part in _parts(wanted):
            lacking += await self.services.index.lacking_snapshots(self.attempt.ticket, part)
        if lacking:
            scheme = self.attempt.plan.scheme
            shown = [format_id(snapshot_id, scheme) for snapshot_id in sorted(lacking)[:LISTED_FACTS]]
            raise Refusal(
                Code.MISSING_OBJECTS,
                f"{len(lacking)} snapshots are neither in this push nor in this repository, the first is {shown[0]}",
                missing=shown,
                missing_count=len(lacking),
            )

    async def _record(self, facts: list[CommitFacts]) -> PushRows:
        """Record commits but for the last batch, which is left for the last transaction.

        Where ids prove nothing, all are recorded, and then looked at: another push may have been first.
        """
        done = 0
        rows: list[CommitRow] = []
        for part in self._batches(facts):
            if rows:
                await self._record_commits(rows, done)
            bodies = await self.pack.read([self.commits[fact.commit_id].position for fact in part])
            rows = [
                CommitRow(fact.commit_id, fact.parents, fact.snapshot_id, fact.order, body)
                for fact, body in zip(part, bodies, strict=True)
            ]
            done += len(part)
        if takes_opaque(self.request.repository) and any(map(is_opaque, self.commits)):
            await self._record_commits(rows, done)
            rows = []
            await self._require_own(facts)
        unrecorded = self.attempt.unrecorded
        return PushRows(unrecorded.take_blobs(), unrecorded.take_snapshots(), rows)

    async def _record_commits(self, rows: list[CommitRow], done: int) -> None:
        written = await self.services.index.record_commits(self.attempt.ticket, self.attempt.plan.scheme, rows)
        self.counts.commits_written += written
        self.progress("commits", done, len(self.commits))

    async def _require_own(self, facts: list[CommitFacts]) -> None:
        """Refuse recorded commits whose rows are another push's, which has brought something else under their ids."""
        own = ((fact.commit_id, fact.parents, fact.snapshot_id) for fact in facts)
        other = await commit_of_another(self.services.index, own)
        if other is not None:
            (body,) = await self.pack.read([self.commits[other].position])
            raise taken("commit", str(parse_canonical(body)[1].get("commit_id")))

    def _batches(self, facts: list[CommitFacts]) -> Iterator[list[CommitFacts]]:
        """Cut into transactions by number and by bytes."""
        part: list[CommitFacts] = []
        size = 0
        for fact in facts:
            more = self.commits[fact.commit_id].position.size
            if part and (len(part) >= BATCH_RECORDS or size + more > BATCH_BYTES):
                yield part
                part, size = [], 0
            part.append(fact)
            size += more
        if part:
            yield part

    async def _move(self, own: dict[bytes, CommitFacts], rows: PushRows) -> Mapping[str, object]:
        plan, ticket, index = self.attempt.plan, self.attempt.ticket, self.services.index
        old = None if self.tip is None else self.tip.head
        for _ in range(_MOVE_ATTEMPTS):
            try:
                forced = await self._check_move(old, own)
            except Refusal:
                await self._check_current()
                tip = await index.branch_tip(ticket.repo, plan.branch)
                now_at = None if tip is None else tip.head
                if now_at == old:
                    raise
                old = now_at  # it was moved since the push began: judged anew
                continue
            verdict = partial(self._verdict, self.timings.in_ms())
            delay_s = self.services.followup_delay_s
            new_jobs = followups(ticket.push_id, self.packs, pending=self.attempt.kept.given, delay_s=delay_s)
            result = await index.finish_push(
                ticket, plan.scheme, rows, BranchMove(plan.branch, old, plan.head, forced), verdict,
                self.services.environment.now(), self.pack.size, new_jobs,
            )  # fmt: skip
            match result.outcome:
                case Outcome.MOVED:
                    assert result.verdict is not None
                    await self.services.journal.settle()
                    return result.verdict
                case Outcome.SUPERSEDED:
                    raise _superseded()
                case Outcome.GONE:
                    raise Refusal(Code.NOT_FOUND, "the repository was deleted while the push was under way")
                case Outcome.SCHEME_DIFFERS:
                    raise malformed("another push has fixed this repository's id scheme meanwhile")
                case Outcome.QUOTA_EXCEEDED:
                    assert result.usage is not None
                    raise quota_refusal(result.usage.used, result.usage.reserved, result.usage.quota)
                case Outcome.COLLECTED | Outcome.NOT_HELD:
                    raise collected_meanwhile()
                case Outcome.HEAD_DIFFERS:
                    old = result.head
        raise Refusal(Code.HEAD_MOVED, f"the branch {plan.branch!r} keeps moving under this push: fetch and try again")

    async def _check_current(self) -> None:
        """Refuse to judge a branch that was moved by this very push, over another connection."""
        found = await self.services.index.find_push(self.attempt.ticket.repo, self.attempt.plan.push_id)
        if found is not None and found.state is not PushState.OPEN:
            raise _superseded()

    async def _check_move(self, old: bytes | None, own: dict[bytes, CommitFacts]) -> bool:
        """Judge a move by the server's own history (regression R7); gives whether force was needed."""
        plan, request = self.attempt.plan, self.request
        if plan.has_expected_head and old != plan.expected_head:
            raise Refusal(
                Code.HEAD_MOVED,
                f"the branch {plan.branch!r} is not where expected_head says",
                branch=plan.branch,
                remote_head=_shown(old, plan.scheme),
            )
        ancestors = Ancestors(self.services.index, request.repository, plan.scheme, own)
        return await judge_move(
            ancestors, request.repository, request.right, plan.scheme, plan.branch, old, plan.head, force=plan.force
        )

    def _verdict(self, timings_ms: dict[str, float], last: Written) -> dict[str, object]:
        """Make the verdict, in the last transaction and its thread."""
        plan, counts = self.attempt.plan, self.counts
        blobs_written = counts.blobs_written + last.blobs
        return {
            "push_id": str(plan.push_id),
            "branch": plan.branch,
            "head": format_id(plan.head, plan.scheme),
            "commits_written": counts.commits_written + last.commits,
            "snapshots_written": counts.snapshots_written + last.snapshots,
            "blobs_written": blobs_written,
            "blobs_skipped": counts.blobs_received - blobs_written,
            "timings_ms": timings_ms,
        }


def _ordered(commits: dict[bytes, PendingCommit], outside: dict[bytes, int], scheme: Scheme) -> list[CommitFacts]:
    """Put commits parents first and give each its generation; refuses a cycle (regression R11)."""
    waiting = {c.commit_id: sum(p in commits for p in set(c.parents)) for c in commits.values()}
    children: dict[bytes, list[bytes]] = {}
    for commit in commits.values():
        for parent in set(commit.parents):
            if parent in commits:
                children.setdefault(parent, []).append(commit.commit_id)
    generations = dict(outside)
    ready = deque(commit_id for commit_id, count in waiting.items() if not count)
    ordered: list[CommitFacts] = []
    while ready:
        commit = commits[ready.popleft()]
        generation = 1 + max((generations[p] for p in commit.parents), default=0)
        generations[commit.commit_id] = generation
        ordered.append(CommitFacts(commit.commit_id, commit.parents, commit.snapshot_id, generation))
        for child in children.get(commit.commit_id, ()):
            waiting[child] -= 1
            if not waiting[child]:
                ready.append(child)
    if len(ordered) != len(commits):
        stuck = next(commit_id for commit_id, count in waiting.items() if count)
        raise malformed(f"the commits of this push have a cycle through {format_id(stuck, scheme)}")
    return ordered


def _superseded() -> Refusal:
    return Refusal(Code.PUSH_SUPERSEDED, "another connection has taken this push over")


def _parts(ids: Iterable[bytes]) -> list[list[bytes]]:
    ordered = sorted(ids)
    return [ordered[start : start + _LOOKUP_BATCH] for start in range(0, len(ordered), _LOOKUP_BATCH)]


def _shown(head: bytes | None, scheme: Scheme) -> str | None:
    return None if head is None else format_id(head, scheme)
