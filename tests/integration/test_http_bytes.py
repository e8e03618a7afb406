"""Bytes over HTTP: assembled mpacks by their signed URLs, and single blobs.

Most tests run twice: over the memory twins, and over PostgreSQL and a directory.
"""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.push.kept import KEPT_IN_ALL_BYTES
from storage.environment import SeededEnvironment
from storage.memory.index import MemoryIndex
from storage.objects.faulty import Fault, FaultyStore
from storage.objects.memory import MemoryStore
from tests.clones import download, fetch, target_of
from tests.deployments import deployed, two_commits, with_history
from tests.http_client import PATIENCE_S, ask, connected, head_bytes, push, without_id
from tests.muse import Push, blob_id, frame, random_history
from tests.servers import Server, serving

JSON = "application/json"
ZEROS = "sha256:" + "0" * 64
MIB = 1024 * 1024

pytestmark = pytest.mark.usefixtures("expected_errors")


async def fetched(server: Server) -> tuple[str, bytes, dict]:
    """Push, fetch and download; gives the URL's target, the pack and the answer."""
    history = await with_history(server, random_history(5))
    answer = (await fetch(server, [history.head])).value
    return target_of(answer), await download(server, answer), answer


async def test_the_url_of_an_mpack_leads_back_to_the_server_by_the_name_the_client_used(twin):
    history = await with_history(twin)
    answer = (await fetch(twin, [history.head])).value
    assert answer["mpack_url"].startswith("http://museworkd.test/alice/x/mpack/")


async def test_the_url_of_an_mpack_starts_with_the_configured_one(tmp_path):
    async with deployed(None, tmp_path, server__public_url="https://muse.example.org/hub") as server:
        history = await with_history(server)
        answer = (await fetch(server, [history.head])).value
        assert answer["mpack_url"].startswith("https://muse.example.org/hub/alice/x/mpack/")


async def test_an_mpack_is_served_whole_or_by_range(server):
    target, pack, answer = await fetched(server)
    etag = f'"{answer["mpack_id"].removeprefix("sha256:")}"'
    whole = await ask(server, "GET", target)
    assert (whole.status, whole.body) == (200, pack)
    assert whole.headers["content-type"] == "application/x-muse-pack"
    assert whole.headers["etag"] == etag
    assert whole.headers["accept-ranges"] == "bytes"
    assert "public" not in whole.headers["cache-control"]
    for header, first, last in ranges(len(pack)):
        part = await ask(server, "GET", target, headers={"range": header})
        assert (part.status, part.body) == (206, pack[first : last + 1])
        assert part.headers["content-range"] == f"bytes {first}-{last}/{len(pack)}"


def ranges(size: int) -> list[tuple[str, int, int]]:
    """Range headers with the first and last byte they mean."""
    return [
        ("bytes=0-0", 0, 0), ("bytes=0-99", 0, 99), ("bytes=100-", 100, size - 1), ("bytes=-50", size - 50, size - 1),
        (f"bytes=10-{size * 9}", 10, size - 1), (f"bytes=-{size * 9}", 0, size - 1),
        (f"bytes={size - 1}-{size - 1}", size - 1, size - 1),
    ]  # fmt: skip


async def test_a_broken_download_of_an_mpack_resumes_when_it_is_still_the_same(server):
    target, pack, answer = await fetched(server)
    etag = f'"{answer["mpack_id"].removeprefix("sha256:")}"'
    same = await ask(server, "GET", target, headers={"range": "bytes=70-", "if-range": etag})
    assert (same.status, same.body) == (206, pack[70:])
    other = await ask(server, "GET", target, headers={"range": "bytes=70-", "if-range": '"another"'})
    assert (other.status, other.body) == (200, pack)


@pytest.mark.parametrize(
    "header", ["bytes=5-2", "bytes=a-b", "bytes=0-1,3-4", "bytes=-", "rows=0-1", "bytes", "0-5", ""]
)
async def test_a_range_that_is_not_understood_is_ignored(twin, header):
    target, pack, _ = await fetched(twin)
    answer = await ask(twin, "GET", target, headers={"range": header})
    assert (answer.status, answer.body) == (200, pack)


