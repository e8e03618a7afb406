"""What every ``Index`` promises of its collection, against the memory twin and PostgreSQL."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import dataclass

import pytest

from storage.collection_rows import HANDOVER_S, Mark, RefKind, ReviewCursor, Sweep, SweepOutcome
from storage.errors import LeaseLost, StaleTicket, Tombstoned
from storage.index import Index
from storage.layout import Place
from storage.rows import ABANDONED_S, BranchMove, MoveResult, Outcome, PushTicket, Repository, StoredBlob
from tests.behaviour.test_index import (
    TYPED,
    Bench,
    bench,
    blob,
    commit,
    emptied_url,
    index,
    name,
    names,
    snapshot,
    tables,
    url,
)

__all__ = ["bench", "emptied_url", "index", "tables", "url"]

LEASE_S = 300.0
OWNER = uuid.UUID(int=7)


@dataclass
class Yard:
    """A bench, and the collector's steps one by one."""

    bench: Bench

    @property
    def index(self) -> Index:
        return self.bench.index

    @property
    def now(self) -> dt.datetime:
        return self.bench.environment.now()

    def wait(self, seconds: float = LEASE_S + 1) -> None:
        self.bench.environment.move(seconds)

    async def walk(self, sweep: Sweep, *commits: str) -> None:
        """Reach commits with the snapshots and blobs that bear their names."""
        await self.index.reach(sweep, RefKind.COMMIT, names(commits), visited=True)
        await self.index.reach(sweep, RefKind.SNAPSHOT, names(f"s {text}" for text in commits), visited=True)
        await self.index.reach(sweep, RefKind.BLOB, names(f"b {text}" for text in commits), visited=True)

    async def sweep(self, repository: Repository, *reached: str, keep_s: float = 0) -> list[int]:
        """Sweep a repository whose branches lead to some commits; gives how many references of each kind went."""
        sweep = await self.index.begin_sweep(repository.number, self.now, keep_s)
        assert sweep is not None
        await self.walk(sweep, *reached)
        commits = await self.index.sweep_commits(sweep, self.now)
        assert commits.outcome is SweepOutcome.DONE
        counts = [commits.refs]
        for kind in (RefKind.SNAPSHOT, RefKind.BLOB):
            swept = await self.index.sweep_refs(sweep, kind, b"", 1_000, self.now)
            assert swept.outcome is SweepOutcome.DONE
            counts.append(swept.refs)
        await self.index.end_sweep(sweep, self.now, keep_s, complete=True)
        return counts

    async def mark(self) -> int:
        return await self.index.mark_suspects(self.now, 1_000)

    async def review(self) -> uuid.UUID | None:
        number = self.bench.environment.uuid()
        found = await self.index.begin_review(number, self.now, LEASE_S, 1_000)
        if not found.objects + found.packs:
            return None
        cursor: ReviewCursor | None = ReviewCursor()
        while cursor is not None:
            cursor = await self.index.review(number, cursor)
        return number

    async def condemn(self) -> int:
        """Review and condemn; gives how many tombstones there are then."""
        number = await self.review()
        return 0 if number is None else (await self.index.condemn(number, 1_000, self.now)).tombstones

    async def take(self, owner: uuid.UUID = OWNER, for_s: float = 300) -> list[Mark]:
        return await self.index.take_tombstones(owner, 1_000, self.now, self.now + dt.timedelta(seconds=for_s))

    async def tombstone(self) -> list[Mark]:
        """Mark, wait, condemn, and take what is to be deleted."""
        await self.mark()
        self.wait()
        await self.condemn()
        return await self.take()

    async def bury(self, marks: list[Mark], owner: uuid.UUID = OWNER) -> int:
        return await self.index.bury(owner, marks, self.now)

    async def forget(self) -> int:
        self.wait()
        return await self.index.forget_tombstones(self.now, LEASE_S)

    async def history(self, repository: Repository, text: str, old: str | None = None, **place: object) -> PushTicket:
        """Push a commit with a snapshot and a blob that bear its name."""
        rows = (blob(f"b {text}", 100, **place), snapshot(f"s {text}"), commit(text))  # type: ignore[arg-type]
        return await self.bench.push(repository, *rows, new=text, old=old)

    async def force(self, repository: Repository, old: str | None, new: str | None) -> None:
        """Move or delete the branch with force."""
        self.wait(1)
        head = None if new is None else name(new)
        move = BranchMove("main", None if old is None else name(old), head, True)
        done = await self.index.move_branches(repository.number, [move], "ada", self.now)
        assert done.outcome is Outcome.MOVED
        self.wait(1)

    async def left_behind(self, **place: object) -> Repository:
        """A repository whose branch was at a, and is at b by force; a is not needed any more."""
        repository = await self.bench.repository()
        await self.history(repository, "a", **place)
        await self.history(repository, "b", "a")
        await self.force(repository, "b", "a")
        await self.force(repository, "a", "b")
        return repository

    async def needless(self, **place: object) -> Repository:
        """The same after a sweep: the blob of a is a suspect."""
        repository = await self.left_behind(**place)
        assert await self.sweep(repository, "b") == [1, 1, 1]
        await self.hand_over(1)
        return repository

    async def hand_over(self, count: int) -> None:
        """Wait until the repository does not hold what was taken from it any more."""
        self.wait(HANDOVER_S)
        assert await self.index.forget_held(self.now, 10) == count


