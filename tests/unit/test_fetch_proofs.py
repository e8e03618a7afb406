"""Parts of large contents leave only after the whole was held against its id, and each as it was then."""

from __future__ import annotations

import hashlib
import random

import pytest

from actors.fetch.proofs import CHUNK_BYTES, ChunkDigests, Proofs
from storage.errors import ObjectDamaged
from storage.layout import fetch_pack_key, verifier
from storage.object_store import ReadRange
from storage.objects.memory import MemoryStore
from tests.damage import flipped

CONTENT = random.Random(1).randbytes(3 * CHUNK_BYTES + 77)
KEY = fetch_pack_key(hashlib.sha256(CONTENT).digest())
WHOLE = ReadRange(KEY, 0, len(CONTENT))


class Counting(MemoryStore):
    """Counts the bytes that were asked for."""

    asked = 0

    def stream(self, key: str, offset: int = 0, size: int | None = None):
        self.asked += len(CONTENT) - offset if size is None else size
        return super().stream(key, offset, size)


@pytest.fixture
async def store() -> Counting:
    made = Counting()
    await made.put_batch([(KEY, CONTENT)])
    return made


async def part(proofs: Proofs, store: MemoryStore, start: int, length: int) -> bytes:
    digests = await proofs.prove(store, WHOLE, verifier(KEY, len(CONTENT)))
    return b"".join([piece async for piece in proofs.pieces(store, WHOLE, digests, start, length)])


@pytest.mark.parametrize("start", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5, len(CONTENT) - 1])
@pytest.mark.parametrize("length", [1, 77, CHUNK_BYTES, CHUNK_BYTES + 1, len(CONTENT)])
async def test_any_part_is_given_as_it_is(store: Counting, start: int, length: int) -> None:
    proofs = Proofs()
    await proofs.prove(store, WHOLE, verifier(KEY, len(CONTENT)))
    length = min(length, len(CONTENT) - start)
    assert await part(proofs, store, start, length) == CONTENT[start : start + length]


async def test_the_whole_is_read_once_and_then_only_what_is_asked_for(store: Counting) -> None:
    proofs = Proofs()
    for _ in range(3):
        await proofs.prove(store, WHOLE, verifier(KEY, len(CONTENT)))
    assert store.asked == len(CONTENT)
    await part(proofs, store, 5, 10)
    assert store.asked == len(CONTENT) + CHUNK_BYTES


@pytest.mark.parametrize("at", [0, CHUNK_BYTES, len(CONTENT) - 1])
async def test_a_bit_that_flips_before_or_after_the_proof_is_found(store: Counting, at: int) -> None:
    await store.put_batch([(KEY, flipped(CONTENT, at))])
    proofs = Proofs()
    with pytest.raises(ObjectDamaged):
        await proofs.prove(store, WHOLE, verifier(KEY, len(CONTENT)))
    assert not proofs.known(WHOLE)
    await store.put_batch([(KEY, CONTENT)])
    await proofs.prove(store, WHOLE, verifier(KEY, len(CONTENT)))
    await store.put_batch([(KEY, flipped(CONTENT, at))])
    with pytest.raises(ObjectDamaged):
        await part(proofs, store, at, 1)
    assert not proofs.known(WHOLE)


async def test_digests_are_kept_for_so_many_contents_only(store: Counting) -> None:
    digests = ChunkDigests()
    for at in range(0, len(CONTENT), 1_000):
        digests.update(CONTENT[at : at + 1_000])
    made = digests.finish()
    assert len(made) == 4 * 32
    proofs = Proofs(kept_bytes=3 * len(made))
    places = [ReadRange(KEY, at, 1) for at in range(5)]
    for where in (WHOLE, *places):
        proofs.note(where, made)
    assert [proofs.known(where) for where in (WHOLE, *places)] == [False, False, False, True, True, True]
    assert not proofs.known(None)
