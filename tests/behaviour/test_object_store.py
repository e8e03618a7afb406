"""What every ``ObjectStore`` promises, held against each implementation, each wrapper and the production stack."""

from __future__ import annotations

import gc
import hashlib
import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import assert_checkpoints

from museworkd.assembly import open_store
from museworkd.config import Config
from storage.environment import SeededEnvironment, SystemEnvironment
from storage.errors import ObjectDamaged, ObjectMissing, StoreUnavailable
from storage.object_store import ObjectStore, ReadRange
from storage.objects.durability import Durability
from storage.objects.faulty import FaultyStore
from storage.objects.filesystem import FilesystemStore
from storage.objects.limited import LimitedStore
from storage.objects.memory import MemoryStore
from storage.objects.retrying import RetryingStore
from storage.objects.verifying import VerifyingStore
from tests.s3_server import S3Server
from tests.s3_stores import s3_production, s3_store

PIECE_BYTES = 256 * 1024
MOST = 16 * 1024 * 1024
SIZES = [0, 1, 4096, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 17]
BAD_KEYS = [
    "", "/", "/etc/passwd", "..", "../x", "a/../b", "objects/plain/../../../x", "a//b", "a/", "/a", ".hidden", "a/.b",
    "A/b", "a\\b", "a\0b", "a\n", "a b", "a/ä", "a..b/../..",
]  # fmt: skip


async def _filesystem(root: Path, durability: Durability) -> ObjectStore:
    return await FilesystemStore.open(root / "store", durability)


async def _production(root: Path) -> ObjectStore:
    return await open_store(Config(data_dir=root / "data"), SystemEnvironment())


async def _memory(root: Path, wrap: Callable[[ObjectStore], ObjectStore]) -> ObjectStore:
    return wrap(MemoryStore())


IMPLEMENTATIONS: dict[str, Callable[[Path], Awaitable[ObjectStore]]] = {
    "filesystem-group": lambda root: _filesystem(root, Durability.GROUP),
    "filesystem-each": lambda root: _filesystem(root, Durability.EACH),
    "memory": lambda root: _memory(root, lambda inner: inner),
    "verifying": lambda root: _memory(root, VerifyingStore),
    "retrying": lambda root: _memory(root, lambda inner: RetryingStore(inner, SeededEnvironment(1))),
    "limited": lambda root: _memory(root, LimitedStore),
    "faulty": lambda root: _memory(root, lambda inner: FaultyStore(inner, lambda call: None)),
    "production": _production,
}
OVER_S3: dict[str, Callable[[Path, S3Server], Awaitable[ObjectStore]]] = {
    "s3": s3_store,
    "s3-production": s3_production,
}
"""Over a bucket of the test run's server, with a prefix and without one."""


