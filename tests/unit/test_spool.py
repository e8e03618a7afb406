"""Spools and record packs: small ones never touch the disk, large ones read back the same."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from actors.push.record_pack import RecordPack
from actors.spool import MEMORY_BYTES, SpoolDirectory, sweep
from storage.layout import record_pack_key
from storage.objects.memory import MemoryStore
from storage.objects.verifying import VerifyingStore
from tests.muse import typed
from wire.pack import PackEnd, PackObjectBegin, PackPiece, PackReader

SIZES = [0, 1, 1000, MEMORY_BYTES - 1, MEMORY_BYTES, MEMORY_BYTES + 1, 3 * MEMORY_BYTES + 17]


@pytest.mark.parametrize("size", SIZES)
async def test_what_goes_in_comes_out(tmp_path: Path, size: int) -> None:
    content = random.Random(size).randbytes(size)
    async with SpoolDirectory(tmp_path, "s") as directory:
        spool = directory.new()
        for at in range(0, size, 70_001):
            await spool.append(content[at : at + 70_001])
        assert spool.size == size
        assert spool.in_memory == (size < MEMORY_BYTES)
        assert b"".join(spool.pieces()) == content
        for offset, count in [(0, 10), (size // 2, 1000), (max(size - 5, 0), 5), (MEMORY_BYTES - 3, 6)]:
            assert spool.read(offset, count) == content[offset : offset + count]
        assert spool.flush().read_bytes() == content
    assert list(tmp_path.iterdir()) == []


async def test_a_small_spool_leaves_the_disk_alone(tmp_path: Path) -> None:
    async with SpoolDirectory(tmp_path, "s") as directory:
        await directory.new().append(b"x" * 1000)
        assert list(tmp_path.iterdir()) == []


async def test_a_directory_is_removed_although_its_user_fails(tmp_path: Path) -> None:
    async def fail() -> None:
        async with SpoolDirectory(tmp_path, "s") as directory:
            await directory.new().append(b"x" * (2 * MEMORY_BYTES))
            assert len(list(tmp_path.iterdir())) == 1
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert list(tmp_path.iterdir()) == []


def test_only_old_leftovers_are_swept(tmp_path: Path) -> None:
    old, young = tmp_path / "old", tmp_path / "young"
    for path in (old, young):
        path.mkdir()
        (path / "0").write_bytes(b"x")
    import os

    os.utime(old, (1000, 1000))
    assert sweep(tmp_path, 2000) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["young"]
    assert sweep(tmp_path / "nowhere", 2000) == 0


@pytest.mark.parametrize("count", [1, 5, 3000])
async def test_a_record_pack_is_a_pack_with_every_record(tmp_path: Path, count: int) -> None:
    store = VerifyingStore(MemoryStore())
    bodies = [b"x%d" % i * 100 for i in range(count)]
    ids = [bytes.fromhex(typed("commit", b"%d" % i)[7:]) for i in range(count)]
    records = {i: b"commit %d\0" % len(body) + body for i, body in zip(ids, bodies, strict=True)}
    async with SpoolDirectory(tmp_path, "s") as directory:
        pack = RecordPack(directory)
        positions = [pack.add(record_id, [body[:50], body[50:]]) for record_id, body in records.items()]
        assert await pack.read(positions) == list(records.values())
        pack_id = await pack.store(store)
    content = await store.get(record_pack_key(pack_id), 1 << 30)
    found: dict[bytes, bytes] = {}
    reader = PackReader()
    for at in range(0, len(content), 10_000):
        for event in reader.receive_data(content[at : at + 10_000]):
            match event:
                case PackObjectBegin(record_id):
                    found[record_id] = current = b""
                case PackPiece(piece):
                    current += piece
                    found[record_id] = current
                case PackEnd(total):
                    assert total == count
    assert found == records


async def test_an_empty_record_pack_is_not_stored(tmp_path: Path) -> None:
    store = MemoryStore()
    async with SpoolDirectory(tmp_path, "s") as directory:
        assert await RecordPack(directory).store(store) is None
    assert store.statistics().puts == 0
