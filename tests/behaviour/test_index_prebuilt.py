"""What every ``Index`` promises of full clones made ahead, over both implementations."""

from __future__ import annotations

import datetime as dt
from dataclasses import replace

from storage.prebuilt import PrebuiltPack
from tests.behaviour.test_index import (
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

HOUR = dt.timedelta(hours=1)
NOW = dt.datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=dt.UTC)
X, Y = 7, 8


def pack(*want: str, mpack: str | None = None, expires: dt.datetime = NOW + HOUR) -> PrebuiltPack:
    commits = tuple(sorted(names(want)))
    return PrebuiltPack(commits, name(mpack or f"pack of {want}"), 3, 2**40, 2**41, NOW, expires)


async def test_a_pack_is_found_by_exactly_its_commits(bench: Bench) -> None:
    made = [pack("a"), pack("a", "b")]
    await bench.index.add_prebuilt(X, made, NOW)
    assert await bench.index.find_prebuilt(X, names("a"), NOW) == made[0]
    assert await bench.index.find_prebuilt(X, names("ab"), NOW) == made[1]
    assert await bench.index.find_prebuilt(X, names("ba"), NOW) == made[1]
    for want in ("", "b", "abc"):
        assert await bench.index.find_prebuilt(X, names(want), NOW) is None
    assert await bench.index.find_prebuilt(Y, names("a"), NOW) is None


async def test_new_packs_stand_in_place_of_the_old_ones(bench: Bench) -> None:
    """The branch has moved; what is made of the old commits again counts again."""
    await bench.index.add_prebuilt(X, [pack("a"), pack("b")], NOW)
    await bench.index.add_prebuilt(Y, [pack("a")], NOW)
    await bench.index.add_prebuilt(X, [pack("b", mpack="anew")], NOW)
    assert await bench.index.find_prebuilt(X, names("a"), NOW) is None
    assert await bench.index.find_prebuilt(X, names("b"), NOW) == pack("b", mpack="anew")
    assert await bench.index.find_prebuilt(Y, names("a"), NOW) == pack("a")
    await bench.index.add_prebuilt(X, [pack("a")], NOW)
    assert await bench.index.find_prebuilt(X, names("a"), NOW) == pack("a")
    await bench.index.add_prebuilt(X, [], NOW)
    assert await bench.index.find_prebuilt(X, names("a"), NOW) is None


async def test_a_pack_that_has_expired_is_not_given_and_its_file_is_kept_a_while(bench: Bench) -> None:
    made = pack("a")
    await bench.index.add_prebuilt(X, [made], NOW)
    assert await bench.index.find_prebuilt(X, names("a"), NOW + HOUR) is None
    assert await bench.index.kept_prebuilt([made.mpack_id, name("other")]) == {made.mpack_id}
    assert await bench.index.forget_prebuilt(made.expires - dt.timedelta(microseconds=1), 10) == 0
    assert await bench.index.forget_prebuilt(made.expires, 10) == 1
    assert await bench.index.kept_prebuilt([made.mpack_id]) == set()
    assert await bench.index.kept_prebuilt([]) == set()


async def test_one_file_of_two_repositories_is_kept_for_both(bench: Bench) -> None:
    await bench.index.add_prebuilt(X, [pack("a", mpack="one")], NOW)
    await bench.index.add_prebuilt(Y, [pack("a", mpack="one", expires=NOW + 2 * HOUR)], NOW)
    assert await bench.index.forget_prebuilt(NOW + HOUR, 10) == 1
    assert await bench.index.kept_prebuilt([name("one")]) == {name("one")}


async def test_a_few_are_forgotten_at_a_time(bench: Bench) -> None:
    await bench.index.add_prebuilt(X, [pack(text) for text in "abc"], NOW)
    assert [await bench.index.forget_prebuilt(NOW + HOUR, 2) for _ in range(3)] == [2, 1, 0]


async def test_a_pack_that_is_used_lives_on(bench: Bench) -> None:
    made = pack("a")
    await bench.index.add_prebuilt(X, [made], NOW)
    await bench.index.extend_prebuilt(X, made, NOW + 3 * HOUR)
    assert await bench.index.find_prebuilt(X, names("a"), NOW + 2 * HOUR) == replace(made, expires=NOW + 3 * HOUR)


async def test_what_has_been_replaced_meanwhile_is_neither_extended_nor_dropped(bench: Bench) -> None:
    made, newer = pack("a"), pack("a", mpack="newer")
    await bench.index.add_prebuilt(X, [newer], NOW)
    await bench.index.extend_prebuilt(X, made, NOW + 3 * HOUR)
    await bench.index.drop_prebuilt(X, made)
    assert await bench.index.find_prebuilt(X, names("a"), NOW) == newer
    await bench.index.add_prebuilt(X, [], NOW)
    await bench.index.extend_prebuilt(X, newer, NOW + 3 * HOUR)
    assert await bench.index.find_prebuilt(X, names("a"), NOW) is None
    await bench.index.drop_prebuilt(X, newer)
    assert await bench.index.kept_prebuilt([newer.mpack_id]) == set()


async def test_a_repositorys_bytes_are_those_of_its_accepted_pushes(bench: Bench) -> None:
    repository = await bench.repository()
    assert await bench.index.repository_bytes(repository.number) == 0
    await bench.push(repository, blob("a", 100), snapshot("s"), commit("c1"), new="c1")
    await bench.record(await bench.begin(repository), blob("b", 1_000))
    assert await bench.index.repository_bytes(repository.number) == 100
