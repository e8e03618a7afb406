"""What every ``Index`` promises of rows that are mended after the packs themselves, over both implementations."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from storage.layout import Place
from storage.pack_repair import PackRepair
from storage.rows import Repository, StoredBlob
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

OBJECTS = [blob("a", 5, "pack", 92), blob("b", 6, "pack", 200), blob("c", 7, "pack", 300)]
CONTENT = b"hello"


async def pushed(bench: Bench, *blobs: StoredBlob, slug: str = "x") -> Repository:
    repository = await bench.repository(slug=slug)
    await bench.push(repository, *blobs, snapshot("s"), commit("c1"), new="c1")
    return repository


async def complete(bench: Bench, repository: Repository, *blobs: StoredBlob, refs: bool = True) -> PackRepair:
    """Complete what a repository's push has brought, or just what the index says of the pack."""
    by = uuid.UUID(int=0) if refs else None
    for entry in await bench.index.branch_log(repository.number, "main") if refs else ():
        by = entry.push_id
    return await bench.index.complete_pack(repository.number, TYPED, blobs or OBJECTS, brought_by=by)


async def held(bench: Bench, repository: Repository) -> dict[bytes, Place]:
    return await bench.index.held_places(repository.number, TYPED, [one.object_id for one in OBJECTS])


def places(*blobs: StoredBlob) -> dict[bytes, Place]:
    return {one.object_id: Place(one.object_id, one.size, one.pack_id, one.offset) for one in blobs}


async def test_of_a_whole_index_nothing_is_changed(bench: Bench) -> None:
    repository = await pushed(bench, *OBJECTS)
    assert await complete(bench, repository) == PackRepair()
    assert await bench.index.complete_pack(repository.number, TYPED, [], brought_by=uuid.UUID(int=0)) == PackRepair()
    assert await held(bench, repository) == places(*OBJECTS)


async def test_rows_and_references_that_are_missing_are_completed_once(bench: Bench) -> None:
    repository = await pushed(bench, OBJECTS[0])
    assert await complete(bench, repository) == PackRepair(rows=2, refs=2)
    assert await held(bench, repository) == places(*OBJECTS)
    assert await complete(bench, repository) == PackRepair()


@pytest.mark.parametrize("wrong", [{"offset": 1}, {"size": 1}, {"offset": 1, "size": 1}])
async def test_ranges_that_are_wrong_are_mended(bench: Bench, wrong: dict[str, int]) -> None:
    repository = await pushed(bench, OBJECTS[0], replace(OBJECTS[1], **wrong), OBJECTS[2])
    assert await complete(bench, repository) == PackRepair(ranges=1)
    assert await held(bench, repository) == places(*OBJECTS)


@pytest.mark.parametrize("elsewhere", [blob("b", 6), blob("b", 6, "another pack", 7)])
async def test_what_lies_elsewhere_stays_there(bench: Bench, elsewhere: StoredBlob) -> None:
    """It was proved there; a pack that came later is no better."""
    repository = await pushed(bench, OBJECTS[0], elsewhere, OBJECTS[2])
    assert await complete(bench, repository) == PackRepair()
    assert await held(bench, repository) == places(OBJECTS[0], elsewhere, OBJECTS[2])


async def test_a_content_that_waits_is_in_the_pack_from_now_on(bench: Bench) -> None:
    repository = await pushed(bench, OBJECTS[0], StoredBlob(name("b"), 6, content=b"waits!"), OBJECTS[2])
    assert await complete(bench, repository) == PackRepair(promoted=1)
    assert await held(bench, repository) == places(*OBJECTS)
    assert await bench.index.count_cached() == (0, 0)
    assert await complete(bench, repository) == PackRepair()


async def test_references_are_completed_only_when_it_is_said_so(bench: Bench) -> None:
    """T1: an object in a pack gives nobody a right to it; the row says where it is, and that is all."""
    repository = await pushed(bench, OBJECTS[0])
    assert await complete(bench, repository, refs=False) == PackRepair(rows=2)
    assert await held(bench, repository) == places(OBJECTS[0])
    assert await bench.index.places(TYPED, names("abc")) == places(*OBJECTS)
    assert await bench.index.places(PLAIN, names("abc")) == {}


async def test_a_repository_of_which_no_push_was_accepted_holds_nothing_by_it(bench: Bench) -> None:
    repository, other = await bench.repository(), await pushed(bench, OBJECTS[0], slug="y")
    assert await complete(bench, repository) == PackRepair(rows=2)
    assert await held(bench, repository) == {}
    assert await held(bench, other) == places(OBJECTS[0])


async def test_a_reference_of_a_push_that_is_not_accepted_does_not_count(bench: Bench) -> None:
    repository = await pushed(bench, OBJECTS[0])
    await bench.record(await bench.begin(repository), OBJECTS[1])
    assert await complete(bench, repository) == PackRepair(rows=1, refs=2)
    assert await held(bench, repository) == places(*OBJECTS)


async def test_the_packs_of_a_repository_are_found_some_blobs_at_a_time(bench: Bench) -> None:
    repository = await pushed(bench, *OBJECTS, blob("loose"), blob("d", 1, "other", 92))
    await pushed(bench, blob("e", 1, "strange", 92), slug="y")
    found, after, steps = set(), b"", 0
    while after is not None:
        packs, after = await bench.index.held_packs(repository.number, TYPED, after, 2)
        found |= packs
        steps += 1
    assert (found, steps) == (set(names(["pack", "other"])), 3)
    assert await bench.index.held_packs(repository.number, TYPED, b"", 100) == (found, None)
