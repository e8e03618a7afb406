"""Small pushes are answered from the index: at once, without any worker, and without losing a byte on the way."""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from actors.push.kept import KEPT_OBJECTS, KeptContents, KeptRoom
from storage.environment import SystemEnvironment
from storage.errors import IndexUnavailable, LeaseLost, StoreUnavailable, Tombstoned
from storage.layout import loose_key
from storage.memory.collection_marks import BURIED, MARKED, TOMBSTONED
from storage.memory.collection_tables import MarkRow
from storage.memory.index import MemoryIndex
from storage.objects.faulty import Call, Fault, FaultyStore
from storage.objects.memory import MemoryStore
from tests.clones import clone, download, fetch
from tests.deployments import deployed, two_commits, with_history
from tests.handler_runs import run, services_of, waiting
from tests.http_client import ask, connected, head_bytes, push
from tests.integration.test_push_stream import get_blob, object_frame
from tests.muse import Push, blob_id, random_history
from tests.presigned_pushes import push_presigned
from tests.servers import Server, serving
from wire.ids import Scheme
from wire.limits import Limits

pytestmark = pytest.mark.usefixtures("expected_errors")
MIB = 1024 * 1024
PROMOTE = "content.promote"


def digest(oid: str) -> bytes:
    return bytes.fromhex(oid.removeprefix("sha256:"))


async def cached(server: Server) -> int:
    return (await server.services.index.count_cached())[0]


async def loose(server: Server) -> int:
    return len([stored async for stored in server.services.store.scan("objects")])


async def promote(server: Server) -> dict[str, object]:
    return await run(services_of(server), PROMOTE, 1)


async def test_R15_a_small_push_can_be_read_at_once_without_any_worker(server):
    """And its objects need not be in the store for that."""
    history = await with_history(server, random_history(3))
    assert (await cached(server), await loose(server)) == (len(history.blobs), 0)
    copy = await clone(server, history.head)
    assert copy.blobs == history.blobs
    for oid, content in history.blobs.items():
        assert (await get_blob(server, oid)).body == content


async def test_what_waits_is_promoted_once_and_read_as_before(server):
    history = await with_history(server, random_history(4))
    size = sum(map(len, history.blobs.values()))
    first = await promote(server)
    assert (first["objects"], first["bytes"]) == (len(history.blobs), size)
    assert {"read_ms", "put_ms", "rows_ms", "elapsed_ms"} <= first.keys()
    assert (await cached(server), await loose(server)) == (0, len(history.blobs))
    again = await promote(server)
    assert (again["objects"], again["bytes"]) == (0, 0)
    assert (await clone(server, history.head)).blobs == history.blobs


async def test_a_push_enqueues_the_promotion_of_what_it_left_waiting(server):
    small, large = await server.make_repository(), await server.make_repository(slug="y")
    assert (await push(server, two_commits().frames()))["type"] == "R"
    assert PROMOTE in await waiting(server, small.number)
    history = Push()
    history.commit({"large": bytes(MIB + 1)})
    assert (await push(server, history.frames(), repository="alice/y"))["type"] == "R"
    assert PROMOTE not in await waiting(server, large.number)


@pytest.mark.parametrize(
    ("sizes", "settings", "kept"),
    [
        ([MIB, 1, 0], {}, True),
        ([MIB + 1, 1], {}, False),
        ([MIB] * 4, {}, True),
        ([MIB] * 4 + [1], {}, False),
        ([1, 1], {"limits__content_cache_object_bytes": 0}, False),
        ([10, 9], {"limits__content_cache_object_bytes": 10}, True),
        ([10, 11], {"limits__content_cache_object_bytes": 10}, False),
        ([10, 11], {"limits__content_cache_push_bytes": 20}, False),
        ([8] * KEPT_OBJECTS, {}, True),
        ([8] * (KEPT_OBJECTS + 1), {}, False),
    ],
)  # fmt: skip
async def test_what_is_larger_never_enters(tmp_path, sizes, settings, kept):
    """Protocol §12: objects of at most 1 MiB, of pushes of at most 4 MiB; of others every object is in the store."""
    rng = random.Random(7)
    async with deployed(None, tmp_path, **settings) as server:
        history = Push()
        history.commit({f"f{at}": rng.randbytes(size) for at, size in enumerate(sizes)})
        await with_history(server, history)
        assert await cached(server) == (len(history.blobs) if kept else 0)
        assert await loose(server) == (0 if kept else len(history.blobs))
        assert server.services.push.kept.free == KeptRoom().free
        assert (await clone(server, history.head)).blobs == history.blobs


