"""A bit flipped in any stored byte is found and never delivered; another copy is, where there is one (fault F3)."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from tests.clones import clone
from tests.damage import PLAIN_WAYS, WAYS, flip, flip_row, key_of, keys
from tests.deployments import deployed
from tests.handler_runs import run, services_of
from tests.http_client import push
from tests.mpack_pushes import mpack_of, push_mpack
from tests.muse import Push, bare, blob_id, plain, typed
from tests.servers import Server
from wire.ids import Scheme

pytestmark = pytest.mark.usefixtures("expected_errors")
NOTHING_COPIED = {"limits__content_cache_object_bytes": 0}
"""So that blobs of a push by stream lie in the store once."""


def history(name: object = None) -> Push:
    """A history with a small blob, one above the size that is read at once, one that is streamed, and none."""
    rng = random.Random(7)
    made = Push(name=name or typed)
    first = {"small": b"small one\n", "middle": rng.randbytes(400_000), "empty": b""}
    made.commit({**first, **{f"d/{n}": b"%d" % n for n in range(20)}})
    made.commit({**first, "large": rng.randbytes(4 * 1024 * 1024 + 5), "d/0": b"x", "new": b"n"}, message="second ü")
    made.commit({**first, "d/0": b"y", "new": b"n"}, metadata={"key": "value"})
    return made


@pytest.fixture
async def server(database_url: str, tmp_path: Path) -> AsyncIterator[Server]:
    """PostgreSQL and files: bits are flipped where they lie."""
    async with deployed(database_url, tmp_path, **NOTHING_COPIED) as running:
        yield running


def biggest(pushed: Push) -> list[str]:
    """A blob of each way in which blobs are read."""
    by_size = sorted(pushed.blobs, key=lambda oid: len(pushed.blobs[oid]))
    return [by_size[-1], by_size[-2], blob_id(b"small one\n", pushed.name)]


async def found_by_all(server: Server, pushed: Push, damaged: str) -> None:
    """No way gives it; all say so and name it, and ways that do not need it are not concerned."""
    for name, way in (PLAIN_WAYS if pushed.name is plain else WAYS).items():
        said = await way(server, pushed)
        assert said is not None, name
        assert bare(damaged) in said, (name, said)


async def mended_for_all(server: Server, pushed: Push, again: object = None) -> None:
    """Every way gives everything; ``again`` does the damage once more before each."""
    for name, way in (PLAIN_WAYS if pushed.name is plain else WAYS).items():
        if again is not None:
            await again()
        assert await way(server, pushed) is None, name


@pytest.mark.parametrize("which", [0, 1, 2], ids=["large", "middle", "small"])
@pytest.mark.parametrize("name", [None, plain], ids=["typed", "plain"])
async def test_F3_a_loose_blob_without_another_copy(server: Server, tmp_path: Path, name: object, which: int) -> None:
    """Without a copy every way says which object it is, and none delivers a byte that is not its own."""
    pushed = history(name)
    await server.make_repository()
    assert (await push(server, pushed.frames()))["type"] == "R"
    damaged = biggest(pushed)[which]
    scheme = Scheme.PLAIN if name is plain else Scheme.TYPED
    await flip(tmp_path / "store", key_of(damaged, scheme), len(pushed.blobs[damaged]) // 2)
    await found_by_all(server, pushed, damaged)


async def test_F3_a_loose_blob_with_another_copy_in_a_pack(server: Server, tmp_path: Path) -> None:
    """Another repository's push brought the same blobs in a pack: each way mends, and delivers everything."""
    pushed = history()
    await server.make_repository()
    await server.make_repository(slug="other")
    assert (await push(server, pushed.frames()))["type"] == "R"
    assert (await push_mpack(server, mpack_of(pushed), pushed, slug="other")).status == 200

    async def again() -> None:
        for number, damaged in enumerate(biggest(pushed)):
            await flip(tmp_path / "store", key_of(damaged), 3 + number)
        server.services.fetch.makers._made.clear()
        await server.services.store.delete(await keys(server.services.store, "fetch"))

    await mended_for_all(server, pushed, again)


