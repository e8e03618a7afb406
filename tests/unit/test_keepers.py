"""Actors that keep house outlive what they look after, and what keeps them from looking."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pytest
import trio

from museworkd import keepers
from museworkd.http.uploads import Uploads
from museworkd.keepers import EmbeddedKeeper, ExpiryKeeper
from storage.environment import SeededEnvironment
from storage.errors import IndexUnavailable
from storage.layout import fetch_pack_key, loose_key, pack_key, staged_mpack_key
from storage.memory.index import MemoryIndex
from storage.objects.memory import MemoryStore
from storage.rows import StoredBlob
from wire.ids import Scheme


class Flaky:
    """A cluster that cannot be looked at for a while, and then is dead."""

    def __init__(self, *troubles: Exception) -> None:
        self.troubles = list(troubles)
        self.started = trio.Event()
        self.dead = True

    def alive(self) -> bool:
        if self.troubles:
            raise self.troubles.pop(0)
        return not self.dead

    def start(self) -> None:
        self.dead = False
        trio.from_thread.run_sync(self.started.set)


@pytest.mark.parametrize("trouble", [OSError(24, "Too many open files"), IndexUnavailable("no")])
async def test_F26_a_keeper_that_cannot_look_looks_again(monkeypatch, trouble):
    monkeypatch.setattr(keepers, "LOOK_EVERY_S", 0)
    cluster = Flaky(trouble, trouble)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(EmbeddedKeeper(cluster).live)
        with trio.fail_after(60):
            await cluster.started.wait()
        nursery.cancel_scope.cancel()
    assert cluster.troubles == []


async def test_only_what_expires_is_swept(tmp_path: Path):
    environment = SeededEnvironment(1)
    store, uploads = MemoryStore(environment), Uploads(tmp_path)
    waiting = [fetch_pack_key(b"f" * 32), staged_mpack_key(1, b"m" * 32)]
    kept = [loose_key(b"o" * 32, Scheme.TYPED), pack_key(b"p" * 32)]
    await store.put_batch([(key, b"x") for key in waiting + kept])
    async with uploads.hold("1-mpack-x-9") as partial:
        await partial.append(b"abc")
    keeper = ExpiryKeeper(store, MemoryIndex(), uploads, environment, keep_s=100.0)
    assert await keeper.sweep() == 0
    later = ExpiryKeeper(store, MemoryIndex(), uploads, environment, keep_s=-(10.0**9))
    assert await later.sweep() == len(waiting) + 1
    assert sorted([stored.key async for stored in store.scan("")]) == sorted(kept)
    assert uploads.length("1-mpack-x-9") == 0


async def test_T28_what_no_push_has_claimed_is_forgotten(tmp_path: Path):
    """However many there are; what has not expired stays."""
    environment = SeededEnvironment(1)
    index = MemoryIndex()
    now = environment.now()
    ids = [number.to_bytes(32, "big") for number in range(2_500)]
    await index.hold_blobs(1, Scheme.TYPED, [StoredBlob(i, 1) for i in ids[1:]], now + dt.timedelta(hours=1))
    await index.hold_blobs(1, Scheme.TYPED, [StoredBlob(ids[0], 1)], now + dt.timedelta(hours=3))
    keeper = ExpiryKeeper(MemoryStore(environment), index, Uploads(tmp_path), environment, keep_s=100.0)
    assert await keeper.sweep() == 0
    environment.move(2 * 3600)
    assert await keeper.sweep() == len(ids) - 1
    assert await index.stored_blobs(1, Scheme.TYPED, ids, now) == {ids[0]}