@pytest.fixture
def yard(bench: Bench) -> Yard:
    return Yard(bench)


def loose(text: str) -> Mark:
    return Mark(name(text), TYPED)


def pack(text: str) -> Mark:
    return Mark(name(text), None)


# ---- leases


async def test_a_lease_is_renewed_while_it_lasts_and_not_afterwards(yard: Yard) -> None:
    lease = uuid.UUID(int=1)
    await yard.index.take_lease(lease, 1, yard.now, LEASE_S)
    yard.wait(LEASE_S - 1)
    assert await yard.index.renew_lease(lease, yard.now, LEASE_S)
    yard.wait(LEASE_S)
    assert not await yard.index.renew_lease(lease, yard.now, LEASE_S)
    await yard.index.end_lease(lease)
    await yard.index.end_lease(lease)
    assert not await yard.index.renew_lease(lease, yard.now, LEASE_S)


# ---- sweeping


async def test_what_a_sweep_has_taken_does_not_come_back_with_its_pack(yard: Yard) -> None:
    """A job that looks at the pack afterwards, which others still need, completes nothing but rows."""
    repository = await yard.bench.repository()
    both = [blob(f"b {text}", 100, "p", at) for at, text in enumerate("ab")]
    first = await yard.bench.push(repository, *both, snapshot("s a"), commit("a"), new="a")
    second = await yard.history(repository, "b", "a", pack="p", offset=1)
    await yard.force(repository, "b", "a")
    await yard.force(repository, "a", "b")

    async def completed(push_id: uuid.UUID) -> int:
        return (await yard.index.complete_pack(repository.number, TYPED, both, brought_by=push_id)).refs

    assert await completed(first.push_id) == 0
    assert await yard.sweep(repository, "b") == [1, 1, 1]
    for ticket in (first, second):
        assert await completed(ticket.push_id) == 0
    await yard.hand_over(1)
    await yard.tombstone()
    assert await yard.index.places(TYPED, names(["b a"])) == {}
    assert await completed(first.push_id) == 0  # it lies in the pack still, and is recorded again
    assert len(await yard.index.places(TYPED, names(["b a"]))) == 1
    await yard.tombstone()
    assert await yard.index.places(TYPED, names(["b a"])) == {}
    assert set(await yard.index.held_places(repository.number, TYPED, names(["b a", "b b"]))) == {name("b b")}
    later = await yard.bench.push(repository, blob("b c", 100, "p", 2), snapshot("s c"), commit("c"), new="c", old="b")
    assert await completed(later.push_id) == 1