async def test_F3_a_blob_in_a_pack(server: Server, tmp_path: Path) -> None:
    """It is found by every way; once the same content is stored anew, every way delivers it."""
    pushed = history()
    await server.make_repository()
    data = mpack_of(pushed)
    assert (await push_mpack(server, data, pushed)).status == 200
    (pack,) = await keys(server.services.store, "packs")
    content = (tmp_path / "store" / pack).read_bytes()
    damaged = biggest(pushed)
    for oid in damaged:
        await flip(tmp_path / "store", pack, content.index(pushed.blobs[oid]) + 1)
    for oid in damaged:
        for name, way in WAYS.items():
            said = await way(server, pushed)
            assert said is not None, name
            assert any(bare(one) in said for one in damaged), (name, said)
        await server.services.store.put_batch([(key_of(oid), pushed.blobs[oid])])  # a copy, which nobody knows of
    await mended_for_all(server, pushed)


async def test_F3_what_waits_in_the_index(database_url: str, tmp_path: Path) -> None:
    """A content that is not in the store yet is held against its id like any other."""
    pushed = Push()
    pushed.commit({"a": b"one content\n" * 50, "b": b"another\n"})
    async with deployed(database_url, tmp_path) as server:
        await server.make_repository()
        assert (await push(server, pushed.frames()))["type"] == "R"
        await server.services.store.delete(await keys(server.services.store, "packs"))  # where contents are kept, too
        damaged = blob_id(b"one content\n" * 50)
        flip_row(database_url, "content_cache", "content", "blob_id = %s", [bytes.fromhex(bare(damaged))], 0.5)
        await found_by_all(server, pushed, damaged)
        await server.services.store.put_batch([(key_of(damaged), pushed.blobs[damaged])])
        await mended_for_all(server, pushed)


def growing() -> Push:
    """A history whose snapshots are stored as changes to one another, and now and then whole."""
    made = Push()
    for number in range(6):
        made.commit({f"d/{n}": b"%d" % (n * (number if n % 2 else 1)) for n in range(30)})
    return made


@pytest.mark.parametrize("which", [0, 2, 5], ids=["base", "between", "last"])
async def test_F3_a_change_of_snapshots_in_the_index(server: Server, database_url: str, which: int) -> None:
    """A change that is not what was written is named, wherever the bit is; and when it is back, all is well."""
    pushed = growing()
    await server.make_repository()
    assert (await push(server, pushed.frames()))["type"] == "R"
    await server.services.store.delete(await keys(server.services.store, "records"))  # where it could be mended from
    snapshot = pushed.snapshots[which]["snapshot_id"]
    row = ("snapshots", "delta", 'snapshot_id = %s AND "full" IS NULL', [bytes.fromhex(bare(snapshot))])
    for at in (0.0, 0.05, 0.5, 0.95, 1.0):
        flip_row(database_url, *row, at)
        for name in ("pack", "frames", "urls"):
            said = await WAYS[name](server, pushed)
            assert said is not None, name
            assert bare(snapshot) in said or name != "pack", (name, said)
        flip_row(database_url, *row, at)  # the same bit
    assert await WAYS["pack"](server, pushed) is None


async def test_F3_a_change_of_snapshots_is_mended_from_the_records_in_the_store(
    server: Server, database_url: str
) -> None:
    """The store is the truth: what the index has lost of a snapshot is read there, proved, and put back."""
    pushed = growing()
    await server.make_repository()
    assert (await push(server, pushed.frames()))["type"] == "R"
    for which, name in ((0, "pack"), (5, "frames"), (2, "urls")):
        key = [bytes.fromhex(bare(pushed.snapshots[which]["snapshot_id"]))]
        flip_row(database_url, "snapshots", "delta", "snapshot_id = %s", key, 0.5)
        server.services.fetch.makers._made.clear()
        await server.services.store.delete(await keys(server.services.store, "fetch"))
        for again in (name, *WAYS):
            assert await WAYS[again](server, pushed) is None, (which, again)


