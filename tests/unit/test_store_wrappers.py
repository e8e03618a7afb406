"""What each wrapper adds to a store: verifying, retrying, limiting, failing on purpose."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from storage.environment import SeededEnvironment
from storage.errors import ObjectDamaged, ObjectMissing, StorageError, StoreFull, StoreUnavailable
from storage.object_store import ObjectStore, ReadRange
from storage.objects.faulty import Call, Fault, FaultyStore
from storage.objects.limited import SLOWEST_BYTES_PER_S, LimitedStore
from storage.objects.memory import MemoryStore
from storage.objects.retrying import RetryingStore, RetryPolicy
from storage.objects.verifying import VerifyingStore
from storage.objects.wrapped import WrappedStore

MOST = 1024 * 1024
CONTENT = b"what was written"
NAME = hashlib.sha256(CONTENT).hexdigest()
KEY = f"objects/plain/{NAME[:2]}/{NAME[2:]}"
LARGE = bytes(range(256)) * 4096
LARGE_KEY = f"packs/{hashlib.sha256(LARGE).hexdigest()}.mpack"


def every(**fault: object) -> Callable[[Call], Fault | None]:
    return lambda call: Fault(**fault)


def first(count: int, **fault: object) -> Callable[[Call], Fault | None]:
    return lambda call: Fault(**fault) if call.number <= count else None


def on(operation: str, **fault: object) -> Callable[[Call], Fault | None]:
    return lambda call: Fault(**fault) if call.operation == operation else None


async def read_stream(store: ObjectStore, key: str, *place: int) -> bytes:
    async with store.stream(key, *place) as pieces:
        return b"".join([piece async for piece in pieces])


@pytest.fixture
async def kept(memory_store: MemoryStore) -> MemoryStore:
    """A store that has both contents."""
    await memory_store.put_batch([(KEY, CONTENT), (LARGE_KEY, LARGE)])
    return memory_store


# ---- verifying


def typed_key(content: bytes) -> str:
    name = hashlib.sha256(b"blob %d\0" % len(content) + content).hexdigest()
    return f"objects/typed/{name[:2]}/{name[2:]}"


RIGHT = [(KEY, CONTENT), (typed_key(CONTENT), CONTENT), (typed_key(b""), b""), (LARGE_KEY, LARGE)]
RIGHT += [(f"{room}/{hashlib.sha256(LARGE).hexdigest()}.mpack", LARGE) for room in ("records", "fetch")]


@pytest.mark.parametrize(("key", "content"), RIGHT, ids=[key[:14] for key, _ in RIGHT])
async def test_what_its_key_promises_passes(memory_store: MemoryStore, key: str, content: bytes) -> None:
    store = VerifyingStore(memory_store)
    await store.put_batch([(key, content)])
    assert await store.get(key, 2 * MOST) == content
    assert await read_stream(store, key) == content


@pytest.mark.parametrize(("key", "content"), RIGHT, ids=[key[:14] for key, _ in RIGHT])
async def test_what_its_key_does_not_promise_is_not_taken_in(
    memory_store: MemoryStore, key: str, content: bytes
) -> None:
    store = VerifyingStore(memory_store)
    with pytest.raises(ObjectDamaged):
        await store.put_batch([("notes/one", b"in the same batch"), (key, content + b"x")])
    assert [found async for found in memory_store.scan("")] == []


@pytest.mark.parametrize(("key", "content"), RIGHT, ids=[key[:14] for key, _ in RIGHT])
async def test_what_its_key_does_not_promise_is_not_handed_out(
    memory_store: MemoryStore, key: str, content: bytes
) -> None:
    store = VerifyingStore(memory_store)
    for wrong in (bytes([content[0] ^ 1]) + content[1:] if content else b"\0", content[:-1], content + b"x", b""):
        if wrong == content:
            continue
        await memory_store.put_batch([(key, wrong)])
        with pytest.raises(ObjectDamaged):
            await store.get(key, 2 * MOST)
        with pytest.raises(ObjectDamaged):
            await read_stream(store, key)


async def test_the_last_piece_of_a_wrong_stream_is_never_handed_out(memory_store: MemoryStore) -> None:
    await memory_store.put_batch([(LARGE_KEY, LARGE[:-1] + b"\0")])
    received = b""
    with pytest.raises(ObjectDamaged):  # noqa: PT012 - on the way
        async with VerifyingStore(memory_store).stream(LARGE_KEY) as pieces:
            async for piece in pieces:
                received += piece
    assert received == LARGE[: len(received)]
    assert len(received) < len(LARGE)


async def test_a_plain_id_does_not_vouch_for_a_typed_key(memory_store: MemoryStore) -> None:
    with pytest.raises(ObjectDamaged):
        await VerifyingStore(memory_store).put_batch([(KEY.replace("plain", "typed"), CONTENT)])


async def test_a_part_is_handed_out_as_it_is(kept: MemoryStore) -> None:
    store = VerifyingStore(kept)
    assert await store.get_ranges([ReadRange(LARGE_KEY, 5, 10)]) == [LARGE[5:15]]
    assert await read_stream(store, LARGE_KEY, 5, 10) == LARGE[5:15]


# ---- retrying


def retrying(inner: ObjectStore, **policy: float) -> RetryingStore:
    return RetryingStore(inner, SeededEnvironment(3), RetryPolicy(**policy))


@pytest.mark.parametrize("fault", [{"fail_before": True}, {"fail_after": True}], ids=["F1", "F2"])
async def test_F1_a_temporary_failure_is_tried_again(
    kept: MemoryStore, autojump_clock: MockClock, tmp_path: Path, fault: dict[str, bool]
) -> None:
    (tmp_path / "file").write_bytes(CONTENT)
    for result, call in [
        (None, lambda store: store.put_batch([("notes/one", CONTENT)])),
        (None, lambda store: store.put_file("notes/two", tmp_path / "file")),
        (CONTENT, lambda store: store.get(KEY, MOST)),
        ([CONTENT], lambda store: store.get_ranges([ReadRange(KEY, 0, len(CONTENT))])),
        (len(LARGE), lambda store: store.size(LARGE_KEY)),
        (None, lambda store: store.delete(key for key in ["notes/three"])),
    ]:
        faulty = FaultyStore(kept, first(3, **fault))
        store = retrying(faulty)
        assert await call(store) == result
        assert faulty.calls == 4
        assert store.statistics().retries == 3
    assert await kept.get("notes/one", MOST) == await kept.get("notes/two", MOST) == CONTENT


async def test_the_opening_of_a_stream_is_tried_again(kept: MemoryStore, autojump_clock: MockClock) -> None:
    store = retrying(FaultyStore(kept, first(3, fail_before=True)))
    assert await read_stream(store, LARGE_KEY) == LARGE
    assert store.statistics().retries == 3


async def test_a_stream_that_breaks_off_is_not_begun_again(kept: MemoryStore, autojump_clock: MockClock) -> None:
    faulty = FaultyStore(kept, first(1, fail_after=True))
    with pytest.raises(StoreUnavailable):
        await read_stream(retrying(faulty), LARGE_KEY)
    assert faulty.calls == 1


@pytest.mark.parametrize(
    ("fault", "error"),
    [({"full": True}, StoreFull), ({"vanish": True}, ObjectMissing),
     ({"fail_before": True, "temporary": False}, StoreUnavailable)],
)  # fmt: skip
async def test_what_is_not_temporary_is_told_at_once(
    kept: MemoryStore, autojump_clock: MockClock, fault: dict[str, bool], error: type[StorageError]
) -> None:
    faulty = FaultyStore(kept, every(**fault))
    began = trio.current_time()
    with pytest.raises(error):
        await retrying(faulty).get(KEY, MOST)
    assert faulty.calls == 1
    assert trio.current_time() == began


async def test_damage_and_mistakes_of_the_caller_are_not_tried_again(kept: MemoryStore) -> None:
    faulty = FaultyStore(kept, every(flip=True))
    store = retrying(VerifyingStore(faulty))
    with pytest.raises(ObjectDamaged):
        await store.get(KEY, MOST)
    with pytest.raises(ValueError, match="at most 3"):
        await store.get(KEY, 3)
    with pytest.raises(ValueError, match="key"):
        await store.size("../x")
    assert faulty.calls == 3


async def test_no_more_attempts_than_allowed(kept: MemoryStore, autojump_clock: MockClock) -> None:
    faulty = FaultyStore(kept, every(fail_before=True))
    with pytest.raises(StoreUnavailable):
        await retrying(faulty, attempts=5, budget_s=1e9).get(KEY, MOST)
    assert faulty.calls == 5


async def test_no_longer_than_the_budget_allows(kept: MemoryStore, autojump_clock: MockClock) -> None:
    faulty = FaultyStore(kept, every(fail_before=True))
    began = trio.current_time()
    with pytest.raises(StoreUnavailable):
        await retrying(faulty, attempts=10_000, budget_s=20.0).get(KEY, MOST)
    assert 10 <= trio.current_time() - began <= 20
    assert 5 <= faulty.calls <= 30


async def test_slow_calls_count_against_the_budget(kept: MemoryStore, autojump_clock: MockClock) -> None:
    faulty = FaultyStore(kept, every(fail_before=True, delay_s=9.0))
    with pytest.raises(StoreUnavailable):
        await retrying(faulty, attempts=10_000, budget_s=20.0).get(KEY, MOST)
    assert faulty.calls == 3  # the third was begun within the budget


async def test_a_pause_between_attempts_can_be_cancelled(kept: MemoryStore, autojump_clock: MockClock) -> None:
    faulty = FaultyStore(kept, every(fail_before=True))
    with trio.move_on_after(1.0) as scope:
        await retrying(faulty, attempts=10_000, budget_s=1e9).get(KEY, MOST)
    assert scope.cancelled_caught
    assert trio.current_time() == scope.deadline


def test_pauses_grow_to_a_bound_and_are_spread() -> None:
    policy = RetryPolicy(first_delay_s=0.1, longest_delay_s=5.0)
    latest = [policy.delay_s(attempt, 1.0) for attempt in range(1, 2000)]
    assert latest[:4] == [0.1, 0.2, 0.4, 0.8]
    assert max(latest) == 5.0
    assert [policy.delay_s(attempt, 0.0) for attempt in (1, 2, 1000)] == [0.05, 0.1, 2.5]


# ---- limiting


class WatchedStore(WrappedStore):
    """Counts the objects of the puts and the gets that are under way; each call takes as long as it is told."""

    def __init__(self, inner: ObjectStore, call_s: float) -> None:
        super().__init__(inner)
        self.call_s = call_s
        self.puts = self.most_puts = self.gets = self.most_gets = 0

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        self.puts += len(items)
        self.most_puts = max(self.most_puts, self.puts)
        try:
            await trio.sleep(self.call_s)
            await self.inner.put_batch(items)
        finally:
            self.puts -= len(items)

    async def get(self, key: str, most: int) -> bytes:
        self.gets += 1
        self.most_gets = max(self.most_gets, self.gets)
        try:
            await trio.sleep(self.call_s)
            return await self.inner.get(key, most)
        finally:
            self.gets -= 1


def batch(number: int, count: int) -> list[tuple[str, bytes]]:
    return [(f"notes/{number}/{at}", b"x") for at in range(count)]


async def test_no_more_objects_are_written_at_once_than_allowed(
    memory_store: MemoryStore, autojump_clock: MockClock
) -> None:
    watched = WatchedStore(memory_store, 1.0)
    store = LimitedStore(watched, puts=100, gets=5)
    async with trio.open_nursery() as nursery:
        for number in range(12):
            nursery.start_soon(store.put_batch, batch(number, 30))
        await wait_all_tasks_blocked(0.01)
        assert (store.statistics().running, store.statistics().waiting) == (90, 9)
    assert watched.most_puts == 90
    assert len([found async for found in store.scan("")]) == 360
    assert (store.statistics().running, store.statistics().waiting) == (0, 0)


async def test_a_batch_larger_than_the_limit_goes_alone(memory_store: MemoryStore, autojump_clock: MockClock) -> None:
    watched = WatchedStore(memory_store, 1.0)
    store = LimitedStore(watched, puts=10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.put_batch, batch(1, 64))
        nursery.start_soon(store.put_batch, batch(2, 3))
        nursery.start_soon(store.put_batch, batch(3, 64))
    assert watched.most_puts == 64
    assert len([found async for found in store.scan("")]) == 131


async def test_reads_are_bounded_and_not_held_up_by_writes(kept: MemoryStore, autojump_clock: MockClock) -> None:
    watched = WatchedStore(kept, 1.0)
    store = LimitedStore(watched, puts=1, gets=5)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(store.put_batch, batch(number, 1))
        async with trio.open_nursery() as readers:
            for _ in range(10):
                readers.start_soon(store.get, KEY, MOST)
        assert trio.current_time() - began == pytest.approx(2.0)
    assert watched.most_gets == 5
    assert watched.most_puts == 1


async def test_F11_a_call_that_hangs_is_given_up_and_its_slots_are_given_back(
    kept: MemoryStore, autojump_clock: MockClock, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"x")
    hanging = LimitedStore(FaultyStore(kept, every(delay_s=1e6)), puts=64, gets=1, call_timeout_s=60.0)
    for call in [
        lambda: hanging.put_batch(batch(1, 64)),
        lambda: hanging.put_file("notes/one", tmp_path / "file"),
        lambda: hanging.get(KEY, 0),
        lambda: hanging.get_ranges([]),
        lambda: hanging.size(KEY),
        lambda: hanging.delete([KEY]),
    ]:
        began = trio.current_time()
        with pytest.raises(StoreUnavailable, match="did not answer within 60 s") as caught:
            await call()
        assert caught.value.temporary
        assert trio.current_time() - began == pytest.approx(60.0, abs=0.01)
        assert hanging.statistics().running == 0


async def test_large_contents_get_more_time_by_their_size(
    kept: MemoryStore, autojump_clock: MockClock, tmp_path: Path
) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(100 * SLOWEST_BYTES_PER_S)
    slow = LimitedStore(FaultyStore(kept, every(delay_s=159.0)), call_timeout_s=60.0)
    await slow.put_file("notes/one", tmp_path / "file")
    await slow.get(KEY, 100 * SLOWEST_BYTES_PER_S)
    with pytest.raises(StoreUnavailable):
        await slow.get(KEY, 98 * SLOWEST_BYTES_PER_S)
    with pytest.raises(StoreUnavailable):
        await slow.put_batch([("notes/two", b"x" * SLOWEST_BYTES_PER_S)])


async def test_waiting_in_line_does_not_count_as_hanging(kept: MemoryStore, autojump_clock: MockClock) -> None:
    store = LimitedStore(FaultyStore(kept, every(delay_s=50.0)), gets=1, call_timeout_s=60.0)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(store.get, KEY, MOST)
    assert kept.statistics().gets == 5


async def test_a_callers_own_deadline_stays_his_own(kept: MemoryStore, autojump_clock: MockClock) -> None:
    store = LimitedStore(FaultyStore(kept, every(delay_s=50.0)), call_timeout_s=60.0)
    with pytest.raises(trio.TooSlowError), trio.fail_after(10.0):
        await store.get(KEY, MOST)
    assert store.statistics().running == 0


async def test_F11_the_production_order_outlasts_a_burst_of_hanging_calls(
    kept: MemoryStore, autojump_clock: MockClock
) -> None:
    faulty = FaultyStore(kept, first(2, delay_s=1e6))
    store = VerifyingStore(RetryingStore(LimitedStore(faulty, call_timeout_s=5.0), SeededEnvironment(1)))
    assert await store.get(KEY, MOST) == CONTENT
    assert faulty.calls == 3


# ---- failing on purpose


async def test_a_fault_before_means_that_nothing_happened(kept: MemoryStore) -> None:
    store = FaultyStore(kept, every(fail_before=True))
    with pytest.raises(StoreUnavailable) as caught:
        await store.put_batch([("notes/one", b"x")])
    assert caught.value.temporary
    with pytest.raises(StoreUnavailable):
        await store.delete([KEY])
    with pytest.raises(StoreUnavailable):
        await read_stream(store, KEY)
    assert {found.key async for found in kept.scan("")} == {KEY, LARGE_KEY}


async def test_a_fault_after_means_that_it_happened(kept: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    store = FaultyStore(kept, every(fail_after=True, temporary=False))
    with pytest.raises(StoreUnavailable) as caught:
        await store.put_batch([("notes/one", b"x")])
    assert not caught.value.temporary
    with pytest.raises(StoreUnavailable):
        await store.put_file("notes/two", tmp_path / "file")
    with pytest.raises(StoreUnavailable):
        await store.delete([KEY])
    assert {found.key async for found in kept.scan("")} == {"notes/one", "notes/two", LARGE_KEY}


async def test_a_stream_with_a_fault_after_breaks_off_before_its_end(kept: MemoryStore) -> None:
    received = b""
    with pytest.raises(StoreUnavailable):  # noqa: PT012 - on the way
        async with FaultyStore(kept, every(fail_after=True)).stream(LARGE_KEY) as pieces:
            async for piece in pieces:
                received += piece
    assert received == LARGE[: len(received)]
    assert 0 < len(received) < len(LARGE)


async def test_full_means_that_there_is_no_room(kept: MemoryStore) -> None:
    with pytest.raises(StoreFull):
        await FaultyStore(kept, every(full=True)).put_batch([("notes/one", b"x")])
    assert kept.statistics().puts == 2


async def test_a_put_that_vanishes_was_acknowledged(kept: MemoryStore, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    store = FaultyStore(kept, every(vanish=True))
    await store.put_batch([("notes/one", b"x")])
    await store.put_file("notes/two", tmp_path / "file")
    assert {found.key async for found in kept.scan("")} == {KEY, LARGE_KEY}


async def test_a_read_that_vanishes_finds_nothing(kept: MemoryStore) -> None:
    store = FaultyStore(kept, every(vanish=True))
    for call in [
        lambda: store.get(KEY, MOST), lambda: store.get_ranges([ReadRange(KEY, 0, 1)]), lambda: store.size(KEY),
        lambda: read_stream(store, KEY),
    ]:  # fmt: skip
        with pytest.raises(ObjectMissing):
            await call()


@pytest.mark.parametrize(
    ("fault", "spoiled"),
    [({"flip": True}, lambda content: bytes([content[0] ^ 1]) + content[1:]),
     ({"cut": True}, lambda content: content[:-1])],
    ids=["flip", "cut"],
)  # fmt: skip
async def test_what_is_read_is_spoiled_and_what_is_kept_is_not(
    kept: MemoryStore, fault: dict[str, bool], spoiled: Callable[[bytes], bytes]
) -> None:
    store = FaultyStore(kept, every(**fault))
    assert await store.get(KEY, MOST) == spoiled(CONTENT)
    found = await store.get_ranges([ReadRange(KEY, 0, 5), ReadRange(KEY, 5, 5)])
    assert found == [spoiled(CONTENT[:5]), CONTENT[5:10]]
    assert await read_stream(store, LARGE_KEY) == spoiled(LARGE)
    assert await kept.get(KEY, MOST) == CONTENT


async def test_a_slow_call_is_late_and_right(kept: MemoryStore, autojump_clock: MockClock) -> None:
    began = trio.current_time()
    assert await FaultyStore(kept, every(delay_s=7.0)).get(KEY, MOST) == CONTENT
    assert trio.current_time() - began == pytest.approx(7.0)


async def test_faults_are_chosen_by_operation_number_and_keys(kept: MemoryStore) -> None:
    seen: list[Call] = []
    store = FaultyStore(kept, seen.append)
    await store.put_batch([("notes/one", b"x"), ("notes/two", b"x")])
    await store.get_ranges([ReadRange(KEY, 0, 1)])
    await read_stream(store, KEY)
    await store.delete(["notes/one"])
    assert seen == [
        Call("put_batch", 1, ("notes/one", "notes/two")), Call("get_ranges", 2, (KEY,)), Call("stream", 3, (KEY,)),
        Call("delete", 4, ("notes/one",)),
    ]  # fmt: skip
    picky = FaultyStore(kept, on("size", fail_before=True))
    assert await picky.get(KEY, MOST) == CONTENT
    with pytest.raises(StoreUnavailable):
        await picky.size(KEY)