async def test_what_is_promoted_while_it_is_marked_goes_all_the_same(yard: Yard) -> None:
    """A content that gets its place in the store is nobody's the more for it."""
    repository = await yard.bench.repository()
    waits = StoredBlob(name("b a"), 7, content=b"content")
    await yard.bench.push(repository, waits, snapshot("s a"), commit("a"), new="a")
    await yard.history(repository, "b", "a")
    await yard.force(repository, "b", "a")
    await yard.force(repository, "a", "b")
    assert await yard.sweep(repository, "b") == [1, 1, 1]
    await yard.hand_over(1)
    assert await yard.mark() == 1
    lease = uuid.UUID(int=1)
    await yard.index.take_lease(lease, repository.number, yard.now, LEASE_S)
    (cached,) = await yard.index.oldest_cached(0, 10)
    assert await yard.index.promote_cached([cached.entry], lease) == 1
    await yard.index.end_lease(lease)
    yard.wait()
    assert await yard.condemn() == 1
    assert await yard.take() == [loose("b a")]
    assert await yard.index.places(TYPED, names(["b a"])) == {}


async def test_what_branches_lead_to_stays_and_the_rest_goes(yard: Yard) -> None:
    repository = await yard.left_behind()
    number = repository.number
    assert await yard.sweep(repository, "b") == [1, 1, 1]
    assert set(await yard.index.held_commits(number, names("ab"))) == {name("b")}
    assert set(await yard.index.held_places(number, TYPED, names(["b a", "b b"]))) == {name("b b")}
    assert await yard.sweep(repository, "b") == [0, 0, 0]


async def test_a_repository_is_swept_for_a_reason_and_once(yard: Yard) -> None:
    quiet = await yard.bench.repository(slug="quiet")
    await yard.history(quiet, "q")
    repository = await yard.left_behind()
    assert await yard.index.sweepable(yard.now, 0, 0, 10) == [repository.number]
    assert await yard.index.sweepable(yard.now, 0, repository.number, 10) == []
    assert await yard.index.sweepable(yard.now, 1_000, 0, 10) == []  # it may still be wanted back
    yard.wait(1_000)
    assert await yard.sweep(repository, "b") == [1, 1, 1]
    assert await yard.index.sweepable(yard.now, 0, 0, 10) == []


async def test_where_branches_were_of_late_is_where_the_walk_begins(yard: Yard) -> None:
    repository = await yard.left_behind()
    yard.wait(1_000)
    await yard.history(repository, "c", "b")
    await yard.force(repository, "c", "b")
    sweep = await yard.index.begin_sweep(repository.number, yard.now, 500)
    assert sweep is not None
    assert set(await yard.index.unvisited(sweep, RefKind.COMMIT, 10)) == set(names("bc"))
    await yard.walk(sweep, "b", "c")
    assert await yard.index.unvisited(sweep, RefKind.COMMIT, 10) == []
    assert await yard.index.reached(sweep, RefKind.COMMIT, names("abc")) == set(names("bc"))
    assert (await yard.index.sweep_commits(sweep, yard.now, dry_run=True)).refs == 1
    assert (await yard.index.sweep_commits(sweep, yard.now)).refs == 1


async def test_a_deleted_repository_is_swept_when_its_time_has_come(yard: Yard) -> None:
    repository = await yard.bench.repository()
    await yard.history(repository, "a")
    assert await yard.index.delete_repository(repository.number, yard.now)
    yard.wait(100)
    assert await yard.index.sweepable(yard.now, 200, 0, 10) == []
    assert await yard.index.sweepable(yard.now, 50, 0, 10) == [repository.number]
    assert await yard.sweep(repository, keep_s=50) == [1, 1, 1]
    yard.wait(1_000)
    assert await yard.sweep(repository, keep_s=50) == [0, 0, 0]