async def test_a_delta_finds_its_base_wherever_that_is(server):
    """In the same push, in the index, and in the store."""
    await server.make_repository()
    rng = random.Random(5)
    first = rng.randbytes(300_000)  # more than is remembered of recent contents
    history = Push()
    history.commit({"f": first})
    second = first + b" and more"
    history.commit({"f": second})
    objects = [object_frame(first), object_frame(second, "delta+zlib", first)]
    body = b"".join([history.header(), *objects, history.commit_frame(), history.end()])
    assert (await push(server, body))["type"] == "R"
    content = second
    for step in range(2):
        base, content = content, content + b" and %d" % step
        later = Push()
        later.commit({"f": content}, parents=[history.head])
        frames = [later.header(), object_frame(content, "delta+zstd", base), later.commit_frame(), later.end()]
        assert (await push(server, b"".join(frames)))["type"] == "R"
        history = later
        assert (await get_blob(server, blob_id(content))).body == content
        await promote(server)


async def test_a_part_of_a_blob_that_waits_can_be_asked_for(server):
    content = random.Random(1).randbytes(MIB)
    history = Push()
    history.commit({"f": content})
    await with_history(server, history)
    target = f"/alice/x/o/{blob_id(content)}"
    for wanted, expected in (
        ("bytes=5-9", content[5:10]),
        ("bytes=-7", content[-7:]),
        ("bytes=900000-", content[900_000:]),
    ):
        answer = await ask(server, "GET", target, token="alice", headers={"range": wanted})
        assert (answer.status, answer.body) == (206, expected)
    head = await ask(server, "HEAD", target, token="alice")
    assert (head.status, head.headers["content-length"]) == (200, str(MIB))
    assert (await ask(server, "GET", "/alice/x/o/" + blob_id(content), token="bob")).status == 404


async def test_R2_what_waits_for_one_repository_is_no_ones_and_can_be_brought_by_another(server):
    history = await with_history(server, two_commits())
    await server.make_repository(slug="y")
    for oid in history.blobs:
        assert (await get_blob(server, oid, "y")).status == 404
    brought = await push(server, history.frames(), repository="alice/y")
    assert (brought["type"], brought["blobs_written"]) == ("R", len(history.blobs))
    assert (await clone(server, history.head, repository="alice/y")).blobs == history.blobs
    assert await cached(server) == len(history.blobs)


async def test_what_a_cut_push_brought_is_in_the_store_and_need_not_be_brought_again(server):
    """Nobody knows whether it was a small one; and no job would promote it."""
    await server.make_repository()
    history = Push()
    history.commit({f"f{at}": b"%d" % at for at in range(100)})
    push_id = str(uuid.uuid4())
    frames = [history.header(push_id=push_id), *list(history.object_frames())[:90]]
    async with connected(server) as connection:
        head = {"transfer-encoding": "chunked"}
        await connection.send(head_bytes("POST", "/alice/x/push/stream", token="alice", headers=head))
        await connection.send_chunk(b"".join(frames))
        await connection.send_eof()
        await connection.until_end()
    with trio.fail_after(10):
        while await loose(server) < 90:
            await trio.lowlevel.checkpoint()
    assert await cached(server) == 0
    assert server.services.push.kept.free == KeptRoom().free
    assert (await push(server, history.frames(push_id=push_id)))["type"] == "R"
    assert (await clone(server, history.head)).blobs == history.blobs


async def test_a_refused_push_leaves_nothing_a_reader_can_see(server):
    history = await with_history(server, two_commits())
    other = Push()
    other.commit({"secret": b"not to be seen"})
    assert (await push(server, other.frames()))["error"] == "non_fast_forward"
    assert (await get_blob(server, blob_id(b"not to be seen"))).status == 404
    assert (await clone(server, history.head)).blobs == history.blobs


async def test_where_there_is_no_room_to_keep_contents_the_store_takes_them(server, monkeypatch):
    room = server.services.push.kept
    assert room.take(room.free)
    history = await with_history(server, two_commits())
    assert (await cached(server), await loose(server)) == (0, len(history.blobs))


