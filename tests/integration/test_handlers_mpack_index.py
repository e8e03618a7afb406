"""``mpack.index``: what the index says of a pack's objects is mended; nothing is hashed, no right is given."""

from __future__ import annotations

import hashlib
import random

import psycopg
import pytest

import wire.ids
from actors.jobs.handler import JobObsolete
from actors.jobs.pack_heads import pack_heads
from storage.contents import read_contents
from storage.errors import ObjectDamaged
from storage.job_rows import WHOLE
from storage.layout import pack_key
from storage.objects.memory import MemoryStore
from storage.rows import Repository
from tests import containers
from tests.clones import clone
from tests.containers import COMMITS
from tests.deployments import deployed, two_commits
from tests.handler_runs import run, services_of, waiting
from tests.http_client import push
from tests.integration.test_push_stream import get_blob
from tests.mpack_pushes import bundle_of, key_of, mpack_of, push_mpack
from tests.muse import Push, blob_id, random_history
from tests.servers import Server
from wire.ids import Scheme
from wire.limits import DEFAULT_LIMITS

pytestmark = pytest.mark.usefixtures("expected_errors")
TYPE = "mpack.index"
NOTHING = {"rows_completed": 0, "ranges_repaired": 0, "promoted": 0, "refs_completed": 0}


def digest(oid: str) -> bytes:
    return bytes.fromhex(oid.removeprefix("sha256:"))


async def pushed(server: Server, history: Push, data: bytes | None = None, slug: str = "x") -> tuple[Repository, dict]:
    """Push by one file; gives the repository and the payload its push has left."""
    repository = await server.make_repository(slug=slug)
    data = mpack_of(history) if data is None else data
    assert (await push_mpack(server, data, history, slug)).status == 200
    return repository, dict((await waiting(server, repository.number))[TYPE])


async def index(server: Server, repository: Repository, payload: dict) -> dict[str, object]:
    result = await run(services_of(server), TYPE, repository.number, payload)
    assert {"elapsed_ms", "heads_ms", "object_refs_ms"} <= result.keys() or not result["packs"]
    return {key: value for key, value in result.items() if not key.endswith("_ms")}


FORMS = {
    "mpack": mpack_of,
    "records first": lambda history: mpack_of(history, records_first=True),
    "zstd": lambda history: mpack_of(history, zstd=True),
    "bundle": bundle_of,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())
async def test_after_a_push_there_is_nothing_to_mend(server, form):
    """R15: what a push has answered 200 for is all there, without a worker."""
    history = random_history(5)
    repository, payload = await pushed(server, history, form(history))
    assert (await clone(server, history.head)).blobs == history.blobs
    done = await index(server, repository, payload)
    assert done == {"packs": 1, "packs_missing": 0, "objects": len(history.blobs), **NOTHING}


async def test_nothing_is_hashed(server, monkeypatch):
    """It was proved at the door (protocol §7)."""
    history = random_history(6)
    repository, payload = await pushed(server, history)

    def hashed(*_: object, **__: object) -> None:
        raise AssertionError("sha256 was asked for")

    with monkeypatch.context() as patched:
        patched.setattr(hashlib, "sha256", hashed)
        for name in ("hash_bytes", "hasher_for", "sha256"):
            patched.setattr(wire.ids, name, hashed, raising=False)
        done = await index(server, repository, payload)
    assert done["objects"] == len(history.blobs)


async def test_rows_ranges_and_references_that_were_lost_are_there_again(database_url, tmp_path):
    history = random_history(7)
    ids = sorted(map(digest, history.blobs))
    async with deployed(database_url, tmp_path) as server:
        repository, payload = await pushed(server, history)
        with psycopg.connect(database_url) as connection:
            connection.execute("DELETE FROM blobs WHERE blob_id = ANY (%s)", (ids[:2],))
            connection.execute('UPDATE blobs SET "offset" = "offset" + 1 WHERE blob_id = ANY (%s)', (ids[2:5],))
            connection.execute("DELETE FROM blob_refs WHERE blob_id = ANY (%s)", (ids[4:],))
        assert (await get_blob(server, f"sha256:{ids[0].hex()}")).status == 404
        done = await index(server, repository, payload)
        assert done == {
            "packs": 1, "packs_missing": 0, "objects": len(ids), "rows_completed": 2, "ranges_repaired": 3,
            "promoted": 0, "refs_completed": len(ids) - 4,
        }  # fmt: skip
        assert (await clone(server, history.head)).blobs == history.blobs
        again = await index(server, repository, payload)
        assert again == {"packs": 1, "packs_missing": 0, "objects": len(ids), **NOTHING}


async def test_contents_that_wait_in_the_index_are_read_from_the_pack_from_now_on(server):
    history = random_history(8)
    await server.make_repository(slug="small")
    assert (await push(server, history.frames(), repository="alice/small"))["type"] == "R"
    assert (await server.services.index.count_cached())[0] == len(history.blobs)
    repository, payload = await pushed(server, history)
    assert (await clone(server, history.head)).blobs == history.blobs
    done = await index(server, repository, payload)
    assert done["promoted"] == len(history.blobs)
    assert await server.services.index.count_cached() == (0, 0)
    for slug in ("x", "small"):
        assert (await clone(server, history.head, repository=f"alice/{slug}")).blobs == history.blobs
    assert [stored async for stored in server.services.store.scan("objects")] == []