async def test_what_refused_and_abandoned_pushes_brought_goes(yard: Yard) -> None:
    repository = await yard.bench.repository()
    await yard.history(repository, "a")
    refused, left, running = [await yard.bench.begin(repository) for _ in range(3)]
    for ticket, text in ((refused, "r"), (left, "l"), (running, "o")):
        await yard.bench.record(ticket, blob(f"b {text}"), snapshot(f"s {text}"), commit(text))
    await yard.index.refuse_push(refused, {"error": "x"}, yard.now)
    yard.wait(ABANDONED_S + 601)
    await yard.index.begin_push(repository.number, running.push_id, "ada", "main", yard.now, 600)
    assert await yard.index.sweepable(yard.now, 0, 0, 10) == [repository.number]
    assert await yard.sweep(repository) == [2, 2, 2]
    with pytest.raises(StaleTicket):
        await yard.bench.record(left, blob("more"))
    assert await yard.index.find_push(repository.number, left.push_id) is None
    again = await yard.bench.begin(repository, left.push_id)
    assert await yard.index.lacking_blobs(again, names(["b l", "b a"])) == names(["b l"])
    assert set(await yard.index.held_commits(repository.number, names("a"))) == {name("a")}


async def test_F37_a_fetch_that_began_before_keeps_what_it_relies_on(yard: Yard) -> None:
    repository = await yard.left_behind()
    lease = uuid.UUID(int=1)
    await yard.index.take_lease(lease, repository.number, yard.now, LEASE_S)
    sweep = await yard.index.begin_sweep(repository.number, yard.now, 0)
    assert sweep is not None
    await yard.walk(sweep, "b")
    assert (await yard.index.sweep_commits(sweep, yard.now)).outcome is SweepOutcome.LEASED
    later = uuid.UUID(int=2)  # this one sees the branches as the walk did
    await yard.index.take_lease(later, repository.number, yard.now, LEASE_S)
    await yard.index.end_lease(lease)
    assert (await yard.index.sweep_commits(sweep, yard.now)).refs == 1


async def test_a_lease_that_ran_out_keeps_nothing(yard: Yard) -> None:
    repository = await yard.left_behind()
    await yard.index.take_lease(uuid.UUID(int=1), repository.number, yard.now, LEASE_S)
    yard.wait()
    assert await yard.sweep(repository, "b") == [1, 1, 1]


async def test_F36_a_branch_that_moves_during_a_sweep_is_looked_at_first(yard: Yard) -> None:
    repository = await yard.left_behind()
    sweep = await yard.index.begin_sweep(repository.number, yard.now, 0)
    assert sweep is not None
    await yard.walk(sweep, "b")
    await yard.force(repository, "b", "a")
    assert (await yard.index.sweep_commits(sweep, yard.now)).outcome is SweepOutcome.MOVED
    for kind in (RefKind.SNAPSHOT, RefKind.BLOB):
        swept = await yard.index.sweep_refs(sweep, kind, b"", 10, yard.now)
        assert (swept.outcome, swept.refs) == (SweepOutcome.MOVED, 0)
    assert await yard.index.extend_sweep(sweep, yard.now)
    assert await yard.index.unvisited(sweep, RefKind.COMMIT, 10) == [name("a")]
    await yard.walk(sweep, "a")
    assert (await yard.index.sweep_commits(sweep, yard.now)).refs == 0


async def test_F38_a_second_sweep_ends_the_first(yard: Yard) -> None:
    repository = await yard.left_behind()
    first = await yard.index.begin_sweep(repository.number, yard.now, 0)
    second = await yard.index.begin_sweep(repository.number, yard.now, 0)
    assert first is not None
    assert second is not None
    await yard.walk(second, "b")
    assert (await yard.index.sweep_commits(first, yard.now)).outcome is SweepOutcome.LOST
    assert (await yard.index.sweep_refs(first, RefKind.BLOB, b"", 10, yard.now)).outcome is SweepOutcome.LOST
    assert not await yard.index.extend_sweep(first, yard.now)
    assert (await yard.index.sweep_commits(second, yard.now)).refs == 1