@pytest.fixture(params=[*IMPLEMENTATIONS, pytest.param("s3", marks=pytest.mark.soak), "s3-production"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param in OVER_S3:
        return await OVER_S3[request.param](tmp_path, request.getfixturevalue("s3_server"))
    return await IMPLEMENTATIONS[request.param](tmp_path)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    path = tmp_path / "spool"
    path.mkdir()
    return path


def content_of(size: int, seed: int = 0) -> bytes:
    return random.Random(f"{size} {seed}").randbytes(size)


def key_of(content: bytes) -> str:
    """The key whose name promises this content, so that a verifying store takes it."""
    digest = hashlib.sha256(content).hexdigest()
    return f"objects/plain/{digest[:2]}/{digest[2:]}"


async def put(store: ObjectStore, content: bytes) -> str:
    key = key_of(content)
    await store.put_batch([(key, content)])
    return key


async def read_stream(store: ObjectStore, key: str, *place: int) -> list[bytes]:
    async with store.stream(key, *place) as pieces:
        return [piece async for piece in pieces]


async def listed(store: ObjectStore, prefix: str = "") -> dict[str, int]:
    return {stored.key: stored.size async for stored in store.scan(prefix)}


def operations(
    store: ObjectStore, key: str, path: Path, changed: str = "notes/one"
) -> dict[str, Callable[[], Awaitable[object]]]:
    """One call of each operation: reads of ``key``, writes of ``changed``."""
    return {
        "put_batch": lambda: store.put_batch([(changed, b"x" * 1000)]),
        "put_batch of nothing": lambda: store.put_batch([]),
        "put_file": lambda: store.put_file(changed, path),
        "get": lambda: store.get(key, MOST),
        "get_ranges": lambda: store.get_ranges([ReadRange(key, 0, 1)]),
        "get_ranges of nothing": lambda: store.get_ranges([]),
        "stream": lambda: read_stream(store, key),
        "size": lambda: store.size(key),
        "delete": lambda: store.delete([changed]),
        "delete of nothing": lambda: store.delete([]),
        "scan": lambda: listed(store, key),
    }


# ---- whole contents


async def test_what_was_put_is_what_is_read(store: ObjectStore) -> None:
    for size in SIZES:
        content = content_of(size)
        key = await put(store, content)
        assert await store.get(key, MOST) == content
        assert b"".join(await read_stream(store, key)) == content
        assert await store.get_ranges([ReadRange(key, 0, size)]) == [content]
        assert await store.size(key) == size


async def test_a_batch_is_stored_under_its_keys(store: ObjectStore) -> None:
    contents = [content_of(size, seed) for seed in range(20) for size in (0, 10, 3000, 70_000)]
    await store.put_batch([(key_of(content), content) for content in contents])
    for content in contents:
        assert await store.get(key_of(content), MOST) == content


async def test_an_empty_batch_is_nothing(store: ObjectStore) -> None:
    await store.put_batch([])
    assert await listed(store) == {}


async def test_a_put_over_an_existing_key_replaces_it(store: ObjectStore) -> None:
    for content in (b"long content", b"short", b"", b"longer than all the contents before"):
        await store.put_batch([("notes/one", content)])
        assert await store.get("notes/one", MOST) == content


async def test_the_last_of_a_batch_wins_a_key_named_twice(store: ObjectStore) -> None:
    await store.put_batch([("notes/one", b"first"), ("notes/two", b"other"), ("notes/one", b"second")])
    assert await store.get("notes/one", MOST) == b"second"
    assert await store.get("notes/two", MOST) == b"other"


async def test_a_put_is_repeatable(store: ObjectStore) -> None:
    content = content_of(5000)
    for _ in range(3):
        await put(store, content)
    assert await listed(store) == {key_of(content): 5000}


async def test_put_file_stores_and_consumes_the_file(store: ObjectStore, spool: Path) -> None:
    for size in (0, 7, 2 * PIECE_BYTES + 1):
        content = content_of(size)
        path = spool / "file"
        path.write_bytes(content)
        await store.put_file(key_of(content), path)
        assert not path.exists()
        assert await store.get(key_of(content), MOST) == content


async def test_put_file_replaces_an_existing_key(store: ObjectStore, spool: Path) -> None:
    await store.put_batch([("notes/one", b"old and longer")])
    (spool / "file").write_bytes(b"new")
    await store.put_file("notes/one", spool / "file")
    assert await store.get("notes/one", MOST) == b"new"


async def test_put_file_may_be_repeated_after_an_answer_that_was_lost(store: ObjectStore, spool: Path) -> None:
    content = content_of(9000)
    (spool / "file").write_bytes(content)
    await store.put_file(key_of(content), spool / "file")
    await store.put_file(key_of(content), spool / "file")
    assert await store.get(key_of(content), MOST) == content


async def test_put_file_without_a_file_is_not_taken_for_done(store: ObjectStore, spool: Path) -> None:
    with pytest.raises(StoreUnavailable):
        await store.put_file("notes/one", spool / "nothing here")
    assert await listed(store) == {}


async def test_a_content_is_read_up_to_the_size_expected(store: ObjectStore) -> None:
    content = content_of(1000)
    key = await put(store, content)
    assert await store.get(key, 1000) == content
    with pytest.raises(ValueError, match="1000 bytes"):
        await store.get(key, 999)


# ---- parts


async def test_ranges_come_back_in_the_order_asked(store: ObjectStore) -> None:
    contents = [content_of(200_000, seed) for seed in range(3)]
    keys = [await put(store, content) for content in contents]
    rng = random.Random(5)
    wanted = []
    for _ in range(120):
        at = rng.randrange(3)
        offset = rng.randrange(200_000)
        wanted.append((at, offset, rng.choice([0, 1, 100, 5000, 40_000, 200_000])))
    wanted = [(at, offset, min(size, 200_000 - offset)) for at, offset, size in wanted]
    found = await store.get_ranges([ReadRange(keys[at], offset, size) for at, offset, size in wanted])
    assert found == [contents[at][offset : offset + size] for at, offset, size in wanted]


async def test_no_ranges_are_no_contents(store: ObjectStore) -> None:
    assert await store.get_ranges([]) == []


async def test_a_part_that_is_not_wholly_there_is_damage(store: ObjectStore) -> None:
    key = await put(store, content_of(100))
    for offset, size in [(0, 101), (100, 1), (101, 0), (50, 51), (-1, 1), (-10, 5), (10, -1)]:
        with pytest.raises(ObjectDamaged):
            await store.get_ranges([ReadRange(key, 0, 10), ReadRange(key, offset, size)])
        with pytest.raises(ObjectDamaged):
            await read_stream(store, key, offset, size)
    with pytest.raises(ObjectDamaged):
        await read_stream(store, key, 101)


async def test_a_stream_gives_the_part_asked_for_in_bounded_pieces(store: ObjectStore) -> None:
    content = content_of(700_000)
    key = await put(store, content)
    for place in [(0,), (1,), (PIECE_BYTES - 1,), (0, 10), (300_000, 300_000), (700_000, 0)]:
        pieces = await read_stream(store, key, *place)
        end = place[0] + place[1] if len(place) > 1 else None
        assert b"".join(pieces) == content[place[0] : end]
        assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)


async def test_a_stream_may_be_left_early(store: ObjectStore) -> None:
    key = await put(store, content_of(10 * PIECE_BYTES))
    before = set(Path("/proc/self/fd").iterdir())
    for _ in range(20):
        async with store.stream(key) as pieces:
            assert await anext(aiter(pieces))
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - it is raised inside
        async with store.stream(key) as pieces:
            await anext(aiter(pieces))
            raise ZeroDivisionError
    gc.collect()  # an unfinished generator would warn now, and a warning is an error
    assert len(set(Path("/proc/self/fd").iterdir()) - before) <= 1


async def test_a_stream_goes_on_with_the_content_it_began_with(store: ObjectStore) -> None:
    old, new = b"o" * (5 * PIECE_BYTES), b"n" * (5 * PIECE_BYTES)
    await store.put_batch([("notes/one", old)])
    async with store.stream("notes/one") as pieces:
        first = await anext(aiter(pieces))
        await store.put_batch([("notes/one", new)])
        rest = [piece async for piece in pieces]
    assert first + b"".join(rest) == old
    assert await store.get("notes/one", MOST) == new


async def test_a_stream_outlives_the_removal_of_its_key(store: ObjectStore) -> None:
    content = content_of(5 * PIECE_BYTES)
    key = await put(store, content)
    async with store.stream(key) as pieces:
        first = await anext(aiter(pieces))
        await store.delete([key])
        rest = [piece async for piece in pieces]
    assert first + b"".join(rest) == content


# ---- what is not there


async def test_an_absent_key_is_missing_and_nothing_else(store: ObjectStore) -> None:
    await put(store, b"something else")
    key = key_of(b"never stored")
    with pytest.raises(ObjectMissing):
        await store.get(key, MOST)
    with pytest.raises(ObjectMissing):
        await store.size(key)
    with pytest.raises(ObjectMissing):
        await store.get_ranges([ReadRange(key, 0, 0)])
    with pytest.raises(ObjectMissing):
        await read_stream(store, key)
    with pytest.raises(ObjectMissing):
        await read_stream(store, "notes/in/a/directory/nobody/made", 3, 4)


async def test_one_absent_key_fails_a_batch_of_ranges(store: ObjectStore) -> None:
    key = await put(store, content_of(10))
    with pytest.raises(ObjectMissing):
        await store.get_ranges([ReadRange(key, 0, 5), ReadRange(key_of(b"absent"), 0, 5)])


async def test_deleted_keys_are_missing(store: ObjectStore) -> None:
    contents = [content_of(50, seed) for seed in range(30)]
    await store.put_batch([(key_of(content), content) for content in contents])
    await store.delete(key_of(content) for content in contents[:20])
    assert set(await listed(store)) == {key_of(content) for content in contents[20:]}
    with pytest.raises(ObjectMissing):
        await store.get(key_of(contents[0]), MOST)


async def test_deleting_what_is_absent_is_no_error(store: ObjectStore) -> None:
    key = await put(store, b"x")
    await store.delete([])
    await store.delete([key, key, key_of(b"absent"), "notes/in/a/directory/nobody/made"])
    await store.delete([key])
    assert await listed(store) == {}


async def test_a_deleted_key_can_be_put_again(store: ObjectStore) -> None:
    key = await put(store, b"x")
    await store.delete([key])
    await put(store, b"x")
    assert await store.get(key, MOST) == b"x"


# ---- listing


async def test_a_scan_lists_the_keys_under_a_prefix(store: ObjectStore) -> None:
    keys = ["notes/a/one", "notes/a/two", "notes/ab/three", "notes/four", "other/a"]
    await store.put_batch([(key, b"x" * at) for at, key in enumerate(keys)])
    assert await listed(store) == {key: at for at, key in enumerate(keys)}
    assert set(await listed(store, "notes")) == set(keys[:4])
    assert set(await listed(store, "notes/")) == set(keys[:4])
    assert set(await listed(store, "notes/a")) == {"notes/a/one", "notes/a/two"}
    assert set(await listed(store, "not")) == set()
    assert set(await listed(store, "nothing/here")) == set()


async def test_a_key_is_not_under_itself(store: ObjectStore) -> None:
    await store.put_batch([("notes/one", b"x")])
    assert await listed(store, "notes/one") == {}
    assert await listed(store, "notes/one/more") == {}


async def test_a_scan_tells_when_each_was_stored(store: ObjectStore) -> None:
    before = SystemEnvironment().now().timestamp()
    await store.put_batch([("notes/one", b"x")])
    found = [stored async for stored in store.scan("notes")]
    assert before - 2 <= found[0].modified <= SystemEnvironment().now().timestamp() + 2


async def test_a_scan_survives_deletion_on_the_way(store: ObjectStore) -> None:
    keys = [f"notes/{shard:x}/{n}" for shard in range(16) for n in range(4)]
    await store.put_batch([(key, b"x") for key in keys])
    seen = []
    async for stored in store.scan("notes"):
        seen.append(stored.key)
        await store.delete([stored.key])
    assert sorted(seen) == sorted(keys)
    assert await listed(store) == {}


# ---- keys


async def test_a_key_that_could_lead_elsewhere_is_refused(store: ObjectStore, spool: Path, tmp_path: Path) -> None:
    (spool / "file").write_bytes(b"x")

    def files() -> set[Path]:
        return {path for path in tmp_path.rglob("*") if path.is_file()}

    before = files()
    for key in BAD_KEYS:
        calls = operations(store, key, spool / "file", key)
        for name, call in calls.items():
            if name.endswith("of nothing") or (name == "scan" and key.rstrip("/") in {"", "a"}):  # these are prefixes
                continue
            with pytest.raises(ValueError, match="key"):
                await call()
    assert files() == before


# ---- several at once


async def test_writers_of_one_key_leave_one_whole_content(store: ObjectStore) -> None:
    contents = [bytes([seed]) * (100_000 + seed) for seed in range(8)]

    async def write(content: bytes) -> None:
        for _ in range(3):
            await store.put_batch([("notes/one", content)])

    async with trio.open_nursery() as nursery:
        for content in contents:
            nursery.start_soon(write, content)
    assert await store.get("notes/one", MOST) in contents


async def test_a_reader_sees_the_old_or_the_new_content_never_a_part(store: ObjectStore) -> None:
    contents = {bytes([n]) * (400_000 + n) for n in range(1, 7)}
    await store.put_batch([("notes/one", next(iter(contents)))])

    async def write(scope: trio.CancelScope) -> None:
        for _ in range(4):
            for content in contents:
                await store.put_batch([("notes/one", content)])
        scope.cancel()

    async def read() -> None:
        while True:
            assert await store.get("notes/one", MOST) in contents
            assert b"".join(await read_stream(store, "notes/one")) in contents

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, nursery.cancel_scope)
        nursery.start_soon(read)
        nursery.start_soon(read)