@pytest.mark.parametrize("first", [0, 1, 10**17])
async def test_a_range_outside_the_content_is_416_and_tells_the_size(twin, first):
    target, pack, _ = await fetched(twin)
    answer = await ask(twin, "GET", target, headers={"range": f"bytes={len(pack) + first}-"})
    assert (answer.status, answer.error) == (416, "range_mismatch")
    assert answer.headers["content-range"] == f"bytes */{len(pack)}"


async def test_a_head_of_an_mpack_tells_its_length_and_sends_nothing(twin):
    target, pack, _ = await fetched(twin)
    for headers in ({}, {"range": "bytes=0-9"}):  # Range has a meaning for GET alone (RFC 9110 §14.2)
        answer = await ask(twin, "HEAD", target, headers=headers)
        assert (answer.status, answer.headers["content-length"], answer.body) == (200, str(len(pack)), b"")


async def test_T4_a_url_that_was_not_signed_as_it_stands_is_403(twin):
    target, _, answer = await fetched(twin)
    path, query = target.split("?")
    expires, signature = (part.partition("=")[2] for part in query.split("&"))
    mpack_id = answer["mpack_id"].removeprefix("sha256:")
    await twin.make_repository(slug="y")
    forged = [
        path, f"{path}?", f"{path}?expires={expires}", f"{path}?signature={signature}",
        f"{path}?expires={expires}&signature=", f"{path}?expires={expires}&signature={signature[:-1]}",
        f"{path}?expires={expires}&signature={signature[:-1]}{'0' if signature[-1] != '0' else '1'}",
        f"{path}?expires={expires}&signature={signature.upper()}", f"{path}?expires={expires}&signature=%FF%00",
        f"{path}?expires={int(expires) + 1}&signature={signature}", f"{path}?expires=0{expires}0&signature={signature}",
        f"{path}?expires=-1&signature={signature}", f"{path}?expires=x&signature={signature}",
        f"{path}?expires={'9' * 400}&signature={signature}", f"{path}?expires=%C2%B2&signature={signature}",
        target.replace(mpack_id, "0" * 64), target.replace("/alice/x/", "/alice/y/"),
        target.replace("/alice/", "/bob/"),
    ]  # fmt: skip
    for token in (None, "alice"):
        for target_ in forged:
            refused = await ask(twin, "GET", target_, token=token)
            assert (refused.status, refused.error) == (403, "forbidden"), target_


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE", "PATCH"])
async def test_T4_a_url_is_good_for_reading_only(twin, method):
    target, pack, _ = await fetched(twin)
    answer = await ask(twin, method, target, body=b"other bytes")
    assert answer.status in {403, 405}
    assert (await ask(twin, "GET", target)).body == pack


async def test_T4_a_url_ends_when_its_time_is_over(database, tmp_path):
    environment = SeededEnvironment(1)
    async with deployed(database, tmp_path, environment, server__presign_s=100) as server:
        target, pack, _ = await fetched(server)
        environment.move(99)
        assert (await ask(server, "GET", target)).body == pack
        environment.move(1)
        answer = await ask(server, "GET", target)
        assert (answer.status, answer.error) == (403, "forbidden")
        assert "expired" in answer.value["detail"]


async def test_T4_a_url_signed_by_another_deployment_is_403(twin, tmp_path):
    target, _, _ = await fetched(twin)
    async with deployed(None, tmp_path / "other") as other:
        await with_history(other, random_history(5))
        assert (await ask(other, "GET", target)).status == 403