async def test_references_are_taken_some_at_a_time_and_the_usage_with_them(yard: Yard) -> None:
    repository = await yard.bench.repository()
    many = [blob(f"b{at}", 10) for at in range(25)]
    await yard.bench.push(repository, *many, commit("a"), new="a")
    await yard.history(repository, "b", "a")
    await yard.force(repository, "b", "a")
    await yard.force(repository, "a", "b")
    before = (await yard.index.owner_usage("ada", yard.now)).used
    sweep = await yard.index.begin_sweep(repository.number, yard.now, 0)
    assert sweep is not None
    await yard.walk(sweep, "b")
    after: bytes | None = b""
    taken = []
    while after is not None:
        swept = await yard.index.sweep_refs(sweep, RefKind.BLOB, after, 10, yard.now)
        after = swept.after
        taken.append(swept.refs)
    assert sum(taken) == 25
    assert max(taken) <= 10
    assert (await yard.index.owner_usage("ada", yard.now)).used == before - 250


async def test_F36_a_push_that_relied_on_what_was_collected_is_sent_again(yard: Yard) -> None:
    repository = await yard.left_behind()
    ticket = await yard.bench.begin(repository)
    assert await yard.index.lacking_blobs(ticket, names(["b a"])) == []  # it is there: the push does not bring it
    await yard.bench.record(ticket, snapshot("s n"), commit("n"))
    assert await yard.sweep(repository, "b") == [1, 1, 1]
    assert (await yard.bench.accept(ticket, "n", "b")).outcome is Outcome.COLLECTED
    again = await yard.bench.begin(repository, ticket.push_id)
    assert await yard.index.lacking_snapshots(again, names(["s n"])) == names(["s n"])
    assert await yard.index.lacking_blobs(again, names(["b a"])) == names(["b a"])
    await yard.bench.record(again, blob("b a", 100), snapshot("s n"), commit("n"))
    assert await yard.bench.accept(again, "n", "b") == MoveResult(Outcome.MOVED, name("n"))


async def test_F36_a_branch_is_not_moved_to_a_commit_that_was_collected_meanwhile(yard: Yard) -> None:
    repository = await yard.left_behind()
    await yard.sweep(repository, "b")
    move = BranchMove("old", None, name("a"), False)
    assert await yard.index.move_branches(repository.number, [move], "ada", yard.now) == MoveResult(
        Outcome.NOT_HELD, None, "old"
    )
    assert await yard.index.branch_heads(repository.number) == {"main": name("b")}
    to_b = BranchMove("new", None, name("b"), False)
    assert (await yard.index.move_branches(repository.number, [to_b], "ada", yard.now)).outcome is Outcome.MOVED


async def test_F36_who_was_told_that_something_is_stored_finds_it_held(yard: Yard) -> None:
    repository = await yard.left_behind()
    wanted = names(["b a"])
    assert await yard.index.stored_blobs(repository.number, TYPED, wanted, yard.now) == set(wanted)
    await yard.sweep(repository, "b")
    yard.wait(HANDOVER_S / 2)
    assert await yard.tombstone() == []
    assert await yard.index.held_places(repository.number, TYPED, wanted) == {}
    ticket = await yard.bench.begin(repository)
    assert await yard.index.claim_blobs(ticket, TYPED, wanted, yard.now) == set(wanted)


# ---- marks and tombstones


async def test_what_nothing_refers_to_is_deleted_step_by_step(yard: Yard) -> None:
    await yard.needless()
    assert await yard.mark() == 1
    assert await yard.condemn() == 0  # it has not waited
    yard.wait()
    assert await yard.condemn() == 1
    assert await yard.index.places(TYPED, names(["b a"])) == {}
    assert set(await yard.index.places(TYPED, names(["b b"]))) == {name("b b")}
    marks = await yard.take()
    assert marks == [loose("b a")]
    assert await yard.bury(marks) == 1
    assert await yard.bury(marks) == 0
    assert (await yard.index.count_marks())["deleted"] == 1
    assert await yard.forget() == 1
    assert set((await yard.index.count_marks()).values()) == {0}