async def test_T1_only_the_packs_a_repositorys_pushes_brought_give_it_references(server):
    """A pack in which some of its objects lie holds others' as well; all it learns is where they are."""
    history = two_commits()
    repository, _ = await pushed(server, history)
    both = Push()
    both.commit({"a.txt": b"hello\n", "secret": b"of another one"})
    other, payload = await pushed(server, both, slug="y")
    assert (await index(server, repository, dict(WHOLE)))["refs_completed"] == 0
    assert (await index(server, other, dict(WHOLE)))["refs_completed"] == 0
    assert (await get_blob(server, blob_id(b"of another one"))).status == 404
    assert (await index(server, other, payload))["refs_completed"] == 0
    assert (await get_blob(server, blob_id(b"of another one"), "y")).status == 200


async def test_a_payload_that_names_no_pack_stands_for_all_of_the_repository(database_url, tmp_path):
    async with deployed(database_url, tmp_path) as server:
        history = random_history(9)
        repository, _ = await pushed(server, history)
        some = min(map(digest, history.blobs))
        with psycopg.connect(database_url) as connection:
            connection.execute("DELETE FROM blobs WHERE blob_id = %s", (some,))
        done = await index(server, repository, dict(WHOLE))
        assert (done["packs"], done["rows_completed"], done["refs_completed"]) == (1, 1, 0)
        assert (await clone(server, history.head)).blobs == history.blobs


async def test_a_pack_that_is_gone_is_counted_and_no_error(server):
    history = two_commits()
    repository, payload = await pushed(server, history)
    assert await index(server, repository, {**payload, bytes(32).hex(): True, "not a pack": True}) == {
        "packs": 1, "packs_missing": 1, "objects": len(history.blobs), **NOTHING,
    }  # fmt: skip


async def test_an_empty_repository_has_nothing_to_mend(server):
    repository = await server.make_repository()
    with pytest.raises(JobObsolete):
        await index(server, repository, dict(WHOLE))


async def test_a_pack_that_is_not_what_it_should_be_is_an_error(server):
    history = two_commits()
    repository, payload = await pushed(server, history)
    key = pack_key(digest(key_of(mpack_of(history))))
    store = server.services.store
    await store.delete([key])
    for content in (b"MUSE\x01", b"nonsense " * 20, mpack_of(history)[:200], mpack_of(history)[:20]):
        await _put_anyhow(server, key, content)
        with pytest.raises(ObjectDamaged):
            await index(server, repository, payload)


async def _put_anyhow(server: Server, key: str, content: bytes) -> None:
    """Put what the verifying wrapper would not."""
    store = server.services.store
    await getattr(store, "inner", store).put_batch([(key, content)])


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "sizes", [[], [0], [0, 0, 0], [5, 70_000, 1], [3_000_000, 4, 3_000_000, 9_000_000, 5], [10_000] * 2_000]
)
async def test_heads_are_found_whatever_lies_between_them(sizes, wrapped):
    """In few requests: one for 8 MiB of small objects, one for each large one."""
    store, rng = MemoryStore(), random.Random(3)
    objects = [(blob_id(content), content) for content in (rng.randbytes(size) for size in sizes)]
    whole = containers.pack(objects)
    if wrapped:
        whole = containers.mpack([(COMMITS, containers.record_section([])), (containers.OBJECTS, whole)])
    await store.put_batch([("packs/x.mpack", whole)])
    found = [entry async for part in pack_heads(store, "packs/x.mpack", DEFAULT_LIMITS) for entry in part]
    assert [f"sha256:{entry.object_id.hex()}" for entry in found] == [oid for oid, _ in objects]
    for entry, (_, content) in zip(found, objects, strict=True):
        assert whole[entry.offset : entry.offset + entry.size] == content
    large = sum(size > 1024 * 1024 for size in sizes)
    assert store.statistics().gets <= 3 + len(whole) // (8 * 1024 * 1024) + 2 * large


async def test_an_object_that_is_in_a_pack_twice_is_one(server):
    history = two_commits()
    objects = [*history.blobs.items(), *history.blobs.items()]
    data = containers.mpack([
        (containers.OBJECTS, containers.pack(objects)),
        (containers.SNAPSHOTS, containers.record_section(history.snapshots)),
        (COMMITS, containers.record_section(history.commits)),
    ])  # fmt: skip
    repository, payload = await pushed(server, history, data)
    first = await index(server, repository, payload)
    assert (first["objects"], first["rows_completed"]) == (len(history.blobs), 0)
    assert (await index(server, repository, payload))["ranges_repaired"] == 0
    assert (await clone(server, history.head)).blobs == history.blobs


async def test_a_content_promoted_to_a_pack_is_found_by_who_was_about_to_read_it(server):
    """The loose key it would have had was never written."""
    history = two_commits()
    await server.make_repository(slug="small")
    assert (await push(server, history.frames(), repository="alice/small"))["type"] == "R"
    repository, payload = await pushed(server, history)
    index_port = server.services.index
    ids = [digest(oid) for oid in history.blobs]
    places = await index_port.held_places(repository.number, Scheme.TYPED, ids)
    assert all(place.pending for place in places.values())
    await index(server, repository, payload)
    read = await read_contents(index_port, server.services.store, Scheme.TYPED, [places[oid] for oid in ids])
    assert read == list(history.blobs.values())
