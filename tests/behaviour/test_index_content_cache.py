"""What every ``Index`` promises of contents that wait for their place in the store, over both implementations."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import trio

from storage.content_cache import CachedContent
from storage.index import READ_BYTES
from storage.layout import Place
from storage.rows import BranchMove, Outcome, PushRows, PushTicket, Repository, StoredBlob
from tests.behaviour.test_index import (
    PLAIN,
    TYPED,
    VERDICT,
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

MIB = 1024 * 1024


def pending(text: str, content: bytes | None = None) -> StoredBlob:
    content = f"content of {text}".encode() if content is None else content
    return StoredBlob(name(text), len(content), content=content)


async def cached(bench: Bench, *texts: str, scheme: Scheme = TYPED) -> Mapping[bytes, bytes]:
    return await bench.index.cached_contents(scheme, names(texts))


async def entries(bench: Bench) -> list[int]:
    return [one.entry for one in await bench.index.oldest_cached(0, 1_000)]


async def place(bench: Bench, text: str, scheme: Scheme = TYPED) -> Place | None:
    return (await bench.index.places(scheme, [name(text)])).get(name(text))


async def opened(bench: Bench, *blobs: StoredBlob, slug: str = "x") -> tuple[Repository, PushTicket]:
    repository = await bench.repository(slug=slug)
    ticket = await bench.begin(repository)
    await bench.record(ticket, *blobs)
    return repository, ticket


async def test_a_content_that_comes_along_is_pending_and_is_given_whole(bench: Bench) -> None:
    await opened(bench, pending("a"), blob("b", 7), pending("empty", b""))
    assert await place(bench, "a") == Place(name("a"), 12, None, 0, pending=True)
    assert (await place(bench, "a")).storage_uri(TYPED) == "pending"
    assert await place(bench, "b") == Place(name("b"), 7, None, 0)
    assert await cached(bench, "a", "b", "empty", "unknown") == {name("a"): b"content of a", name("empty"): b""}
    assert await bench.index.count_cached() == (2, 12)


async def test_a_content_belongs_to_one_scheme(bench: Bench) -> None:
    """The same digits may be ids of two contents."""
    await opened(bench, pending("a", b"typed"))
    other = await bench.begin(await bench.repository(slug="y"))
    await bench.index.record_blobs(other, PLAIN, [pending("a", b"plain, longer")])
    assert await cached(bench, "a") == {name("a"): b"typed"}
    assert await cached(bench, "a", scheme=PLAIN) == {name("a"): b"plain, longer"}
    first, second = await bench.index.oldest_cached(0, 10)
    assert await bench.index.promote_cached([first.entry]) == 1
    assert (await place(bench, "a")).pending is False
    assert (await place(bench, "a", PLAIN)).pending is True
    assert second == CachedContent(second.entry, PLAIN, name("a"), b"plain, longer")


@pytest.mark.parametrize("before", [blob("a", 12), blob("a", 12, "pack", 92)])
async def test_what_is_in_the_store_stays_where_it_is(bench: Bench, before: StoredBlob) -> None:
    await opened(bench, before)
    await opened(bench, pending("a"), slug="y")
    assert await place(bench, "a") == Place(name("a"), 12, before.pack_id, before.offset)
    assert await bench.index.count_cached() == (0, 0)


async def test_what_waits_stays_there_whatever_comes_next(bench: Bench) -> None:
    """A pack or a loose object that comes later is used when the content is promoted, not before."""
    await opened(bench, pending("a"))
    for slug, later in (("y", blob("a", 12)), ("z", blob("a", 12, "pack", 92)), ("w", pending("a"))):
        await opened(bench, later, slug=slug)
    assert await place(bench, "a") == Place(name("a"), 12, None, 0, pending=True)
    assert await bench.index.count_cached() == (1, 12)


async def test_one_content_named_twice_waits_once(bench: Bench) -> None:
    await opened(bench, pending("a"), pending("a"), blob("b"), pending("c"))
    assert await cached(bench, "a", "a", "b") == {name("a"): b"content of a"}
    assert await bench.index.count_cached() == (2, 24)


async def test_contents_are_promoted_in_the_order_they_came(bench: Bench) -> None:
    await opened(bench, pending("b"))
    await opened(bench, pending("a"), slug="y")
    first, second = await bench.index.oldest_cached(0, 10)
    assert (first.object_id, first.content, first.scheme) == (name("b"), b"content of b", TYPED)
    assert second.object_id == name("a")
    assert await bench.index.oldest_cached(0, 1) == [first]
    assert await bench.index.oldest_cached(first.entry, 10) == [second]
    assert await bench.index.promote_cached([first.entry]) == 1
    assert await place(bench, "b") == Place(name("b"), 12, None, 0)
    assert await cached(bench, "a", "b") == {name("a"): b"content of a"}
    assert await bench.index.oldest_cached(0, 10) == [second]


async def test_promoting_again_does_nothing(bench: Bench) -> None:
    """Its answer may have been lost, and another worker may have been quicker."""
    await opened(bench, pending("a"), pending("b"))
    numbers = await entries(bench)
    assert await bench.index.promote_cached(numbers) == 2
    assert await bench.index.promote_cached(numbers) == 0
    assert await bench.index.promote_cached([]) == 0
    assert await bench.index.count_cached() == (0, 0)


async def test_contents_are_given_by_what_fits(bench: Bench) -> None:
    """Nobody gets more than some MiB at once, and nobody nothing."""
    size = READ_BYTES // 2 + 1
    _, ticket = await opened(bench)
    for text in "abc":
        await bench.record(ticket, pending(text, text.encode() * size))
    await bench.record(ticket, pending("d", b"d"))
    given = await cached(bench, *"dcba")
    assert set(given) == set(names("dcb"))
    assert given[name("c")] == b"c" * size
    assert len(await bench.index.oldest_cached(0, 10)) == 2
    assert set(await cached(bench, "a")) == {name("a")}


async def test_a_content_goes_with_the_transaction_that_was_to_record_it(bench: Bench) -> None:
    """A push that does not move its branch leaves nothing in a transaction of its own."""
    repository = await bench.repository()
    await bench.push(repository, snapshot("s"), commit("c1"), new="c1")
    ticket = await bench.begin(repository)
    rows = PushRows([pending("a")], [snapshot("s")], [commit("c2")])
    move = BranchMove("main", None, name("c2"), False)
    done = await bench.index.finish_push(ticket, TYPED, rows, move, lambda _: VERDICT, bench.environment.now())
    assert done.outcome is Outcome.HEAD_DIFFERS
    assert await bench.index.lacking_blobs(ticket, [name("a")]) == [name("a")]


async def test_a_push_is_accepted_together_with_its_contents(bench: Bench) -> None:
    repository = await bench.repository()
    ticket = await bench.begin(repository)
    rows = PushRows([pending("a")], [snapshot("s")], [commit("c1")])
    move = BranchMove("main", None, name("c1"), False)
    done = await bench.index.finish_push(ticket, TYPED, rows, move, lambda _: VERDICT, bench.environment.now())
    assert done.outcome is Outcome.MOVED
    held = await bench.index.held_places(repository.number, TYPED, [name("a")])
    assert held == {name("a"): Place(name("a"), 12, None, 0, pending=True)}
    assert await cached(bench, "a") == {name("a"): b"content of a"}


async def test_many_promote_and_push_at_once_and_nothing_is_lost(bench: Bench) -> None:
    """Whoever wins, a blob is either pending with its content or in the store."""
    tickets = [await bench.begin(await bench.repository(slug=f"r{n}")) for n in range(4)]

    async def push(number: int) -> None:
        for step in range(10):
            blobs = [pending(f"{(number + step + at) % 17}") for at in range(5)]
            await bench.record(tickets[number], *blobs)

    async def promote() -> None:
        for _ in range(10):
            await bench.index.promote_cached(await entries(bench))

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(4):
                nursery.start_soon(push, number)
            nursery.start_soon(promote)
            nursery.start_soon(promote)
    wanted = names(str(n) for n in range(17))
    places = await bench.index.places(TYPED, wanted)
    assert set(places) == set(wanted)
    waiting = {i for i in wanted if places[i].pending}
    assert set(await bench.index.cached_contents(TYPED, wanted)) == waiting
    assert (await bench.index.count_cached())[0] == len(waiting)


async def test_asking_for_nothing_gives_nothing(bench: Bench) -> None:
    assert await bench.index.cached_contents(TYPED, []) == {}
    assert await bench.index.oldest_cached(0, 10) == []
    assert await bench.index.count_cached() == (0, 0)