async def test_F40_what_another_repository_refers_to_stays(yard: Yard) -> None:
    """Also when it comes to do so while the collector is at it."""
    await yard.needless()
    other = await yard.bench.repository(slug="y")
    await yard.mark()
    yard.wait()
    number = await yard.review()
    assert number is not None
    await yard.bench.push(other, blob("b a", 100), commit("o"), new="o")  # takes the mark away
    assert (await yard.index.condemn(number, 10, yard.now)).looked_at == 0
    assert set(await yard.index.held_places(other.number, TYPED, names(["b a"]))) == {name("b a")}
    await yard.index.mark_orphans([loose("b a")], yard.now)
    assert (await yard.index.count_marks())["marked"] == 0


async def test_a_reference_from_before_the_mark_keeps_it(yard: Yard) -> None:
    other = await yard.bench.repository(slug="y")
    await yard.bench.push(other, blob("b a", 100), commit("o"), new="o")
    await yard.needless()
    assert await yard.tombstone() == []
    assert set(await yard.index.places(TYPED, names(["b a"]))) == {name("b a")}
    assert (await yard.index.count_marks())["marked"] == 0


async def test_a_holding_keeps_it_and_what_was_forgotten_is_a_suspect(yard: Yard) -> None:
    repository = await yard.needless()
    until = yard.now + dt.timedelta(hours=1)
    await yard.index.hold_blobs(repository.number, TYPED, [blob("b a", 100), blob("h")], until)
    assert await yard.tombstone() == []
    yard.wait(3_600)
    assert await yard.index.forget_held(yard.now, 10) == 2
    assert {mark.object_id for mark in await yard.tombstone()} == set(names(["b a", "h"]))


@pytest.mark.parametrize("who", ["push", "lease"])
async def test_F36_a_mark_waits_for_whoever_began_before(yard: Yard, who: str) -> None:
    repository = await yard.needless()
    lease = uuid.UUID(int=1)
    yard.wait(LEASE_S)
    if who == "push":
        ticket = await yard.bench.begin(repository)
    else:
        await yard.index.take_lease(lease, repository.number, yard.now, 2 * LEASE_S)
    await yard.mark()
    yard.wait()
    assert await yard.condemn() == 0
    if who == "push":
        await yard.index.refuse_push(ticket, {}, yard.now)
    else:
        await yard.index.end_lease(lease)
    assert await yard.condemn() == 1


async def test_F36_a_push_takes_a_mark_away_by_recording(yard: Yard) -> None:
    repository = await yard.needless()
    await yard.mark()
    ticket = await yard.bench.begin(repository)
    assert await yard.index.record_blobs(ticket, TYPED, [blob("b a", 100)]) == 1
    await yard.bench.record(ticket, commit("n"))
    assert (await yard.bench.accept(ticket, "n", "b")).outcome is Outcome.MOVED
    yard.wait()
    assert await yard.condemn() == 0
    assert set(await yard.index.held_places(repository.number, TYPED, names(["b a"]))) == {name("b a")}


async def test_F36_a_push_that_meets_a_tombstone_comes_again_after_it(yard: Yard) -> None:
    repository = await yard.needless()
    marks = await yard.tombstone()
    ticket = await yard.bench.begin(repository)
    for _ in range(2):
        with pytest.raises(Tombstoned):
            await yard.index.record_blobs(ticket, TYPED, [blob("x"), blob("b a", 100)])
    assert await yard.index.lacking_blobs(ticket, names(["x"])) == names(["x"])
    await yard.bury(marks)
    with pytest.raises(Tombstoned):  # what this attempt has stored may have been deleted with the rest
        await yard.index.record_blobs(ticket, TYPED, [blob("b a", 100)])
    again = await yard.bench.begin(repository, ticket.push_id)
    assert await yard.index.record_blobs(again, TYPED, [blob("b a", 100)]) == 1
    assert (await yard.index.count_marks())["deleted"] == 0


async def test_F36_a_tombstone_outlives_whoever_may_have_stored_before_it_was_deleted(yard: Yard) -> None:
    repository = await yard.needless()
    marks = await yard.tombstone()
    ticket = await yard.bench.begin(repository)
    await yard.bury(marks)
    assert await yard.forget() == 0
    with pytest.raises(Tombstoned):
        await yard.index.record_blobs(ticket, TYPED, [blob("b a", 100)])
    yard.wait()  # its lease runs out
    assert await yard.forget() == 1
    with pytest.raises(StaleTicket):  # and it does not come back
        await yard.index.record_blobs(ticket, TYPED, [blob("b a", 100)])


