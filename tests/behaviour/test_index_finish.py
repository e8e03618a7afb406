"""What every ``Index`` promises of a push's last transaction, and of the look-ups that answer several questions."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from storage.index import Index
from storage.rows import (
    Access,
    BranchMove,
    BranchTip,
    MoveResult,
    Outcome,
    PushRows,
    PushState,
    PushTicket,
    Right,
    Visibility,
    Written,
)
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
from wire.ids import Scheme

__all__ = ["bench", "emptied_url", "index", "tables", "url"]

ROWS = PushRows([blob("b1"), blob("b2", 5, "pack", 9)], [snapshot("s1")], [commit("c1")])


def counted(written: Written) -> Mapping[str, object]:
    return {"blobs": written.blobs, "snapshots": written.snapshots, "commits": written.commits}


async def finish(
    bench: Bench, ticket: PushTicket, rows: PushRows = ROWS, new: str = "c1", old: str | None = None
) -> MoveResult:
    move = BranchMove("main", None if old is None else name(old), name(new), False)
    return await bench.index.finish_push(ticket, TYPED, rows, move, counted, bench.environment.now())


async def lacking(bench: Bench, ticket: PushTicket) -> tuple[list[bytes], list[bytes], dict[bytes, int]]:
    return (
        await bench.index.lacking_blobs(ticket, names(["b1", "b2"])),
        await bench.index.lacking_snapshots(ticket, [name("s1")]),
        await bench.index.held_commits(ticket.repo, [name("c1")]),
    )


async def test_a_push_can_be_recorded_and_accepted_at_once(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    words = {"blobs": 2, "snapshots": 1, "commits": 1}
    assert await finish(bench, ticket) == MoveResult(Outcome.MOVED, name("c1"), verdict=words)
    record = await bench.index.find_push(repository.number, ticket.push_id)
    assert record is not None
    assert (record.state, record.verdict) == (PushState.ACCEPTED, words)
    later = await bench.begin(repository)
    assert await lacking(bench, later) == ([], [], {name("c1"): 1})
    assert set(await bench.index.held_places(repository.number, TYPED, names(["b1", "b2"]))) == set(names(["b1", "b2"]))


async def test_what_was_new_is_counted_as_the_recording_operations_count_it(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    await bench.record(ticket, blob("b1"), snapshot("s1"))
    assert (await finish(bench, ticket)).verdict == {"blobs": 1, "snapshots": 0, "commits": 1}


async def test_finished_again_after_a_lost_answer_it_says_what_is_kept(bench: Bench) -> None:
    ticket = await bench.begin(await bench.repository())
    first = await finish(bench, ticket)
    assert await finish(bench, ticket) == first


async def test_of_a_push_whose_branch_was_moved_nothing_is_recorded(bench: Bench) -> None:
    repository = await bench.repository()
    await bench.push(repository, commit("other"), new="other")
    ticket = await bench.begin(repository)
    assert await finish(bench, ticket) == MoveResult(Outcome.HEAD_DIFFERS, name("other"))
    blobs, *others = await lacking(bench, ticket)
    assert (set(blobs), others) == (set(names(["b1", "b2"])), [[name("s1")], {}])
    assert (await finish(bench, ticket, old="other")).verdict == {"blobs": 2, "snapshots": 1, "commits": 1}
    assert await bench.log(repository) == [(None, name("other")), (name("other"), name("c1"))]


async def test_of_a_superseded_attempt_nothing_is_recorded(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    again = await bench.begin(repository, ticket.push_id)
    for rows in (ROWS, PushRows()):
        assert (await finish(bench, ticket, rows)).outcome is Outcome.SUPERSEDED
    assert (await lacking(bench, again))[1:] == ([name("s1")], {})
    assert (await finish(bench, again)).outcome is Outcome.MOVED


async def test_of_a_push_above_the_quota_nothing_is_recorded(bench: Bench) -> None:
    repository = await bench.repository()
    await bench.index.set_quota("ada", 7)
    ticket = await bench.begin(repository)
    assert (await finish(bench, ticket)).outcome is Outcome.QUOTA_EXCEEDED
    assert (await lacking(bench, ticket))[1:] == ([name("s1")], {})
    assert await bench.index.branch_heads(repository.number) == {}


async def test_of_several_who_finish_at_once_one_moves_the_branch(bench: Bench) -> None:
    repository = await bench.repository()
    tickets = [await bench.begin(repository) for _ in range(6)]
    results: list[MoveResult] = []

    async def one(ticket: PushTicket, text: str) -> None:
        rows = PushRows([blob("shared"), blob(text)], [snapshot("s1"), snapshot(f"s {text}")], [commit(text)])
        results.append(await finish(bench, ticket, rows, text))

    async with trio.open_nursery() as nursery:
        for at, ticket in enumerate(tickets):
            nursery.start_soon(one, ticket, f"c{at}")
    outcomes = [result.outcome for result in results]
    assert sorted(outcomes, key=str) == sorted([Outcome.MOVED] + [Outcome.HEAD_DIFFERS] * 5, key=str)
    assert len(await bench.log(repository)) == 1


async def test_a_branchs_tip_says_where_it_is_and_what_is_there(bench: Bench) -> None:
    repository, other = await bench.repository(), await bench.repository(slug="other")
    assert await bench.index.branch_tip(repository.number, "main") is None
    await bench.push(repository, commit("c1"), commit("c2", "c1", generation=2), new="c2")
    assert await bench.index.branch_tip(repository.number, "main") == BranchTip(name("c2"), commit("c2").snapshot_id, 2)
    assert await bench.index.branch_tip(repository.number, "another") is None
    assert await bench.index.branch_tip(other.number, "main") is None


async def test_access_gives_token_repository_and_right_as_they_are_found_one_by_one(index: Index, bench: Bench) -> None:
    repository = await bench.repository("ada", "x", Visibility.PUBLIC)
    ada, bob = bench.token("ada"), bench.token("bob")
    for token in (ada, bob):
        await index.create_token(token)
    await index.set_collaborator(repository.number, "bob", Right.WRITE)
    assert await index.find_access(ada.token_hash, "ada", "x") == Access(ada, repository, Right.NONE)
    assert await index.find_access(bob.token_hash, "ada", "x") == Access(bob, repository, Right.WRITE)
    assert await index.find_access(None, "ada", "x") == Access(None, repository, Right.NONE)
    assert await index.find_access(bytes(32), "ada", "x") == Access(None, repository, Right.NONE)
    for owner, slug in (("ada", "y"), ("\0", "x"), ("ada", "\ud800"), ("", "")):
        assert await index.find_access(bob.token_hash, owner, slug) == Access(bob, None, Right.NONE)
    await index.delete_repository(repository.number, bench.environment.now())
    assert await index.find_access(bob.token_hash, "ada", "x") == Access(bob, None, Right.NONE)


async def test_a_push_is_of_the_scheme_of_what_it_has_brought(bench: Bench) -> None:
    ticket = await bench.begin(await bench.repository())
    assert await bench.index.is_of_scheme(ticket, Scheme.PLAIN)
    await bench.record(ticket, blob("b1"))
    assert await bench.index.is_of_scheme(ticket, TYPED)
    assert not await bench.index.is_of_scheme(ticket, Scheme.PLAIN)