class Interrupted(MemoryIndex):
    """An index that cannot answer a promotion, before or after it has happened."""

    before = after = 0

    async def promote_cached(self, entries, lease=None):
        if self.before:
            self.before -= 1
            raise IndexUnavailable("before")
        count = await super().promote_cached(entries, lease)
        if self.after:
            self.after -= 1
            raise IndexUnavailable("after")
        return count


@pytest.mark.parametrize("step", ["before", "after"])
async def test_F12_a_promotion_that_ends_between_its_steps_is_done_again(tmp_path, step):
    """The content is in the store, and still in the index until that is known: nothing is orphaned, nothing lost."""
    index = Interrupted()
    async with serving(index, MemoryStore(), tmp_path) as server:
        history = await with_history(server, random_history(6))
        setattr(index, step, 1)
        with pytest.raises(IndexUnavailable):
            await promote(server)
        assert (await cached(server)) == (len(history.blobs) if step == "before" else 0)
        assert await loose(server) == len(history.blobs)
        assert (await clone(server, history.head)).blobs == history.blobs
        await promote(server)
        assert (await cached(server), await loose(server)) == (0, len(history.blobs))
        assert (await clone(server, history.head)).blobs == history.blobs


@pytest.mark.parametrize("fault", [Fault(fail_before=True), Fault(fail_after=True)])
async def test_F1_F2_a_promotion_whose_store_fails_leaves_everything_readable(tmp_path, fault):
    broken = [False]

    def decide(call: Call) -> Fault | None:
        return fault if broken[0] and call.operation == "put_batch" else None

    async with serving(MemoryIndex(), FaultyStore(MemoryStore(), decide), tmp_path) as server:
        history = await with_history(server, random_history(7))
        broken[0] = True
        with pytest.raises(StoreUnavailable):
            await promote(server)
        assert await cached(server) == len(history.blobs)
        broken[0] = False
        assert (await clone(server, history.head)).blobs == history.blobs
        await promote(server)
        assert await cached(server) == 0
        assert (await clone(server, history.head)).blobs == history.blobs


class Overtaken(MemoryIndex):
    """An index whose contents are promoted whenever somebody has just looked up where they are."""

    def __init__(self) -> None:
        super().__init__()
        self.server: Server | None = None

    async def held_places(self, repo, scheme, object_ids):
        places = await super().held_places(repo, scheme, object_ids)
        if self.server is not None:
            await promote(self.server)
        return places


@pytest.mark.parametrize("way", ["clone", "blob", "part"])
async def test_a_reader_whose_blobs_are_promoted_under_its_hands_finds_them(tmp_path, way):
    index = Overtaken()
    async with serving(index, MemoryStore(), tmp_path) as server:
        history = await with_history(server, random_history(8))
        assert await cached(server) > 0
        index.server = server
        if way == "clone":
            assert (await clone(server, history.head)).blobs == history.blobs
        else:
            oid, content = max(history.blobs.items(), key=lambda item: len(item[1]))
            headers = {"range": "bytes=1-4"} if way == "part" else {}
            answer = await ask(server, "GET", f"/alice/x/o/{oid}", token="alice", headers=headers)
            assert answer.body == (content[1:5] if way == "part" else content)
        assert await cached(server) == 0


async def test_a_content_that_is_gone_is_an_error_and_never_left_out(tmp_path, expected_errors, logs):
    """R8: neither in the index nor in the store."""
    index = MemoryIndex()
    async with serving(index, MemoryStore(), tmp_path) as server:
        history = await with_history(server, two_commits())
        index.tables.cached.popitem()
        store = server.services.store
        await store.delete([stored.key async for stored in store.scan("packs")])  # nor in what the push put beside
        answer = await fetch(server, [history.head])
        assert answer.status >= 500
    expected_errors += [entry for entry in logs if entry["log_level"] == "error"]


async def test_pushes_by_other_ways_use_the_store(server):
    await server.make_repository()
    history = two_commits()
    assert (await push_presigned(server, history))["type"] == "R"
    assert (await cached(server), await loose(server)) == (0, len(history.blobs))
    assert (await clone(server, history.head)).blobs == history.blobs


