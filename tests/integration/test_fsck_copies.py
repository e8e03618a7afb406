"""A blob whose bytes are lost or damaged is mended from whatever sound copy there is, and from nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from actors.jobs.handler import JobServices
from actors.repair.copies import another_copy, other_copies
from storage.contents import read_contents
from storage.errors import StoreUnavailable
from storage.job_rows import DEPLOYMENT
from storage.layout import Place, loose_key, pack_key
from storage.objects.faulty import Call, Fault, FaultyStore
from tests.clones import clone, fetch
from tests.handler_runs import promoted, services_of
from tests.http_client import push
from tests.mpack_pushes import mpack_of, push_mpack
from tests.muse import Push, bare
from tests.servers import Server
from wire.ids import Kind, Scheme, hash_bytes

TYPED = Scheme.TYPED
LARGE = bytes(range(256)) * 20_000
"""More than is kept in memory."""


def history() -> Push:
    made = Push()
    made.commit({"a": b"hello\n", "empty": b"", "large": LARGE})
    made.commit({"a": b"hello again\n", "empty": b"", "large": LARGE, "dir/b": bytes(range(256))})
    return made


async def by_stream(server: Server, made: Push, slug: str) -> None:
    await server.make_repository(slug=slug)
    assert (await push(server, made.frames(), repository=f"alice/{slug}"))["type"] == "R"
    await promoted(server)


async def by_mpack(server: Server, made: Push, slug: str) -> None:
    await server.make_repository(slug=slug)
    assert (await push_mpack(server, mpack_of(made), made, slug)).status == 200


def ids_of(made: Push) -> list[bytes]:
    return [bytes.fromhex(bare(oid)) for oid in made.blobs]


async def places(server: Server, made: Push) -> dict[bytes, Place]:
    found = await server.services.index.places(TYPED, ids_of(made))
    assert len(found) == len(made.blobs)
    return found


async def read(server: Server, key: str) -> bytes:
    return await server.services.store.get(key, 10**8)


async def put(server: Server, key: str, content: bytes) -> None:
    await server.services.store.put_batch([(key, content)])


async def lose(server: Server, key: str) -> None:
    await server.services.store.delete([key])


async def flip(server: Server, key: str) -> None:
    content = bytearray(await read(server, key))
    for at in range(100, len(content), 7) if len(content) > 100 else range(len(content)):
        content[at] ^= 1
    await put(server, key, bytes(content))


async def cut(server: Server, key: str) -> None:
    await put(server, key, (await read(server, key))[:-50])


async def mended(server: Server, made: Push) -> dict[bytes, Place]:
    """Ask for another copy of everything; what is given must read right."""
    before = await places(server, made)
    services = services_of(server)
    found = {}
    for object_id, place in before.items():
        other = await another_copy(services, TYPED, object_id, place)
        if other is not None:
            (content,) = await read_contents(services.index, services.store, TYPED, [other])
            assert hash_bytes(Kind.BLOB, content, TYPED) == object_id
            found[object_id] = other
    assert {i: place for i, place in (await places(server, made)).items() if i in found} == found
    return found


async def equal(server: Server, made: Push, slug: str = "x") -> None:
    assert (await clone(server, made.head, repository=f"alice/{slug}")).blobs == made.blobs


DAMAGES = [lose, flip, cut]


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_loose_object_is_mended_from_a_pack(server: Server, damage: Callable) -> None:
    made = history()
    await by_stream(server, made, "x")
    await by_mpack(server, made, "y")
    for object_id, place in (await places(server, made)).items():
        assert place.pack_id is None
        await damage(server, loose_key(object_id, TYPED))
    assert len(await mended(server, made)) == len(made.blobs)
    await equal(server, made)


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_packed_object_is_mended_from_its_loose_copy(server: Server, damage: Callable) -> None:
    made = history()
    await by_mpack(server, made, "x")
    await by_stream(server, made, "y")
    packs = {place.pack_id for place in (await places(server, made)).values()}
    assert len(packs) == 1
    await damage(server, pack_key(*packs))
    found = await mended(server, made)
    assert len(found) == len(made.blobs)
    await equal(server, made)


async def test_a_packed_object_is_mended_from_another_pack(server: Server) -> None:
    made = history()
    await by_mpack(server, made, "x")
    longer = history()
    longer.commit({"a": b"hello\n", "more": b"another pack"})
    await by_mpack(server, longer, "y")
    packs = {place.pack_id for place in (await places(server, made)).values()}
    await lose(server, pack_key(*packs))
    found = await mended(server, made)
    assert {place.pack_id for place in found.values()} == {None}
    assert len(found) == len(made.blobs)
    await equal(server, made)


async def test_a_range_that_is_wrong_is_corrected_in_its_pack(server: Server) -> None:
    made = history()
    await by_mpack(server, made, "x")
    right = {i: place for i, place in (await places(server, made)).items() if place.size}  # nothing lies anywhere
    services = services_of(server)
    async with lease(services) as number:
        wrong = [(place, replace(place, offset=place.offset + 1)) for place in right.values()]
        await services.index.correct_places(number, TYPED, wrong)
    found = await mended(server, made)
    assert {object_id: found[object_id] for object_id in right} == right
    await equal(server, made)


async def test_the_last_copy_may_be_in_a_pack_made_for_a_fetch(server: Server) -> None:
    made = history()
    await by_stream(server, made, "x")
    assert (await fetch(server, [made.head])).status == 200
    for object_id in await places(server, made):
        await lose(server, loose_key(object_id, TYPED))
    assert len(await mended(server, made)) == len(made.blobs)
    await equal(server, made)


async def test_what_waits_in_the_index_is_sound_where_it_is(server: Server) -> None:
    made = Push()
    made.commit({"a": b"hello\n", "empty": b""})
    await server.make_repository(slug="x")
    assert (await push(server, made.frames(), repository="alice/x"))["type"] == "R"
    before = await places(server, made)
    assert all(place.pending for place in before.values())
    assert await mended(server, made) == before


async def test_what_can_be_read_again_is_left_alone(server: Server) -> None:
    """A reading that failed once, or a blob that was moved meanwhile: the caller's place is not the row's."""
    made = history()
    await by_stream(server, made, "x")
    before = await places(server, made)
    puts = server.services.store.statistics().puts
    assert await mended(server, made) == before
    services = services_of(server)
    stale = {object_id: Place(object_id, 1, bytes(32), 5) for object_id in before}
    assert await other_copies(services, TYPED, stale) == before
    assert server.services.store.statistics().puts == puts


async def test_without_a_copy_nothing_is_given_and_nothing_changed(server: Server) -> None:
    made = history()
    await by_stream(server, made, "x")
    before = await places(server, made)
    lost = next(iter(before))
    await lose(server, loose_key(lost, TYPED))
    services = services_of(server)
    assert await another_copy(services, TYPED, lost, before[lost]) is None
    assert await places(server, made) == before
    assert await another_copy(services, TYPED, bytes(32), None) is None


async def test_a_blob_without_a_row_gets_one(server: Server) -> None:
    made, services = history(), services_of(server)
    await by_mpack(server, made, "x")
    content = b"nobody has recorded it"
    object_id = hash_bytes(Kind.BLOB, content, TYPED)
    await put(server, loose_key(object_id, TYPED), content)
    expected = Place(object_id, len(content), None, 0)
    assert await another_copy(services, TYPED, object_id, None) == expected
    assert await services.index.places(TYPED, [object_id]) == {object_id: expected}


async def test_several_are_mended_by_one_search(twin: Server) -> None:
    made = history()
    await by_stream(twin, made, "x")
    await by_mpack(twin, made, "y")
    before = await places(twin, made)
    for object_id in before:
        await lose(twin, loose_key(object_id, TYPED))
    assert await other_copies(services_of(twin), TYPED, before) == before
    await equal(twin, made)


async def test_a_store_that_cannot_answer_is_not_a_lost_object(twin: Server) -> None:
    """R15: unavailable is never taken for missing."""
    made = history()
    await by_stream(twin, made, "x")
    object_id, place = next(iter((await places(twin, made)).items()))

    def fail(call: Call) -> Fault | None:
        return Fault(fail_before=True) if call.operation in {"get_ranges", "stream"} else None

    services = replace(services_of(twin), store=FaultyStore(twin.services.store, fail))
    with pytest.raises(StoreUnavailable):
        await another_copy(services, TYPED, object_id, place)
    assert (await places(twin, made))[object_id] == place


async def test_what_was_sought_in_vain_is_not_sought_at_once_again(twin: Server) -> None:
    made = history()
    await by_mpack(twin, made, "x")
    services = services_of(twin)
    assert await another_copy(services, TYPED, bytes(32), None) is None
    reads = twin.services.store.statistics().gets
    assert await another_copy(services, TYPED, bytes(32), None) is None
    assert twin.services.store.statistics().gets == reads


@asynccontextmanager
async def lease(services: JobServices) -> AsyncIterator[object]:
    number = services.environment.uuid()
    await services.index.take_lease(number, DEPLOYMENT, services.environment.now(), 300)
    yield number
    await services.index.end_lease(number)