async def test_many_batches_at_once_all_arrive(store: ObjectStore) -> None:
    contents = [content_of(600, seed) for seed in range(20 * 64)]
    async with trio.open_nursery() as nursery:
        for start in range(0, len(contents), 64):
            batch = [(key_of(content), content) for content in contents[start : start + 64]]
            nursery.start_soon(store.put_batch, batch)
    assert await listed(store, "objects") == {key_of(content): 600 for content in contents}


# ---- cancellation


async def test_every_call_is_a_checkpoint(store: ObjectStore, spool: Path) -> None:
    key = await put(store, content_of(1000))
    for name, call in operations(store, key, spool / "file").items():
        (spool / "file").write_bytes(name.encode())
        with assert_checkpoints():
            await call()


async def test_every_call_may_be_cancelled_and_the_store_works_on(store: ObjectStore, spool: Path) -> None:
    content = content_of(1000)
    key = await put(store, content)
    for name, call in operations(store, key, spool / "file").items():
        (spool / "file").write_bytes(b"y" * 1000)
        with trio.CancelScope() as scope:
            scope.cancel()
            await call()
        assert scope.cancelled_caught, name
        assert await store.get(key, MOST) == content
        assert set((await listed(store, "notes")).values()) <= {1000}


async def test_cancelled_puts_happened_wholly_or_not_at_all(store: ObjectStore) -> None:
    rng = random.Random(11)
    contents = [content_of(3000, seed) for seed in range(20 * 16)]

    async def write(batch: list[bytes], checkpoints: int) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.put_batch, [(key_of(content), content) for content in batch])
                for _ in range(checkpoints):
                    await trio.lowlevel.checkpoint()
                scope.cancel()

    async with trio.open_nursery() as nursery:
        for start in range(0, len(contents), 16):
            nursery.start_soon(write, contents[start : start + 16], rng.randrange(200))
    for key, size in (await listed(store)).items():
        assert size == 3000
        assert key_of(await store.get(key, MOST)) == key
    await store.put_batch([(key_of(content), content) for content in contents])
    assert len(await listed(store)) == len(contents)


