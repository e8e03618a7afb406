"""Large files into an S3 store: in parts, in bounded memory, with nothing left over of what was not ended."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from museworkd import keepers
from museworkd.http.uploads import Uploads
from storage.environment import SystemEnvironment
from storage.errors import ObjectMissing, StoreUnavailable
from storage.memory.index import MemoryIndex
from storage.objects.limited import LimitedStore
from storage.objects.s3 import S3Store
from storage.objects.s3_uploads import PARALLEL_PARTS, PART_BYTES
from storage.objects.verifying import VerifyingStore
from tests.s3_faults import Asked, Fault, always, faulty_s3, once
from tests.s3_server import S3Server
from tests.s3_stores import make_store

MIB = 1024 * 1024
SMALLEST_PART_BYTES = 5 * MIB
"""S3 has none smaller but the last."""
LARGE_BYTES = 3 * SMALLEST_PART_BYTES + 12_345
MEMORY_BYTES = 32 * MIB


def is_part(asked: Asked) -> bool:
    return "partNumber" in asked.query


def is_completion(asked: Asked) -> bool:
    return asked.method == "POST" and "uploadId" in asked.query


def write_file(path: Path, size: int, seed: int = 0) -> bytes:
    content = random.Random(seed).randbytes(size)
    path.write_bytes(content)
    return content


def uploads_left(server: S3Server, bucket: str) -> list[str]:
    found = server.client().list_multipart_uploads(Bucket=bucket)  # type: ignore[attr-defined]
    return [upload["Key"] for upload in found.get("Uploads", [])]


def small_parts(server: S3Server, **settings: float) -> S3Store:
    store = make_store(server, **settings)
    store.uploads.part_bytes = SMALLEST_PART_BYTES
    return store


def peak_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


async def read(store: object, key: str) -> bytes:
    async with store.stream(key) as pieces:  # type: ignore[attr-defined]
        return b"".join([piece async for piece in pieces])


@pytest.mark.parametrize("size", [PART_BYTES, PART_BYTES + 1])
async def test_a_file_is_stored_in_parts_from_16_mib_on(s3_server: S3Server, tmp_path: Path, size: int) -> None:
    async with faulty_s3(s3_server) as proxy:
        store = make_store(proxy.as_server)
        content = write_file(tmp_path / "file", size)
        await store.put_file("notes/large", tmp_path / "file")
        parts = -(-size // PART_BYTES) if size > PART_BYTES else 0
        assert sum(map(is_part, proxy.asked)) == parts
        assert len(proxy.asked) == (parts + 2 if parts else 1)
        assert not (tmp_path / "file").exists()
        assert await read(store, "notes/large") == content
        assert uploads_left(s3_server, store.settings.bucket) == []


async def test_a_large_file_takes_no_memory(s3_server: S3Server, tmp_path: Path) -> None:
    """96 MiB up and down again: its bytes are never there at once."""
    store = make_store(s3_server, call_timeout_s=60.0)
    block = random.Random(1).randbytes(MIB)
    with (tmp_path / "file").open("wb") as file:
        for _ in range(96):
            file.write(block)
    await store.put_batch([("notes/warm", block)])
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak_bytes()
    await store.put_file("notes/large", tmp_path / "file")
    received = 0
    async with store.stream("notes/large") as pieces:
        async for piece in pieces:
            received += len(piece)
    assert received == 96 * MIB
    assert peak_bytes() - before < MEMORY_BYTES


SURVIVED = {
    "a part is refused": once(is_part, Fault(refuse=503), times=2),
    "a part is cut": once(is_part, Fault(cut_request_at=MIB)),
    "a part is damaged": once(is_part, Fault(flip_request_at=MIB)),
    "the answer of a part is lost": once(is_part, Fault(lose_answer=True)),
    "the answer of the completion is lost": once(is_completion, Fault(lose_answer=True)),
    "the completion fails after it was done": once(is_completion, Fault(answer_instead=500)),
    "the completion is refused": once(is_completion, Fault(refuse=503)),
}


async def test_F6_what_goes_wrong_once_is_done_again_alone(ceph_server: S3Server, tmp_path: Path) -> None:
    """Only the request that failed is repeated: the file is not begun anew, and a completion may be called twice."""
    async with faulty_s3(ceph_server) as proxy:
        store = small_parts(proxy.as_server)
        for seed, (name, rule) in enumerate(SURVIVED.items()):
            content = write_file(tmp_path / "file", SMALLEST_PART_BYTES + MIB + seed, seed)
            proxy.asked.clear()
            proxy.rules = [rule]
            await store.put_file("notes/large", tmp_path / "file")
            assert proxy.faults, name
            proxy.faults.clear()
            assert sum("uploads" in asked.query for asked in proxy.asked) == 1, name
            assert await read(store, "notes/large") == content, name
        assert uploads_left(ceph_server, store.settings.bucket) == []


@pytest.mark.parametrize("stage", [is_part, is_completion], ids=["part", "completion"])
async def test_F6_an_upload_that_fails_is_given_up(s3_server: S3Server, tmp_path: Path, stage: object) -> None:
    """Its parts are gone from the store, the file is where it was, and the key is as it was."""
    async with faulty_s3(s3_server) as proxy:
        store = small_parts(proxy.as_server)
        content = write_file(tmp_path / "file", LARGE_BYTES)
        proxy.rules = [always(stage, Fault(refuse=403))]  # type: ignore[arg-type]
        with pytest.raises(StoreUnavailable):
            await store.put_file("notes/large", tmp_path / "file")
        assert uploads_left(s3_server, store.settings.bucket) == []
        assert (tmp_path / "file").read_bytes() == content
        with pytest.raises(ObjectMissing):
            await store.size("notes/large")


async def test_F25_an_upload_that_is_cancelled_is_given_up(s3_server: S3Server, tmp_path: Path) -> None:
    """While its parts hang at the store; the worker threads do not go on with what nobody waits for."""
    async with faulty_s3(s3_server) as proxy:
        store = small_parts(proxy.as_server, call_timeout_s=0.5)
        write_file(tmp_path / "file", LARGE_BYTES)
        begun = trio.Event()

        def hang(asked: Asked) -> Fault | None:
            if not is_part(asked):
                return None
            begun.set()
            return Fault(hang=True)

        proxy.rules = [hang]
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.put_file, "notes/large", tmp_path / "file")
                await begun.wait()
                nursery.cancel_scope.cancel()
        assert uploads_left(s3_server, store.settings.bucket) == []
        assert sum(map(is_part, proxy.asked)) <= PARALLEL_PARTS
        assert (tmp_path / "file").exists()


async def test_F20_uploads_of_dead_daemons_are_given_up_by_their_age(ceph_server: S3Server) -> None:
    """Only those of this store: neither those of others in the bucket, nor those that may still go on."""
    store = make_store(ceph_server, prefix="ours")
    client, bucket = ceph_server.client(), store.settings.bucket
    for key in ("ours/packs/one", "ours/packs/two", "theirs/one"):
        client.create_multipart_upload(Bucket=bucket, Key=key)  # type: ignore[attr-defined]
    assert await store.sweep_temporary(3600.0) == 0
    assert len(uploads_left(ceph_server, bucket)) == 3
    assert await store.sweep_temporary(-3600.0) == 2
    assert uploads_left(ceph_server, bucket) == ["theirs/one"]


async def test_more_left_overs_than_a_page_are_all_given_up(ceph_server: S3Server) -> None:
    store = make_store(ceph_server)
    client, bucket = ceph_server.client(), store.settings.bucket
    for n in range(7):
        client.create_multipart_upload(Bucket=bucket, Key=f"packs/{n % 3}")  # type: ignore[attr-defined]
    store.uploads.page_uploads = 2
    assert await store.sweep_temporary(-3600.0) == 7
    assert uploads_left(ceph_server, bucket) == []


async def test_a_file_that_is_gone_is_accepted_only_when_its_key_is_there(s3_server: S3Server, tmp_path: Path) -> None:
    """For an empty content too, of which no part can be asked for."""
    store = make_store(s3_server)
    with pytest.raises(StoreUnavailable) as caught:
        await store.put_file("notes/one", tmp_path / "gone")
    assert not caught.value.temporary
    for content in (b"", b"x"):
        await store.put_batch([("notes/one", content)])
        await store.put_file("notes/one", tmp_path / "gone")
        assert await store.get("notes/one", 1) == content


async def test_the_keeper_of_what_expires_gives_up_left_overs(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keepers, "UNFINISHED_S", -3600.0)
    store = make_store(s3_server)
    bucket = store.settings.bucket
    s3_server.client().create_multipart_upload(Bucket=bucket, Key="packs/one")  # type: ignore[attr-defined]
    wrapped = VerifyingStore(LimitedStore(store))
    keeper = keepers.ExpiryKeeper(wrapped, MemoryIndex(), Uploads(tmp_path), SystemEnvironment(), keep_s=100.0)
    assert await keeper.sweep() == 1
    assert uploads_left(s3_server, bucket) == []
