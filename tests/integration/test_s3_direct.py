"""URLs that lead to the store itself: what they allow, what becomes of what is uploaded to them, who gets which.

Over a real S3 server. Requests are the plainest that protocol §6 to §8 allow, without any authorisation.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from storage.environment import SystemEnvironment
from tests import mpack_pushes, presigned_pushes
from tests.clones import clone, download, fetch
from tests.deployments import with_history
from tests.http_client import HOST, ask, push
from tests.mpack_pushes import MPACK, mpack_of
from tests.muse import Push, blob_id, plain, random_history
from tests.presigned_pushes import confirm, hold, presign, records_only
from tests.s3_deployments import over_s3
from tests.s3_faults import faulty_s3
from tests.s3_server import S3Server
from tests.servers import Server

MIB = 1024 * 1024
BLOBS = [b"", b"small", random.Random(1).randbytes(100_000), random.Random(2).randbytes(3 * MIB)]
"""Each is stored in another way: nothing at all, among others, alone, and by way of a copy within the store."""

pytestmark = pytest.mark.usefixtures("expected_errors")


@pytest.fixture
def bucket(ceph_server: S3Server) -> str:
    return ceph_server.new_bucket()


@pytest.fixture
async def server(ceph_server: S3Server, bucket: str, tmp_path: Path) -> AsyncIterator[Server]:
    async with over_s3(ceph_server, tmp_path, bucket=bucket) as running:
        await running.make_repository()
        yield running


def leads_to(url: str) -> str:
    return urlsplit(url).netloc


def named(contents: list[bytes]) -> dict[str, bytes]:
    return {blob_id(content): content for content in contents}


async def test_uploads_and_fetch_packs_go_to_the_store_and_small_blobs_to_the_daemon(server, ceph_server):
    """No byte of a push or a clone passes the daemon; what may move within the store is asked of who knows."""
    store = urlsplit(ceph_server.endpoint).netloc
    history = random_history(1)
    history.commit({"large": random.Random(3).randbytes(5 * MIB)})
    data = mpack_of(history)
    told = (await mpack_pushes.presign(server, data)).value
    assert leads_to(told["upload_url"]) == store
    assert told["resumable"] is False
    told = (await presign(server, history.blobs)).value
    assert {leads_to(url) for url in told["presigned_urls"].values()} == {store}
    assert told["resumable"] is False
    assert (await presigned_pushes.push_presigned(server, history))["type"] == "R"
    answer = await fetch(server, [history.head])
    assert leads_to(answer.value["mpack_url"]) == store
    assert set((await clone(server, history.head)).blobs) == set(history.blobs)
    body = {"want": [history.head], "have": []}
    urls = (await ask(server, "POST", "/alice/x/fetch/presign", token="alice", json=body)).value["presigned_urls"]
    for object_id, content in history.blobs.items():
        assert leads_to(urls[object_id]) == (store if len(content) > 4 * MIB else HOST)
        got = await ask(server, "GET", urls[object_id])
        assert (got.status, got.body) == (200, content)


async def test_an_upload_needs_nothing_but_its_length_and_its_content(server, ceph_server, bucket):
    """Protocol §7: no authorisation, the media type of a pack; nothing more has been signed than is sent."""
    history = random_history(2)
    data = mpack_of(history)
    url = (await mpack_pushes.presign(server, data)).value["upload_url"]
    signed = parse_qs(urlsplit(url).query)["X-Amz-SignedHeaders"]
    assert signed == ["content-length;host"]
    assert (await ask(server, "PUT", url, body=data, headers={"content-type": MPACK})).status == 200
    answer = await mpack_pushes.unpack(server, data, history)
    assert (answer.status, answer.value["head"]) == (200, history.head)
    assert ceph_server.keys(bucket, "staging/") == {}
    assert set((await clone(server, history.head)).blobs) == set(history.blobs)


async def test_what_is_uploaded_already_has_no_url(server):
    history = random_history(3)
    data = mpack_of(history)
    await mpack_pushes.upload(server, data)
    assert (await mpack_pushes.presign(server, data)).value["upload_url"] is None
    assert (await mpack_pushes.unpack(server, data, history)).status == 200


@pytest.mark.parametrize("content", BLOBS, ids=lambda content: str(len(content)))
async def test_R1_what_does_not_hash_to_its_id_is_rejected_and_served_to_nobody(server, ceph_server, bucket, content):
    """A store takes any bytes of the right length: the confirmation finds out, and they can be sent again."""
    right = content or b"not empty"
    object_id = blob_id(right)
    wrong = bytes([right[0] ^ 1]) + right[1:]
    url = (await presign(server, {object_id: right})).value["presigned_urls"][object_id]
    assert (await ask(server, "PUT", url, body=wrong)).status == 200
    answer = (await confirm(server, [object_id])).value
    assert (answer["confirmed"], [r["error"] for r in answer["rejected"]]) == ([], ["bad_object_hash"])
    assert ceph_server.keys(bucket, "objects/") == {}
    await hold(server, {object_id: right})


async def test_R8_what_was_never_uploaded_is_missing_and_not_confirmed(server):
    blobs = named(BLOBS)
    urls = (await presign(server, blobs)).value["presigned_urls"]
    first, *others = blobs
    assert (await ask(server, "PUT", urls[first], body=blobs[first])).status == 200
    answer = (await confirm(server, blobs)).value
    assert answer["confirmed"] == [first]
    assert {r["object_id"]: r["error"] for r in answer["rejected"]} == dict.fromkeys(others, "missing_objects")


async def test_T4_a_url_is_good_for_its_method_its_key_its_size_and_its_time(ceph_server, tmp_path):
    """Anything else is refused by the store itself, and leaves nothing in it."""
    bucket = ceph_server.new_bucket()
    clock = Yesterday()
    async with over_s3(ceph_server, tmp_path, bucket=bucket, environment=clock) as server:
        await server.make_repository()
        blobs = named([b"first", b"other"])
        first, other = blobs
        urls = (await presign(server, blobs)).value["presigned_urls"]
        elsewhere = urls[first].replace(first.removeprefix("sha256:"), other.removeprefix("sha256:"))
        loose = urls[first].replace(f"staging/1/object/typed/{first[7:]}", f"objects/typed/{first[7:9]}/{first[9:]}")
        assert elsewhere != urls[first] != loose
        longer = urls[first].replace("X-Amz-Expires=3600", "X-Amz-Expires=36000")
        assert longer != urls[first]
        forged = [
            ("PUT", urls[first], b"five"), ("PUT", urls[first], b"longer than that"), ("PUT", elsewhere, b"first"),
            ("PUT", loose, b"first"), ("PUT", longer, b"first"), ("PUT", urls[first].partition("?")[0], b"first"),
            ("GET", urls[first], None), ("DELETE", urls[first], None), ("POST", urls[first], b"first"),
        ]  # fmt: skip
        for method, url, body in forged:
            answer = await ask(server, method, url, body=body)
            assert answer.status in {400, 403, 405}, (method, url, answer)
        assert ceph_server.keys(bucket) == {}
        clock.behind_s = 3_700.0
        urls = (await presign(server, blobs)).value["presigned_urls"]
        assert (await ask(server, "PUT", urls[first], body=b"first")).status == 403
        assert ceph_server.keys(bucket) == {}


class Yesterday(SystemEnvironment):
    """A clock that can be put back."""

    behind_s = 0.0

    def now(self):
        import datetime as dt

        return super().now() - dt.timedelta(seconds=self.behind_s)


@pytest.mark.parametrize("content", BLOBS[1:], ids=lambda content: str(len(content)))
async def test_T5_writing_again_after_the_confirmation_changes_nothing(server, content):
    """The URL lives on, and whoever has it may use it: what was verified is a copy that it does not reach."""
    history = Push()
    history.commit({"f": content})
    urls = await hold(server, history.blobs)
    (object_id,) = history.blobs
    wrong = bytes([content[0] ^ 1]) + content[1:]
    assert (await ask(server, "PUT", urls[object_id], body=wrong)).status == 200
    assert (await push(server, records_only(history)))["type"] == "R"
    assert (await ask(server, "PUT", urls[object_id], body=wrong)).status == 200
    got = await ask(server, "GET", f"/alice/x/o/{object_id}", token="alice")
    assert (got.status, got.body) == (200, content)
    assert (await clone(server, history.head)).blobs == history.blobs


async def test_T5_writing_again_after_the_unpacking_changes_nothing(server):
    history = random_history(5)
    data = mpack_of(history)
    url = (await mpack_pushes.presign(server, data)).value["upload_url"]
    assert (await ask(server, "PUT", url, body=data)).status == 200
    assert (await mpack_pushes.unpack(server, data, history)).status == 200
    wrong = data[:200] + bytes([data[200] ^ 1]) + data[201:]
    assert (await ask(server, "PUT", url, body=wrong)).status == 200
    assert set((await clone(server, history.head)).blobs) == set(history.blobs)


async def test_T5_unpacking_reads_a_copy_of_its_own_and_never_what_a_url_reaches(ceph_server, tmp_path):
    """The copy is made within the store before a byte is read: what stands at the URL by then does not matter."""
    async with faulty_s3(ceph_server) as proxy, over_s3(proxy.as_server, tmp_path) as server:
        await server.make_repository()
        for seed in range(3):
            history = random_history(seed)
            data = mpack_of(history)
            url = (await mpack_pushes.presign(server, data)).value["upload_url"]
            assert (await ask(server, "PUT", url, body=data)).status == 200
            wrong = data[:300] + bytes([data[300] ^ 1]) + data[301:]
            begun = len(proxy.asked)
            answer = await mpack_pushes.unpack(server, data, history, branch=f"b{seed}")
            steps = proxy.asked[begun:]
            assert answer.status == 200
            copy = next(at for at, asked in enumerate(steps) if asked.is_copy)
            assert not any(asked.under("staging/1/mpack") and asked.method == "GET" for asked in steps), steps
            assert copy < next(at for at, asked in enumerate(steps) if asked.method == "GET" and asked.key), steps
            assert (await ask(server, "PUT", url, body=wrong)).status == 200
            assert set((await clone(server, history.head)).blobs) == set(history.blobs)


async def test_a_download_resumes_by_range(server):
    """Protocol §8, at the store itself."""
    history = await with_history(server, random_history(6), slug="y")
    answer = await fetch(server, [history.head], repository="alice/y")
    whole = await download(server, answer.value)
    half = len(whole) // 2
    for begin, expected in ((half, whole[half:]), (len(whole) - 1, whole[-1:])):
        part = await ask(server, "GET", answer.value["mpack_url"], headers={"range": f"bytes={begin}-"})
        assert (part.status, part.body) == (206, expected)
        assert part.headers["content-range"] == f"bytes {begin}-{len(whole) - 1}/{len(whole)}"


async def test_R5_T21_what_the_store_gives_itself_is_for_no_shared_cache(server):
    history = await with_history(server, random_history(7), slug="y")
    answer = await fetch(server, [history.head], repository="alice/y")
    got = await ask(server, "GET", answer.value["mpack_url"])
    assert "private" in got.headers.get("cache-control", ""), got.headers


async def test_old_clients_get_large_blobs_from_the_store(server, ceph_server):
    """Protocol §9: ``presign`` with the lifetime that is asked for, and content byte for byte."""
    history = Push(name=plain)
    large = random.Random(8).randbytes(5 * MIB)
    history.commit({"large": large, "small": b"small", "empty": b""})
    await with_history(server, history, slug="old")
    body = {"object_ids": list(history.blobs), "direction": "get", "ttl_seconds": 300}
    told = (await ask(server, "POST", "/alice/old/presign", token="alice", msgpack=body)).value
    assert set(told["presigned"]) == set(history.blobs)
    url = told["presigned"][blob_id(large, plain)]
    assert leads_to(url) == urlsplit(ceph_server.endpoint).netloc
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["300"]
    for object_id, content in history.blobs.items():
        assert (await ask(server, "GET", told["presigned"][object_id])).body == content


async def test_without_direct_every_byte_passes_the_daemon(s3_server, tmp_path):
    """``store.direct = false``: for a store that clients cannot reach."""
    async with over_s3(s3_server, tmp_path, store__direct=False) as server:
        await server.make_repository()
        history = random_history(9)
        data = mpack_of(history)
        told = (await mpack_pushes.presign(server, data)).value
        assert (leads_to(told["upload_url"]), told["resumable"]) == (HOST, True)
        urls = (await presign(server, history.blobs)).value["presigned_urls"]
        assert {leads_to(url) for url in urls.values()} == {HOST}
        assert (await mpack_pushes.push_mpack(server, data, history)).status == 200
        answer = await fetch(server, [history.head])
        assert leads_to(answer.value["mpack_url"]) == HOST
        assert set((await clone(server, history.head)).blobs) == set(history.blobs)


async def test_clients_are_sent_to_the_public_endpoint(ceph_server, tmp_path):
    """The daemon reaches the store by another address than clients do: neither sees the other's."""
    async with faulty_s3(ceph_server) as inside, faulty_s3(ceph_server) as outside:
        public = {"public_endpoint": outside.endpoint}
        async with over_s3(inside.as_server, tmp_path, store=public) as server:
            await server.make_repository()
            history = random_history(10)
            assert (await presigned_pushes.push_presigned(server, history))["type"] == "R"
            assert (await clone(server, history.head)).blobs == history.blobs
    assert {asked.headers["host"] for asked in inside.asked} == {urlsplit(inside.endpoint).netloc}
    assert {asked.method for asked in outside.asked} == {"PUT", "GET"}
    assert len(outside.asked) == len(history.blobs) + 1
    assert all("authorization" not in asked.headers for asked in outside.asked)