async def test_F36_whoever_holds_with_a_lease_comes_again_too(yard: Yard) -> None:
    repository = await yard.needless()
    marks = await yard.tombstone()
    leases = [uuid.UUID(int=number) for number in (1, 2)]
    until = yard.now + dt.timedelta(days=1)

    async def hold(lease: uuid.UUID | None) -> None:
        await yard.index.hold_blobs(repository.number, TYPED, [blob("b a", 100)], until, lease)

    await yard.index.take_lease(leases[0], repository.number, yard.now, LEASE_S)
    await yard.bury(marks)
    for lease in (leases[0], None):
        with pytest.raises(Tombstoned):
            await hold(lease)
    await yard.index.take_lease(leases[1], repository.number, yard.now, LEASE_S)
    await hold(leases[1])
    assert await yard.index.stored_blobs(repository.number, TYPED, names(["b a"]), yard.now) == set(names(["b a"]))
    await yard.forget()
    with pytest.raises(LeaseLost):
        await hold(leases[0])


async def test_what_lies_in_a_pack_goes_without_a_tombstone_and_an_empty_pack_with_one(yard: Yard) -> None:
    repository = await yard.needless(pack="p", offset=5)
    await yard.history(repository, "c", "b", pack="q")
    assert await yard.tombstone() == []
    assert await yard.index.places(TYPED, names(["b a"])) == {}
    assert await yard.tombstone() == [pack("p")]
    ticket = await yard.bench.begin(repository)
    with pytest.raises(Tombstoned):
        await yard.index.record_blobs(ticket, TYPED, [blob("b a", 100, "p", 5)])
    assert await yard.index.record_blobs(ticket, TYPED, [blob("b a", 100)]) == 1  # it lies elsewhere


async def test_a_pack_that_still_holds_something_stays(yard: Yard) -> None:
    repository = await yard.bench.repository()
    rows = (blob("one", 1, "p", 1), blob("two", 1, "p", 2), commit("a"))
    await yard.bench.push(repository, *rows, new="a")
    assert await yard.index.mark_orphans([pack("p"), pack("unknown")], yard.now) == 2
    yard.wait()
    assert await yard.condemn() == 1
    assert await yard.take() == [pack("unknown")]
    assert set(await yard.index.places(TYPED, names(["one", "two"]))) == set(names(["one", "two"]))


async def test_an_orphan_is_what_no_row_says_lies_there(yard: Yard) -> None:
    repository = await yard.bench.repository()
    rows = (blob("loose"), blob("packed", 3, "p"), StoredBlob(name("kept"), 3, content=b"abc"), commit("a"))
    await yard.bench.push(repository, *rows, new="a")
    marks = [loose(text) for text in ("loose", "packed", "kept", "nobody's")]
    assert await yard.index.mark_orphans(marks, yard.now) == 2
    assert await yard.index.mark_orphans(marks, yard.now) == 0
    yard.wait()
    assert await yard.condemn() == 2
    assert {mark.object_id for mark in await yard.take()} == set(names(["packed", "nobody's"]))
    assert len(await yard.index.places(TYPED, names(["loose", "packed", "kept"]))) == 3


async def test_what_is_pending_goes_with_its_content(yard: Yard) -> None:
    repository = await yard.bench.repository()
    await yard.bench.push(repository, StoredBlob(name("b a"), 3, content=b"abc"), commit("a"), new="a")
    await yard.history(repository, "b", "a")
    await yard.force(repository, "b", "a")
    await yard.force(repository, "a", "b")
    await yard.sweep(repository, "b")
    await yard.hand_over(1)
    assert await yard.tombstone() == []
    assert await yard.index.count_cached() == (0, 0)
    assert await yard.index.places(TYPED, names(["b a"])) == {}