async def test_F3_a_whole_snapshot_in_the_index_is_rebuilt_from_its_chain(server: Server, database_url: str) -> None:
    """A snapshot that is kept whole, too, is hashed before it is used; where it is another one, its chain tells."""
    pushed = growing()
    await server.make_repository()
    assert (await push(server, pushed.frames()))["type"] == "R"
    with psycopg.connect(database_url) as connection:
        whole = [row[0] for row in connection.execute('SELECT snapshot_id FROM snapshots WHERE "full" IS NOT NULL')]
    assert whole
    key = [bytes(whole[0])]
    flip_row(database_url, "snapshots", "delta", "snapshot_id = %s", key, 0.5)  # the other way round
    assert await WAYS["pack"](server, pushed) is None
    flip_row(database_url, "snapshots", "delta", "snapshot_id = %s", key, 0.5)
    for snapshot_id in map(bytes, whole):
        (commit,) = [c for c in pushed.commits if bare(c["snapshot_id"]) == snapshot_id.hex()]
        for at in (0.0, 0.3, 1.0):
            mine = await clone(server, commit["commit_id"])
            flip_row(database_url, "snapshots", '"full"', "snapshot_id = %s", [snapshot_id], at)
            await clone(server, pushed.head, into=mine)
            assert mine.blobs == pushed.blobs
            assert set(mine.manifests) == {record["snapshot_id"] for record in pushed.snapshots}
            server.services.fetch.makers._made.clear()
            flip_row(database_url, "snapshots", '"full"', "snapshot_id = %s", [snapshot_id], at)


async def test_F3_a_commit_in_the_index(server: Server, database_url: str) -> None:
    """Also of what no commit's id covers, nothing is delivered that is not what was pushed."""
    pushed = growing()
    await server.make_repository()
    assert (await push(server, pushed.frames()))["type"] == "R"
    ref = "record_id = (SELECT record_id FROM commit_refs WHERE commit_id = %s)"
    for at in (0.0, 0.3, 0.6, 1.0):
        flip_row(database_url, "commit_records", "record", ref, [bytes.fromhex(bare(pushed.head))], at)
        for name in ("pack", "frames", "urls"):
            said = await WAYS[name](server, pushed)
            assert said is not None, name
            assert bare(pushed.head) in said, (name, said)
        flip_row(database_url, "commit_records", "record", ref, [bytes.fromhex(bare(pushed.head))], at)


async def test_F3_a_record_pack(server: Server, tmp_path: Path) -> None:
    """Records of the store are not read to answer a fetch: whatever happens to them, what is delivered is right."""
    pushed = history()
    await server.make_repository()
    assert (await push(server, pushed.frames()))["type"] == "R"
    for key in await keys(server.services.store, "records"):
        for at in (20, 200, 400):
            await flip(tmp_path / "store", key, at)
    await mended_for_all(server, pushed)


@pytest.mark.parametrize("ahead", [True, False], ids=["made ahead", "made for somebody"])
@pytest.mark.parametrize("fresh", [True, False], ids=["by a new daemon", "by the daemon that made it"])
async def test_F3_a_fetch_pack(server: Server, tmp_path: Path, ahead: bool, fresh: bool) -> None:
    """A pack that is not what it was is never given to its end, and made anew: from the next fetch on, all is right."""
    pushed = history()
    await server.make_repository()
    assert (await push(server, pushed.frames()))["type"] == "R"
    if ahead:
        repository = await server.services.index.find_repository("alice", "x")
        assert (await run(services_of(server), "fetch.mpack.prebuild", repository.number))["built"]
    else:
        assert await WAYS["pack"](server, pushed) is None
    (key,) = await keys(server.services.store, "fetch")
    size = len((tmp_path / "store" / key).read_bytes())
    for name, at in (("pack", 0), ("pack", size - 1), ("parts", size // 3)):
        await flip(tmp_path / "store", key, at)
        if fresh:
            server.services.fetch.proofs.__init__()
            server.services.fetch.makers._made.clear()
        said = await WAYS[name](server, pushed)
        assert said is None or (not fresh and (said == "cut" or key in said)), said
        assert await WAYS[name](server, pushed) is None
        (key,) = await keys(server.services.store, "fetch")
