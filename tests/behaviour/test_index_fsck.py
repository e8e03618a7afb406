"""What every ``Index`` promises of what ``fsck`` and repairs work with, over both implementations."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from storage.collection_rows import Mark, RefKind, ReviewCursor
from storage.errors import LeaseLost, Tombstoned
from storage.layout import Place
from storage.rows import BranchMove, Outcome, SnapshotRow, StoredBlob
from tests.behaviour.test_index import (
    PLAIN,
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

LEASE = uuid.UUID(int=3)
PACKED = blob("a", 5, "pack", 92)
LOOSE = blob("a", 5)
WAITING = StoredBlob(name("a"), 5, content=b"waits")


def place_of(stored: StoredBlob) -> Place:
    return Place(stored.object_id, stored.size, stored.pack_id, stored.offset, stored.content is not None)


@pytest.fixture
async def leasing(bench: Bench) -> Bench:
    await bench.index.take_lease(LEASE, 0, bench.environment.now(), 300)
    return bench


async def recorded(bench: Bench, *blobs: StoredBlob) -> None:
    await bench.push(await bench.repository(), *blobs, snapshot("s"), commit("c1"), new="c1")


async def place(bench: Bench) -> Place | None:
    return (await bench.index.places(TYPED, [name("a")])).get(name("a"))


@pytest.mark.parametrize("before", [PACKED, LOOSE, WAITING, blob("a", 4, "pack", 92), blob("a", 5, "pack", 1)])
@pytest.mark.parametrize("after", [LOOSE, PACKED, blob("a", 5, "new pack", 7)])
async def test_a_row_that_says_what_was_believed_is_corrected(
    leasing: Bench, before: StoredBlob, after: StoredBlob
) -> None:
    await recorded(leasing, before)
    other = await leasing.repository(slug="y")
    await leasing.push(other, before, snapshot("s"), commit("c1"), new="c1", scheme=PLAIN)
    corrections = [(place_of(before), place_of(after))]
    for _ in range(2):  # done again after its answer was lost, it is still so
        assert await leasing.index.correct_places(LEASE, TYPED, corrections) == {name("a")}
        assert await place(leasing) == place_of(after)
    assert await leasing.index.count_cached() == ((1, 5) if before is WAITING else (0, 0))  # the other scheme's
    assert (await leasing.index.places(PLAIN, [name("a")]))[name("a")] == place_of(before)


@pytest.mark.parametrize(
    "believed",
    [replace(PACKED, offset=1), replace(PACKED, size=4), replace(PACKED, pack_id=name("old")), LOOSE, WAITING],
)
async def test_a_row_that_was_changed_meanwhile_stays(leasing: Bench, believed: StoredBlob) -> None:
    await recorded(leasing, PACKED)
    elsewhere = Place(name("a"), 5, name("elsewhere"), 9)
    assert await leasing.index.correct_places(LEASE, TYPED, [(place_of(believed), elsewhere)]) == set()
    assert await place(leasing) == place_of(PACKED)


async def test_a_row_that_was_collected_meanwhile_does_not_come_again(leasing: Bench) -> None:
    assert await leasing.index.correct_places(LEASE, TYPED, [(place_of(PACKED), place_of(LOOSE))]) == set()
    assert await place(leasing) is None


async def test_a_row_that_was_lacking_is_there_then(leasing: Bench) -> None:
    assert await leasing.index.correct_places(LEASE, TYPED, [(None, place_of(LOOSE))]) == {name("a")}
    assert await place(leasing) == place_of(LOOSE)
    assert await leasing.index.correct_places(LEASE, TYPED, [(None, place_of(PACKED))]) == set()
    assert await place(leasing) == place_of(LOOSE)


@pytest.mark.parametrize(
    ("before", "after", "suspects"),
    [(PACKED, LOOSE, 1), (LOOSE, PACKED, 1), (LOOSE, LOOSE, 0), (WAITING, LOOSE, 0), (blob("a", 5, "pack"), PACKED, 0)],
)
async def test_what_is_left_behind_is_a_suspect(
    leasing: Bench, before: StoredBlob, after: StoredBlob, suspects: int
) -> None:
    await recorded(leasing, before)
    await leasing.index.correct_places(LEASE, TYPED, [(place_of(before), place_of(after))])
    assert (await leasing.index.count_marks())["suspects"] == suspects


async def test_who_has_lost_the_lease_corrects_nothing(bench: Bench) -> None:
    await recorded(bench, PACKED)
    with pytest.raises(LeaseLost):
        await bench.index.correct_places(LEASE, TYPED, [(place_of(PACKED), place_of(LOOSE))])
    assert await place(bench) == place_of(PACKED)


async def test_a_copy_that_is_marked_is_kept_and_one_with_a_tombstone_is_not_recorded(bench: Bench) -> None:
    await recorded(bench, PACKED)
    index, environment = bench.index, bench.environment
    await index.mark_orphans([Mark(name("a"), TYPED)], environment.now())
    await index.take_lease(LEASE, 0, environment.now(), 10_000)
    assert await index.correct_places(LEASE, TYPED, [(place_of(PACKED), place_of(LOOSE))]) == {name("a")}
    assert (await index.count_marks())["marked"] == 0
    await index.correct_places(LEASE, TYPED, [(place_of(LOOSE), place_of(PACKED))])
    await index.end_lease(LEASE)
    await index.mark_suspects(environment.now(), 10)
    environment.move(700)
    number = environment.uuid()
    await index.begin_review(number, environment.now(), 300, 10)
    cursor = await index.review(number, ReviewCursor())
    while cursor is not None:
        cursor = await index.review(number, cursor)
    assert (await index.condemn(number, 10, environment.now())).tombstones == 1
    await index.take_lease(LEASE, 0, environment.now(), 300)
    with pytest.raises(Tombstoned):
        await index.correct_places(LEASE, TYPED, [(place_of(PACKED), place_of(LOOSE))])
    assert await place(bench) == place_of(PACKED)


KINDS = {RefKind.BLOB: "b", RefKind.SNAPSHOT: "s", RefKind.COMMIT: "c"}


async def history(bench: Bench) -> int:
    """A repository that holds seven of each kind by two pushes, and one that holds others."""
    mine, other = await bench.repository(), await bench.repository(slug="y")
    for start, repository, head, old in ((0, mine, "c3", None), (3, mine, "c6", "c3"), (7, other, "c9", None)):
        numbers = range(start, start + 4 if repository is mine else 10)
        rows = [row for n in numbers for row in (blob(f"b{n}"), snapshot(f"s{n}"), commit(f"c{n}"))]
        await bench.push(repository, *rows, new=head, old=old)
    await bench.record(await bench.begin(mine), blob("b20"), snapshot("s20"), commit("c20"))
    return mine.number


@pytest.mark.parametrize("kind", RefKind)
async def test_what_a_repository_holds_is_given_page_by_page(bench: Bench, kind: RefKind) -> None:
    repo, letter = await history(bench), KINDS[kind]
    found: list[bytes] = []
    after = b""
    while page := await bench.index.held_ids(repo, kind, after, 3):
        assert len(page) <= 3
        found, after = found + page, page[-1]
    assert found == sorted(names(f"{letter}{n}" for n in range(7)))
    asked = names(f"{letter}{n}" for n in (0, 6, 7, 20, 99))
    assert await bench.index.unheld(repo, kind, asked) == set(asked[2:])
    assert await bench.index.unheld(repo, kind, []) == set()


async def test_moves_of_branches_are_given_page_by_page_deleted_branches_included(bench: Bench) -> None:
    repo = await history(bench)
    index, now = bench.index, bench.environment.now()
    for move in (
        BranchMove("a branch", None, name("c3"), False), BranchMove("main", name("c6"), name("c3"), True),
        BranchMove("a branch", name("c3"), None, False),
    ):  # fmt: skip
        assert (await index.move_branches(repo, [move], "ada", now)).outcome is Outcome.MOVED
    found = []
    after = ("", 0)
    while page := await index.branch_moves_after(repo, after, 2):
        found += [(move.entry.branch, move.entry.old, move.entry.new) for move in page]
        after = (page[-1].entry.branch, page[-1].number)
    c3, c6 = names(["c3", "c6"])
    assert found == [
        ("a branch", None, c3), ("a branch", c3, None), ("main", None, c3), ("main", c3, c6), ("main", c6, c3),
    ]  # fmt: skip


async def test_a_snapshot_is_mended_if_it_is_what_it_was_believed_to_be(bench: Bench) -> None:
    await history(bench)
    (wrong,) = await bench.index.snapshot_chain(TYPED, name("s1"))
    assert await bench.index.stored_snapshot(TYPED, name("s1")) == wrong
    assert await bench.index.stored_snapshot(TYPED, name("s50")) is None
    right = SnapshotRow(name("s1"), None, 0, b"right", None)
    assert await bench.index.mend_snapshot(TYPED, replace(wrong, delta=b"another"), right) is False
    assert await bench.index.snapshot_chain(TYPED, name("s1")) == [wrong]
    assert await bench.index.mend_snapshot(TYPED, None, right) is False
    assert await bench.index.mend_snapshot(TYPED, wrong, right) is True
    assert await bench.index.snapshot_chain(TYPED, name("s1")) == [right]
    based = SnapshotRow(name("s1"), name("s2"), 1, b"changes", b"full")
    assert await bench.index.mend_snapshot(TYPED, right, based) is True
    assert await bench.index.mend_snapshot(TYPED, replace(based, full=None), right) is False
    assert await bench.index.mend_snapshot(TYPED, based, right) is True
    new = SnapshotRow(name("s50"), None, 0, b"new", None)
    assert await bench.index.mend_snapshot(TYPED, right, new) is False
    assert await bench.index.mend_snapshot(TYPED, None, new) is True
    assert await bench.index.snapshot_chain(TYPED, name("s50")) == [new]
