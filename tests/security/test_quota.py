"""Quotas (threat T28): an owner's repositories hold no more than they may, by whatever way and however many at once."""

from __future__ import annotations

import random
import uuid

import pytest
import trio
import zstandard

from storage.memory.index import MemoryIndex
from storage.objects.memory import MemoryStore
from storage.rows import QUOTA_NONE, Right
from tests import containers
from tests.http_client import ask, connected, head_bytes, push
from tests.mpack_pushes import mpack_of, presign, push_mpack, put, target_of, unpack, upload
from tests.muse import Push
from tests.presigned_pushes import hold, records_only
from tests.presigned_pushes import presign as presign_objects
from tests.servers import Server, serving

pytestmark = pytest.mark.usefixtures("expected_errors")

KB = 1000
RECORDS = 10 * KB
"""More than the records of a small push take up."""
BATCHES_BYTES = 16 * 1024 * KB
"""More than a push has on its way into the store at once."""


def of_size(size: int, seed: int = 1, pieces: int = 10, history: Push | None = None) -> Push:
    """One commit of so many new bytes."""
    rng = random.Random(seed)
    made = history or Push()
    made.commit({f"{seed}/f{at}": rng.randbytes(size // pieces) for at in range(pieces)}, [])
    return made


async def usage(server: Server, owner: str = "alice") -> tuple[int, int]:
    found = await server.services.index.owner_usage(owner, server.services.environment.now())
    return found.used, found.reserved


async def limit(server: Server, quota: int | None, owner: str = "alice") -> None:
    await server.services.index.set_quota(owner, quota)


async def pushed(server: Server, history: Push, slug: str = "x", **header: object) -> dict:
    said = await push(server, history.frames(**header), repository=f"alice/{slug}")
    assert said["type"] == "R" or said["error"] == "quota_exceeded", said
    return said


async def stored_bytes(server: Server) -> int:
    return sum([found.size async for found in server.services.store.scan("")])


async def no_push_is_left(server: Server) -> None:
    assert await server.services.supervisor.drain(15)
    server.services.supervisor.draining = False


@pytest.mark.parametrize("pieces", [400, 20])
async def test_a_push_that_brings_too_much_is_refused_before_it_is_stored_whole(server, pieces):
    await server.make_repository()
    await limit(server, 500 * KB)
    history = of_size(25_000 * KB, pieces=pieces)
    said = await pushed(server, history)
    assert (said["type"], said["error"], said["retryable"], said["quota"]) == ("X", "quota_exceeded", False, 500 * KB)
    assert said["detail"]
    assert said["used"] == 0
    assert await stored_bytes(server) < 500 * KB + BATCHES_BYTES
    assert (await ask(server, "GET", "/alice/x/refs", token="alice")).value["branch_heads"] == {}
    assert (await usage(server))[0] == 0


async def test_what_fits_is_taken_and_what_is_left_is_told(server):
    await server.make_repository()
    await limit(server, 500 * KB)
    await pushed(server, of_size(400 * KB))
    used, reserved = await usage(server)
    assert 400 * KB < used < 400 * KB + RECORDS
    assert reserved == 0
    said = await pushed(server, of_size(200 * KB, 2), force=True)
    assert (said["type"], said["used"], said["quota"]) == ("X", used, 500 * KB)


async def test_the_records_of_a_push_count_too(server):
    """A tree of many long paths to one small content takes up more than that content."""
    await server.make_repository()
    await limit(server, 50 * KB)
    history = Push()
    history.commit({f"a directory with a name/and a file with one, number {at}": b"x" for at in range(2_000)})
    said = await pushed(server, history)
    assert (said["type"], said.get("error"), said.get("used")) == ("X", "quota_exceeded", 0)


async def test_many_sessions_at_once_cannot_pass_together(server):
    quota = 250 * KB
    for number in range(3):
        await server.make_repository(slug=f"r{number}")
    await limit(server, quota)
    said: list[dict] = []

    async def one(number: int) -> None:
        history = of_size(100 * KB, number)
        said.append(await pushed(server, history, f"r{number % 3}", branch=f"b{number}"))

    async with trio.open_nursery() as nursery:
        for number in range(9):
            nursery.start_soon(one, number)
    assert {answer["type"] for answer in said} >= {"X"}
    assert (await usage(server))[0] <= quota


async def test_an_abandoned_push_counts_until_its_day_is_over(server):
    await server.make_repository()
    await limit(server, 4_000 * KB)
    history = of_size(3_000 * KB, pieces=150)
    body = history.header() + b"".join(history.object_frames()) + history.commit_frame()
    async with connected(server) as connection:
        headers = {"content-length": str(len(body) + 100)}
        await connection.send(head_bytes("POST", "/alice/x/push/stream", token="alice", headers=headers) + body)
        with trio.fail_after(15):
            while (await usage(server))[1] < 1_000 * KB:
                await trio.lowlevel.checkpoint()
    await no_push_is_left(server)
    said = await pushed(server, of_size(3_900 * KB, 2, pieces=400))
    assert (said["error"], said["used"], said["reserved"] >= 1_000 * KB) == ("quota_exceeded", 0, True)


async def test_a_repetition_under_its_id_counts_once(server):
    await server.make_repository()
    history, push_id = of_size(200 * KB), str(uuid.uuid4())
    before = None
    for _ in range(2):
        assert (await pushed(server, history, push_id=push_id))["type"] == "R"
        before = before or await usage(server)
        assert await usage(server) == before


async def test_what_a_repository_has_already_costs_records_only(server):
    await server.make_repository()
    await limit(server, 300 * KB)
    for _ in range(3):
        assert (await pushed(server, of_size(200 * KB)))["type"] == "R"
    assert 200 * KB < (await usage(server))[0] < 200 * KB + 3 * RECORDS


async def test_forced_pushes_add_up(server):
    """What a branch no longer reaches is still there."""
    await server.make_repository()
    await limit(server, 250 * KB)
    for seed in (1, 2):
        assert (await pushed(server, of_size(100 * KB, seed), force=True))["type"] == "R"
    assert (await pushed(server, of_size(100 * KB, 3), force=True))["error"] == "quota_exceeded"


@pytest.mark.parametrize("same_id", [True, False])
async def test_with_a_higher_quota_the_same_push_goes_through(server, same_id):
    await server.make_repository()
    await limit(server, 200 * KB)
    history, push_id = of_size(3_000 * KB, pieces=150), str(uuid.uuid4())
    stopped = await push(server, history.header(push_id=push_id) + b"".join(history.object_frames()))
    assert stopped["error"] == "quota_exceeded"
    await no_push_is_left(server)
    await limit(server, 3_000 * KB + 2 * RECORDS)
    assert (await pushed(server, history, push_id=push_id if same_id else str(uuid.uuid4())))["type"] == "R"
    used, reserved = await usage(server)
    assert (3_000 * KB < used < 3_000 * KB + 2 * RECORDS, reserved) == (True, 0)


async def test_repositories_of_an_owner_share_its_quota_and_a_deleted_one_gives_back(server):
    for slug in ("x", "y"):
        await server.make_repository(slug=slug)
    await limit(server, 300 * KB)
    assert (await pushed(server, of_size(200 * KB)))["type"] == "R"
    assert (await pushed(server, of_size(200 * KB), "y"))["error"] == "quota_exceeded"
    await no_push_is_left(server)
    assert (await ask(server, "DELETE", "/api/repos/alice/x", token="alice")).status == 200
    assert (await pushed(server, of_size(200 * KB), "y"))["type"] == "R"


async def test_a_collaborator_pushes_at_the_owners_expense(server):
    repository = await server.make_repository()
    await server.services.index.set_collaborator(repository.number, "bob", Right.WRITE)
    await limit(server, 100 * KB)
    await limit(server, QUOTA_NONE, "bob")
    said = await push(server, of_size(200 * KB).frames(), token="bob")
    assert said["error"] == "quota_exceeded"
    assert await usage(server, "bob") == (0, 0)


async def test_nobody_sets_a_quota_over_http(server):
    await server.make_repository()
    await limit(server, 100 * KB)
    for value in ({"quota": 0}, {"owner_quota_bytes": 0}, {"quota_bytes": None}):
        for method, path, body in [
            ("PATCH", "/api/repos/alice/x", {"settings": value}), ("PATCH", "/api/repos/alice/x", value),
            ("POST", "/api/repos", {"slug": f"y{len(value)}", "settings": value}),
        ]:  # fmt: skip
            await ask(server, method, path, token="alice", json=body)
    found = await server.services.index.owner_usage("alice", server.services.environment.now())
    assert found.quota == 100 * KB


async def test_a_file_too_many_is_refused_before_a_byte_of_it_is_sent(server):
    await server.make_repository()
    history = of_size(200 * KB)
    data = mpack_of(history)
    await limit(server, 150 * KB)
    for path in ("push/mpack-presign", "push/bundle/presign"):
        refused = await presign(server, data, path=path)
        assert (refused.status, refused.error, refused.value["retryable"]) == (413, "quota_exceeded", False)
        assert (refused.value["used"], refused.value["quota"]) == (0, 150 * KB)
        assert "upload_url" not in refused.value
    await limit(server, 220 * KB)
    answer = await push_mpack(server, data, history)
    assert answer.status == 200, answer.value
    assert await stored_bytes(server) > 200 * KB
    used, reserved = await usage(server)
    assert 200 * KB < used < 200 * KB + RECORDS
    assert reserved == 0


async def test_announced_files_count_each_once(server):
    await server.make_repository()
    await server.make_repository(slug="y")
    first, second = mpack_of(of_size(200 * KB)), mpack_of(of_size(200 * KB, 2))
    await limit(server, 300 * KB)
    for _ in range(3):
        assert (await presign(server, first)).status == 200
    assert await usage(server) == (0, len(first))
    for slug in ("x", "y"):
        assert (await presign(server, second, slug)).error == "quota_exceeded"
    await upload(server, first)  # an upload that waits is an upload that counts
    assert (await presign(server, first)).value["upload_url"] is None
    assert (await presign(server, second)).error == "quota_exceeded"


async def test_T28_a_file_that_is_refused_counts_while_its_url_takes_another_one(server):
    """Neither a refusal nor asking for what was never uploaded makes room for more uploads."""
    await server.make_repository()
    data = bytearray(mpack_of(of_size(200 * KB)))
    data[len(data) // 2] ^= 1
    await limit(server, 300 * KB)
    assert (await unpack_refused(server, bytes(data))) in {"malformed", "bad_object_hash"}
    assert await usage(server) == (0, len(data))
    assert (await presign(server, bytes(data))).status == 200  # the same file is counted once
    other = mpack_of(of_size(200 * KB, 2))
    assert (await presign(server, other)).error == "quota_exceeded"
    assert (await unpack(server, bytes(data), of_size(200 * KB))).error == "not_found"
    assert (await presign(server, other)).error == "quota_exceeded"


async def unpack_refused(server: Server, data: bytes) -> str:
    await put(server, target_of((await presign(server, data)).value["upload_url"]), data)
    return (await unpack(server, data, of_size(200 * KB))).error


async def test_a_file_that_holds_more_than_was_announced_is_refused_when_it_is_unpacked(server):
    await server.make_repository()
    history = Push()
    history.commit({"zeros": bytes(1_000 * KB)})
    compressed = [(oid, zstandard.compress(content)) for oid, content in history.blobs.items()]
    data = containers.mpack([
        (containers.OBJECTS_ZSTD, containers.pack(compressed)),
        (containers.SNAPSHOTS, containers.record_section(history.snapshots)),
        (containers.COMMITS, containers.record_section(history.commits)),
    ])  # fmt: skip
    await limit(server, 100 * KB)
    refused = await push_mpack(server, data, history)
    assert (refused.status, refused.error) == (413, "quota_exceeded")
    assert await usage(server) == (0, 0)
    await limit(server, 1_100 * KB)
    assert (await push_mpack(server, data, history)).status == 200


async def test_announced_objects_count_each_once_and_until_their_push_is_accepted(server):
    await server.make_repository()
    history = of_size(200 * KB)
    await limit(server, 150 * KB)
    refused = await presign_objects(server, history.blobs)
    assert (refused.status, refused.error, refused.value["quota"]) == (413, "quota_exceeded", 150 * KB)
    await limit(server, 220 * KB)
    for _ in range(2):
        assert (await presign_objects(server, history.blobs)).status == 200
    assert await usage(server) == (0, 200 * KB)


async def test_confirmed_objects_count_when_a_push_has_them(server):
    await server.make_repository()
    history, push_id = of_size(200 * KB), str(uuid.uuid4())
    await limit(server, 300 * KB)
    assert (await presign_objects(server, history.blobs, push_id=push_id)).status == 200
    await hold(server, history.blobs)
    assert (await push(server, records_only(history, push_id=push_id)))["type"] == "R"
    used, _ = await usage(server)
    assert 200 * KB < used < 200 * KB + RECORDS
    second = of_size(200 * KB, 2)
    await limit(server, QUOTA_NONE)
    await hold(server, second.blobs)
    await limit(server, 300 * KB)
    assert (await push(server, records_only(second, force=True)))["error"] == "quota_exceeded"


async def test_a_default_holds_for_everybody_without_a_quota(tmp_path):
    async with serving(MemoryIndex(owner_quota=100 * KB), MemoryStore(), tmp_path) as server:
        await server.make_repository()
        assert (await pushed(server, of_size(200 * KB)))["error"] == "quota_exceeded"
        await limit(server, QUOTA_NONE)
        assert (await pushed(server, of_size(200 * KB)))["type"] == "R"