async def test_a_record_pack_is_in_the_store_before_a_small_push_is_accepted(tmp_path):
    """The history of what was accepted can be rebuilt from the store, whatever its contents wait for."""

    def decide(call: Call) -> Fault | None:
        return Fault(fail_before=True) if any(key.startswith("records/") for key in call.keys) else None

    async with serving(MemoryIndex(), FaultyStore(MemoryStore(), decide), tmp_path) as server:
        await server.make_repository()
        assert (await push(server, two_commits().frames()))["error"] == "store_unavailable"
        refs = await ask(server, "GET", "/alice/x/refs", token="alice")
        assert refs.value["branch_heads"] == {}


async def test_a_fetch_that_is_under_way_gets_what_was_promoted_meanwhile(server):
    history = await with_history(server, random_history(9))
    answer = await fetch(server, [history.head])
    await promote(server)
    assert await download(server, answer.value)
    for oid, content in history.blobs.items():
        key = loose_key(digest(oid), Scheme.TYPED)
        assert await server.services.store.get(key, MIB) == content


@asynccontextmanager
async def kept(room: KeptRoom, **limits: int) -> AsyncIterator[KeptContents]:
    async with KeptContents(room, Limits(**limits)) as contents:
        yield contents


async def test_what_one_push_keeps_is_not_there_for_others_and_is_given_back() -> None:
    room = KeptRoom(10_000)
    async with kept(room) as mine, kept(room) as other:
        assert mine.keep({b"a": bytes(5_000)})
        assert not other.keep({b"b": bytes(5_000)})
        assert not other.keep({b"c": b""})  # it is not a small push any more
        assert mine.keep({b"a": bytes(5_000), b"d": b"d"})
        assert mine.get(b"d") == b"d"
        assert b"b" not in other
    assert room.free == 10_000


async def test_a_content_on_disk_is_not_kept(tmp_path: Path) -> None:
    async with kept(KeptRoom()) as contents:
        assert contents.keep({b"a": b"a"})
        assert not contents.keep({b"b": tmp_path})
        assert contents.spill() == {b"a": b"a"}
        assert contents.spill() == {}


async def test_rows_are_given_some_at_a_time() -> None:
    async with kept(KeptRoom()) as contents:
        assert list(contents.rows(2, 10)) == []
        assert not contents.given
        assert contents.keep({bytes([at]): bytes(at) for at in range(8)})
        sizes = [[row.size for row in rows] for rows in contents.rows(2, 10)]
        assert sizes == [[0, 1], [2, 3], [4, 5], [6], [7]]
        assert contents.given


async def marked(index: MemoryIndex, oid: str, state: int, moment: int) -> None:
    """Let the collector be at some point with the loose object of an id."""
    now = SystemEnvironment().now()
    index.tables.collection.marks[Scheme.TYPED, digest(oid)] = MarkRow(True, now, moment, state)


@pytest.mark.parametrize(
    ("state", "later", "promoted_at_once"),
    [(MARKED, False, True), (TOMBSTONED, False, False), (BURIED, False, True), (BURIED, True, False)],
)
async def test_F36_what_the_collector_is_just_deleting_is_not_promoted_before_it_has_done_so(
    tmp_path, state, later, promoted_at_once
):
    """An object that a promotion of before left without a row may be collected: the next one puts it after that."""
    index = MemoryIndex()
    async with serving(index, MemoryStore(), tmp_path) as server:
        history = await with_history(server, two_commits())
        oid = blob_id(b"hello\n")
        await marked(index, oid, state, 10**9 if later else 0)
        if promoted_at_once:
            await promote(server)
        else:
            with pytest.raises(Tombstoned):
                await promote(server)
            assert await cached(server) == 1
            assert (await clone(server, history.head)).blobs == history.blobs
            index.tables.collection.marks.clear()
            await promote(server)
        assert await cached(server) == 0
        assert (await clone(server, history.head)).blobs == history.blobs
        assert index.tables.collection.leases == {}


async def test_F27_a_promotion_whose_lease_ran_out_changes_nothing(tmp_path):
    """A worker that wakes up late does not know what has become of the bytes it put."""

    class Asleep(MemoryIndex):
        async def promote_cached(self, entries, lease=None):
            self.tables.collection.leases.clear()
            return await super().promote_cached(entries, lease)

    async with serving(Asleep(), MemoryStore(), tmp_path) as server:
        history = await with_history(server, two_commits())
        with pytest.raises(LeaseLost):
            await promote(server)
        assert await cached(server) == len(history.blobs)
        assert (await clone(server, history.head)).blobs == history.blobs