async def test_a_blob_is_served_whole_or_by_range(server):
    content = bytes(range(256)) * 4
    history = Push()
    history.commit({"blob": content, "empty": b""})
    await with_history(server, history)
    target = f"/alice/x/o/{blob_id(content)}"
    whole = await ask(server, "GET", target, token="alice")
    assert (whole.status, whole.body, whole.headers["content-length"]) == (200, content, str(len(content)))
    assert whole.headers["content-type"] == "application/octet-stream"
    assert whole.headers["accept-ranges"] == "bytes"
    for header, first, last in ranges(len(content)):
        part = await ask(server, "GET", target, token="alice", headers={"range": header})
        assert (part.status, part.body) == (206, content[first : last + 1])
        assert part.headers["content-range"] == f"bytes {first}-{last}/{len(content)}"
    outside = await ask(server, "GET", target, token="alice", headers={"range": f"bytes={len(content)}-"})
    assert (outside.status, outside.error) == (416, "range_mismatch")
    head = await ask(server, "HEAD", target, token="alice")
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(content)))


async def test_R12_the_empty_blob_is_a_blob(server):
    await with_history(server)
    answer = await ask(server, "GET", f"/alice/x/o/{blob_id(b'')}", token="alice")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")


async def test_a_blob_the_client_has_is_not_sent_again(server):
    history = await with_history(server)
    target = f"/alice/x/o/{next(iter(history.blobs))}"
    etag = (await ask(server, "GET", target, token="alice")).headers["etag"]
    for method in ("GET", "HEAD"):
        for known in (etag, "*"):
            answer = await ask(server, method, target, token="alice", headers={"if-none-match": known})
            assert (answer.status, answer.body, answer.headers["etag"]) == (304, b"", etag)
    assert (await ask(server, "GET", target, token="alice", headers={"if-none-match": '"other"'})).status == 200


async def test_R5_T21_a_blob_is_never_publicly_cacheable(server):
    history = await with_history(server)
    await with_history(server, slug="public", public=True)
    blob = next(iter(history.blobs))
    for slug in ("x", "public"):
        for headers in ({}, {"range": "bytes=0-1"}, {"if-none-match": "*"}):
            answer = await ask(server, "GET", f"/alice/{slug}/o/{blob}", token="alice", headers=headers)
            control = answer.headers["cache-control"]
            assert "private" in control or "no-store" in control
            assert "public" not in control
            assert "s-maxage" not in control
            assert "authorization" in answer.headers["vary"].lower()


async def test_a_blob_cannot_become_a_page(server):
    html = b"<script>alert(1)</script>"
    history = Push()
    history.commit({"index.html": html})
    await with_history(server, history)
    answer = await ask(server, "GET", f"/alice/x/o/{blob_id(html)}", token="alice")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


async def test_T2_an_unknown_blob_and_one_of_another_repository_are_404_alike(server):
    history = await with_history(server)
    await server.make_repository(slug="empty")
    other = Push()
    other.commit({"other": b"other"})
    await with_history(server, other, slug="other")
    blob = next(iter(history.blobs))
    targets = [f"/alice/x/o/{ZEROS}", f"/alice/empty/o/{blob}", f"/alice/other/o/{blob}"]
    answers = [await ask(server, "GET", target, token="alice") for target in targets]
    assert {answer.status for answer in answers} == {404}
    assert without_id(answers[0]) == without_id(answers[1]) == without_id(answers[2])


async def test_commits_and_snapshots_are_no_blobs(server):
    history = await with_history(server)
    for record_id in (history.head, history.snapshots[0]["snapshot_id"]):
        assert (await ask(server, "GET", f"/alice/x/o/{record_id}", token="alice")).status == 404