# ---- what is not a content


async def test_a_sweep_takes_nothing_that_was_put_to_its_end(store: ObjectStore, spool: Path) -> None:
    (spool / "file").write_bytes(b"file")
    await store.put_file("notes/file", spool / "file")
    key = await put(store, b"batch")
    with assert_checkpoints():
        assert await store.sweep_temporary(0.0) == 0
    assert await listed(store) == {"notes/file": 4, key: 5}


async def test_only_a_store_with_an_address_of_its_own_signs_urls(
    store: ObjectStore, request: pytest.FixtureRequest
) -> None:
    signing = store.signing()
    name = request.node.callspec.params["store"]
    if name in OVER_S3 and request.getfixturevalue("s3_server").checks_signatures:
        assert signing is not None
        key = key_of(b"signed")
        assert key in signing.get_url(key, 60).url
        for bad in BAD_KEYS:
            with pytest.raises(ValueError, match="key"):
                signing.put_url(bad, 1, 60)
    elif name not in OVER_S3:
        assert signing is None


# ---- figures


async def test_statistics_count_what_was_done(store: ObjectStore, spool: Path) -> None:
    await store.put_batch([("notes/one", b"x" * 10), ("notes/two", b"x" * 20)])
    (spool / "file").write_bytes(b"x" * 300)
    await store.put_file("notes/three", spool / "file")
    await store.get("notes/one", MOST)
    await store.get_ranges([ReadRange("notes/three", 0, 100)])
    await read_stream(store, "notes/two")
    await store.delete(["notes/one", "notes/two"])
    figures = store.statistics()
    assert (figures.puts, figures.put_bytes, figures.deletes) == (3, 330, 2)
    assert (figures.gets, figures.get_bytes) == (3, 130)
    assert (figures.retries, figures.running, figures.waiting) == (0, 0, 0)


async def test_statistics_are_a_copy(store: ObjectStore) -> None:
    store.statistics().puts = 1000
    assert store.statistics().puts == 0
    before = store.statistics()
    await put(store, b"x")
    assert before.puts == 0
