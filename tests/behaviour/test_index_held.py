"""What every ``Index`` promises of blobs held before a push names them, against the memory twin and PostgreSQL."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import assert_checkpoints

from storage.errors import StaleTicket
from storage.index import Index
from storage.layout import Place
from storage.rows import HELD_S, PushTicket, Repository
from tests.behaviour.test_index import (
    PLAIN,
    TYPED,
    VERDICT,
    Bench,
    bench,
    blob,
    emptied_url,
    index,
    name,
    names,
    tables,
    url,
)
from wire.ids import Scheme

__all__ = ["bench", "emptied_url", "index", "tables", "url"]

DAY = dt.timedelta(seconds=HELD_S)
SECOND = dt.timedelta(seconds=1)


async def hold(
    bench: Bench, repository: Repository, *texts: str, scheme: Scheme = TYPED, for_s: float = HELD_S
) -> None:
    expires = bench.environment.now() + dt.timedelta(seconds=for_s)
    await bench.index.hold_blobs(repository.number, scheme, [blob(text, len(text)) for text in texts], expires)


async def stored(
    bench: Bench, repository: Repository, *texts: str, push: PushTicket | None = None, handle: str = "ada",
    scheme: Scheme = TYPED, after: dt.timedelta = dt.timedelta(0),
) -> set[bytes]:  # fmt: skip
    now = bench.environment.now() + after
    asks = None if push is None else (push.push_id, handle)
    return await bench.index.stored_blobs(repository.number, scheme, names(texts), now, asks)


async def claim(
    bench: Bench, ticket: PushTicket, *texts: str, scheme: Scheme = TYPED, after: dt.timedelta = dt.timedelta(0)
) -> set[bytes]:
    return await bench.index.claim_blobs(ticket, scheme, names(texts), bench.environment.now() + after)


async def test_what_is_held_is_stored_for_its_repository_alone(bench: Bench) -> None:
    """T2: nobody learns what another repository holds, not even one of the same owner."""
    x, y = await bench.repository(), await bench.repository(slug="y")
    await hold(bench, x, "a", "b")
    assert await stored(bench, x, "a", "b", "c") == set(names("ab"))
    assert await stored(bench, y, "a", "b", "c") == set()


async def test_a_held_blob_can_be_found_and_not_read(bench: Bench) -> None:
    """The row says where the bytes are; it gives no right to them."""
    x = await bench.repository()
    await hold(bench, x, "abc")
    assert await bench.index.places(TYPED, [name("abc")]) == {name("abc"): Place(name("abc"), 3, None, 0)}
    assert await bench.index.held_places(x.number, TYPED, [name("abc")]) == {}
    assert (await bench.index.known_blobs(x.number, TYPED, [name("abc")])).held == set()


async def test_what_an_accepted_push_brought_is_stored(bench: Bench) -> None:
    x, y = await bench.repository(), await bench.repository(slug="y")
    await bench.push(x, blob("a"))
    assert await stored(bench, x, "a", "b") == {name("a")}
    assert await stored(bench, y, "a") == set()


async def test_what_an_open_push_has_brought_is_stored_for_whoever_names_it_and_sends_it(bench: Bench) -> None:
    """An interrupted push goes on where it stopped; nobody else learns what it has brought."""
    x = await bench.repository()
    mine, other = await bench.begin(x), await bench.begin(x, handle="bob")
    await bench.record(mine, blob("a"))
    assert await stored(bench, x, "a") == set()
    assert await stored(bench, x, "a", push=mine) == {name("a")}
    assert await stored(bench, x, "a", push=mine, handle="bob") == set()
    assert await stored(bench, x, "a", push=other, handle="bob") == set()
    again = await bench.begin(x, mine.push_id)
    assert await stored(bench, x, "a", push=again) == {name("a")}
    await bench.index.refuse_push(again, VERDICT, bench.environment.now())
    assert await stored(bench, x, "a", push=mine) == set()


async def test_a_holding_is_of_one_scheme(bench: Bench) -> None:
    """An empty repository has no scheme yet, and one digest may be an id of two contents."""
    x = await bench.repository()
    await hold(bench, x, "a", scheme=PLAIN)
    assert await stored(bench, x, "a") == set()
    ticket = await bench.begin(x)
    assert await claim(bench, ticket, "a") == set()
    await hold(bench, x, "a")
    assert await claim(bench, ticket, "a") == {name("a")}


async def test_a_holding_ends_when_it_expires(bench: Bench) -> None:
    x = await bench.repository()
    await hold(bench, x, "a")
    ticket = await bench.begin(x)
    assert await claim(bench, ticket, "a", after=DAY) == set()
    assert await stored(bench, x, "a", after=DAY) == set()
    assert await claim(bench, ticket, "a", after=DAY - SECOND) == {name("a")}


async def test_what_is_said_to_be_stored_stays_long_enough_for_a_push(bench: Bench) -> None:
    x = await bench.repository()
    await hold(bench, x, "fading", for_s=2)
    await hold(bench, x, "fresh", for_s=0.75 * HELD_S)
    assert await stored(bench, x, "fading", "fresh", after=SECOND) == set(names(["fading", "fresh"]))
    ticket = await bench.begin(x)
    later = DAY / 2 + SECOND
    assert await claim(bench, ticket, "fading", "fresh", after=later) == set(names(["fading", "fresh"]))
    assert await claim(bench, await bench.begin(x), "fading", "fresh", after=DAY) == {name("fading")}


async def test_holding_again_never_shortens(bench: Bench) -> None:
    x = await bench.repository()
    await hold(bench, x, "a", "b")
    await hold(bench, x, "a", "b", for_s=1)
    assert await claim(bench, await bench.begin(x), "a", "b", after=DAY / 2) == set(names("ab"))


async def test_what_was_claimed_is_the_pushs_own(bench: Bench) -> None:
    x = await bench.repository()
    await hold(bench, x, "a", "b")
    ticket = await bench.begin(x)
    assert await claim(bench, ticket, "a", "c") == {name("a")}
    assert set(await bench.index.lacking_blobs(ticket, names("abc"))) == set(names("bc"))
    assert await claim(bench, ticket, "a") == set()  # it is there already
    assert (await bench.index.held_places(x.number, TYPED, [name("a")])) == {}
    await bench.accept(ticket, "head")
    assert (await bench.index.held_places(x.number, TYPED, [name("a")])).keys() == {name("a")}
    assert await claim(bench, await bench.begin(x), "a", "b") == {name("b")}  # the repository has it


async def test_another_repository_cannot_claim(bench: Bench) -> None:
    """T1: an id is no proof."""
    x, y = await bench.repository(), await bench.repository(slug="y")
    await hold(bench, x, "a")
    assert await claim(bench, await bench.begin(y), "a") == set()


async def test_two_pushes_may_claim_the_same_blob(bench: Bench) -> None:
    """One of them may be refused."""
    x = await bench.repository()
    await hold(bench, x, "a")
    for ticket in [await bench.begin(x), await bench.begin(x)]:
        assert await claim(bench, ticket, "a") == {name("a")}


async def test_a_stale_attempt_claims_nothing(bench: Bench) -> None:
    x = await bench.repository()
    await hold(bench, x, "a")
    old = await bench.begin(x)
    new = await bench.begin(x, old.push_id)
    with pytest.raises(StaleTicket):
        await claim(bench, old, "a")
    assert await claim(bench, new, "a") == {name("a")}


async def test_a_held_blob_of_a_pack_is_found_there(bench: Bench) -> None:
    x = await bench.repository()
    expires = bench.environment.now() + DAY
    await bench.index.hold_blobs(x.number, TYPED, [blob("a", 7, "pack", 92)], expires)
    assert await bench.index.places(TYPED, [name("a")]) == {name("a"): Place(name("a"), 7, name("pack"), 92)}


async def test_only_expired_holdings_are_forgotten_a_few_at_a_time(bench: Bench) -> None:
    x = await bench.repository()
    await hold(bench, x, *"abc", for_s=1)
    await hold(bench, x, "fresh")
    now = bench.environment.now()
    assert await bench.index.forget_held(now, 10) == 0
    later = now + 2 * SECOND
    assert [await bench.index.forget_held(later, 2) for _ in range(3)] == [2, 1, 0]
    assert await stored(bench, x, *"abc", "fresh") == {name("fresh")}
    assert (await bench.index.places(TYPED, names("abc"))).keys() == set(names("abc"))


async def test_many_are_looked_up_like_few(bench: Bench) -> None:
    """Ids that lie close together are found in another way; the answer is the same."""
    x, y = await bench.repository(), await bench.repository(slug="y")
    texts = [f"blob {number}" for number in range(3_000)]
    await bench.push(x, *[blob(text) for text in texts[:1_000]])
    await bench.push(y, *[blob(text) for text in texts[500:2_000]])
    open_push = await bench.begin(x)
    await bench.record(open_push, *[blob(text) for text in texts[900:1_200]])
    await hold(bench, x, *texts[1_200:1_300])
    ordered = sorted(texts, key=name)
    for push, expected in [(None, [*texts[:1_000], *texts[1_200:1_300]]), (open_push, texts[:1_300])]:
        found: set[bytes] = set()
        for at in range(0, len(ordered), 300):
            found |= await stored(bench, x, *ordered[at : at + 300], push=push)
        assert found == set(names(expected))
        assert await stored(bench, x, *texts, push=push) == found


async def test_a_crowded_stretch_is_looked_up_key_by_key(bench: Bench) -> None:
    """More lies between the first and the last of some ids than is worth reading."""
    x = await bench.repository()
    ordered = sorted((f"blob {number}" for number in range(40_000)), key=name)[:6_000]
    await bench.push(x, *[blob(text) for text in ordered[::2]])
    wanted = ordered[1::50] + ordered[::50]
    assert await stored(bench, x, *wanted) == set(names(ordered[::50]))


OPERATIONS: dict[str, Callable[[Index, PushTicket, dt.datetime], Awaitable[object]]] = {
    "stored_blobs": lambda index, ticket, now: index.stored_blobs(ticket.repo, TYPED, [], now),
    "hold_blobs": lambda index, ticket, now: index.hold_blobs(ticket.repo, TYPED, [], now),
    "claim_blobs": lambda index, ticket, now: index.claim_blobs(ticket, TYPED, [], now),
    "forget_held": lambda index, _, now: index.forget_held(now, 1),
}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_every_operation_is_a_checkpoint_and_takes_nothing_for_nothing(bench: Bench, operation: str) -> None:
    ticket = await bench.begin(await bench.repository())
    with assert_checkpoints():
        assert not await OPERATIONS[operation](bench.index, ticket, bench.environment.now())


async def test_those_who_hold_the_same_blobs_at_once_do_not_wait_in_a_circle(bench: Bench) -> None:
    x = await bench.repository()
    texts = [f"blob {number}" for number in range(300)]
    async with trio.open_nursery() as nursery:
        for step in (1, -1, 7, -7):
            nursery.start_soon(lambda s=step: hold(bench, x, *sorted(texts, key=lambda t: name(f"{s}{t}"))))
    assert await stored(bench, x, *texts) == set(names(texts))