async def test_a_blob_of_a_push_that_is_not_accepted_yet_is_404(server):
    history = two_commits()
    await server.make_repository()
    async with connected(server) as connection:
        head = head_bytes("POST", "/alice/x/push/stream", token="alice", headers={"transfer-encoding": "chunked"})
        await connection.send(head)
        await connection.send_chunk(history.header() + b"".join(history.object_frames()))
        await connection.send_chunk(frame("C", commits=[], snapshots=history.snapshots, snapshot_deltas=[]))
        await connection.begin_answer("POST")
        kept = server.services.push.kept
        with trio.fail_after(PATIENCE_S):
            while KEPT_IN_ALL_BYTES - kept.free < sum(map(len, history.blobs.values())):
                await wait_all_tasks_blocked(0.005)
        for oid in history.blobs:
            assert (await ask(server, "GET", f"/alice/x/o/{oid}", token="alice")).status == 404
        assert (await ask(server, "GET", "/alice/x/refs", token="alice")).value["branch_heads"] == {}
        await connection.send_chunk(frame("C", commits=history.commits, snapshots=[], snapshot_deltas=[]))
        await connection.send_chunk(history.end())
        await connection.send_chunk(b"")
        while await connection.piece():
            pass
    for oid, content in history.blobs.items():
        assert (await ask(server, "GET", f"/alice/x/o/{oid}", token="alice")).body == content


@pytest.mark.parametrize("size", [8 * MIB, 8 * MIB + 1, 9 * MIB + 12345])
async def test_a_large_blob_is_streamed_whole_and_by_range(server, size):
    content = random.Random(size).randbytes(size)
    history = Push()
    history.commit({"large": content})
    oid = blob_id(content)
    history.blobs.clear()
    await server.make_repository()
    chunks = [content[at : at + MIB] for at in range(0, size, MIB)]
    objects = [
        frame("OC", object_id=oid, encoding="raw", seq=seq, last=seq == len(chunks) - 1, content=chunk)
        for seq, chunk in enumerate(chunks)
    ]
    frames = [history.header(), *objects, history.commit_frame(), history.end(n_objects=1)]
    assert (await push(server, b"".join(frames)))["type"] == "R"
    target = f"/alice/x/o/{oid}"
    assert (await ask(server, "GET", target, token="alice")).body == content
    part = await ask(server, "GET", target, token="alice", headers={"range": "bytes=1048570-2097160"})
    assert part.body == content[1048570:2097161]


async def test_R8_a_damaged_blob_is_an_error_and_not_wrong_bytes(tmp_path):
    flips: list[bool] = []
    store = FaultyStore(
        MemoryStore(), lambda call: Fault(flip=True) if flips and call.operation == "get_ranges" else None
    )
    async with serving(MemoryIndex(), store, tmp_path, limits__content_cache_object_bytes=0) as server:
        history = await with_history(server)
        flips.append(True)
        answer = await ask(server, "GET", f"/alice/x/o/{blob_id(b'hello again' + bytes([10]))}", token="alice")
        assert (answer.status, answer.error) == (503, "store_damaged")
        answer = await fetch(server, [history.head])
        assert (answer.status, answer.error) == (503, "store_damaged")


SIZES_BEYOND_MEMORY = [300_000, 3 * MIB + 5]


@pytest.mark.parametrize("size", SIZES_BEYOND_MEMORY)
async def test_F3_damage_of_a_large_blob_is_noticed_before_its_end(tmp_path, size):
    faults: list[Fault] = []
    store = FaultyStore(MemoryStore(), lambda call: faults[0] if faults and call.operation == "stream" else None)
    async with serving(MemoryIndex(), store, tmp_path, limits__content_cache_object_bytes=0) as server:
        history = Push()
        history.commit({"large": random.Random(size).randbytes(size)})
        await with_history(server, history)
        (blob,) = history.blobs
        target = f"/alice/x/o/{blob}"
        good = await ask(server, "GET", target, token="alice")
        assert (good.status, good.complete, good.body) == (200, True, history.blobs[blob])
        part = await ask(server, "GET", target, token="alice", headers={"range": f"bytes=5-{size - 2}"})
        assert (part.status, part.body) == (206, history.blobs[blob][5:-1])
        for fault in (Fault(flip=True), Fault(cut=True)):
            faults[:] = [fault]
            damaged = await ask(server, "GET", target, token="alice")
            assert damaged.status == 503 or not damaged.complete
            part = await ask(server, "GET", target, token="alice", headers={"range": f"bytes=5-{size - 2}"})
            assert (part.status, part.error) == (503, "store_damaged")
            faults.clear()