async def test_F38_tombstones_are_one_collectors_at_a_time(yard: Yard) -> None:
    await yard.needless()
    marks = await yard.tombstone()
    other = uuid.UUID(int=8)
    assert await yard.take(other) == []
    assert await yard.bury(marks, other) == 0
    assert await yard.bury(marks) == 1


async def test_F39_tombstones_of_a_dead_collector_are_taken_over(yard: Yard) -> None:
    await yard.needless()
    marks = await yard.tombstone()
    other = uuid.UUID(int=8)
    yard.wait()
    assert await yard.take(other) == marks
    assert await yard.bury(marks) == 0  # it was too late
    assert await yard.bury(marks, other) == 1


async def test_F38_a_second_review_takes_marks_over(yard: Yard) -> None:
    await yard.needless()
    await yard.mark()
    yard.wait()
    first, second = await yard.review(), await yard.review()
    assert first is not None
    assert second is not None
    assert (await yard.index.condemn(first, 10, yard.now)).looked_at == 0
    assert (await yard.index.condemn(second, 10, yard.now)).tombstones == 1


async def test_a_suspect_that_has_a_tombstone_is_looked_at_later(yard: Yard) -> None:
    repository = await yard.needless()
    marks = await yard.tombstone()
    await yard.history(repository, "c", "b")
    ticket = await yard.bench.begin(repository)
    await yard.bench.record(ticket, blob("b a", 100, "p"), commit("d"))
    assert (await yard.bench.accept(ticket, "d", "c")).outcome is Outcome.MOVED
    await yard.force(repository, "d", "c")
    await yard.sweep(repository, "b", "c")
    await yard.hand_over(1)
    assert await yard.mark() == 0
    await yard.bury(marks)
    assert await yard.forget() == 1
    assert await yard.mark() == 1


# ---- folding


async def test_a_repository_is_folded_every_so_often(yard: Yard) -> None:
    repository = await yard.bench.repository()
    assert await yard.index.begin_fold(repository.number, yard.now, 100)
    assert not await yard.index.begin_fold(repository.number, yard.now, 100)
    assert await yard.index.begin_fold(repository.number, yard.now, 0)
    yard.wait(100)
    assert await yard.index.begin_fold(repository.number, yard.now, 100)
    assert not await yard.index.begin_fold(repository.number + 1_000, yard.now, 0)


async def test_objects_are_moved_only_from_where_they_were_read(yard: Yard) -> None:
    repository = await yard.bench.repository()
    rows = (blob("one"), blob("two", 3, "p", 9), blob("three", 3, "p", 20), commit("a"))
    await yard.bench.push(repository, *rows, StoredBlob(name("kept"), 3, content=b"abc"), new="a")
    scheme, places = await yard.index.repository_places(repository.number, b"", 10)
    assert scheme is TYPED
    found = {place.object_id: place for place in places}
    assert list(found) == sorted(names(["one", "two", "three", "kept"]))
    assert found[name("two")] == Place(name("two"), 3, name("p"), 9)
    assert await yard.index.repository_places(repository.number, places[-1].object_id, 10) == (TYPED, [])
    lease = uuid.UUID(int=1)
    await yard.index.take_lease(lease, repository.number, yard.now, LEASE_S)
    stale = Place(name("three"), 3, name("p"), 19)
    moves = [(found[name("one")], 100), (found[name("two")], 200), (stale, 300), (found[name("kept")], 400)]
    moved = await yard.index.move_places(lease, TYPED, name("new"), moves)
    assert moved == set(names(["one", "two"]))
    now = await yard.index.places(TYPED, names(["one", "two", "three"]))
    assert [(now[name(t)].pack_id, now[name(t)].offset) for t in ("one", "two", "three")] == [
        (name("new"), 100), (name("new"), 200), (name("p"), 20),
    ]  # fmt: skip
    assert await yard.index.move_places(lease, TYPED, name("new"), moves) == set()
    await yard.index.end_lease(lease)
    assert await yard.tombstone() == [loose("one")]  # the old pack still holds one
    with pytest.raises(LeaseLost):
        await yard.index.move_places(lease, TYPED, name("new"), moves)
