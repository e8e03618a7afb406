"""``scrub``: whatever byte of what is stored goes wrong is reported, by key and by id; nothing is deleted."""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from actors.jobs import reading, record_check
from actors.jobs.handlers import scrub
from storage.environment import SeededEnvironment
from storage.errors import StoreUnavailable
from storage.insights import KeptFinding
from storage.job_rows import DEPLOYMENT
from storage.layout import loose_key, pack_key
from storage.memory.index import MemoryIndex
from storage.objects.faulty import Call, Fault, FaultyStore
from storage.objects.memory import MemoryStore
from storage.rows import StoredBlob
from tests.handler_runs import job_services, run, services_of
from tests.http_client import push
from tests.insight_histories import Library, attempt
from tests.mpack_pushes import mpack_of, push_mpack
from tests.muse import Push, bare
from tests.servers import Server
from wire.ids import Kind, Scheme, hash_bytes

LISTED = 1_000


def history(name: str) -> Push:
    made = Push()
    made.commit({f"{name}/{n}": f"{name} {n}".encode() * 20 for n in range(4)} | {"empty": b""})
    made.commit(
        {f"{name}/0": b"changed " + name.encode(), f"{name}/9": b"ninth " + name.encode()}, message="the second one"
    )
    return made


async def fill(server: Server) -> tuple[Push, Push]:
    """One repository by stream, whose objects are loose, and one by mpack, whose objects are in a pack.

    But for the empty one, which both have.
    """
    first, second = history("loose"), history("packed")
    repository = await server.make_repository(slug="x")
    await server.make_repository(slug="y")
    assert (await push(server, first.frames(), repository="alice/x"))["type"] == "R"
    kept = await stored_keys(server, "packs")  # no row names them: what was pushed is in its own place now
    await run(services_of(server), "content.promote", repository.number)
    await server.services.store.delete(kept)
    assert (await push_mpack(server, mpack_of(second), second, "y")).status == 200
    return first, second


@pytest.fixture
async def filled(server: Server) -> Server:
    await fill(server)
    return server


async def scrubbed(server: Server, state: dict | None = None, **settings: object) -> dict:
    settings = {"scrub_bytes_per_s": 0, **settings}
    return dict(await scrub.run(attempt(services_of(server, **settings), "scrub", DEPLOYMENT, state)))


async def findings(server: Server) -> dict[str, dict[str | None, str]]:
    """Key → id → problem."""
    found: dict[str, dict[str | None, str]] = {}
    for kept in await server.services.index.list_findings(LISTED):
        object_id = kept.finding.object_id
        found.setdefault(kept.finding.key, {})[object_id.hex() if object_id else None] = kept.finding.problem
    return found


async def stored_keys(server: Server, prefix: str) -> list[str]:
    return sorted([stored.key async for stored in server.services.store.scan(prefix)])


async def read(server: Server, key: str) -> bytes:
    return await server.services.store.get(key, 10**8)


@asynccontextmanager
async def replaced(server: Server, key: str, content: bytes) -> AsyncIterator[None]:
    """Let a key have other bytes for a while."""
    before = await read(server, key)
    await server.services.store.put_batch([(key, content)])
    yield
    await server.services.store.put_batch([(key, before)])


def flipped(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 1 << at % 8
    return bytes(changed)


async def test_what_is_sound_is_read_once_and_found_sound(filled: Server) -> None:
    result = await scrubbed(filled)
    sizes = [stored.size for prefix in ("objects", "packs", "records")
             async for stored in filled.services.store.scan(prefix)]  # fmt: skip
    assert result["loose"] == len(await stored_keys(filled, "objects")) > 0
    assert result["packs"] == len(await stored_keys(filled, "packs")) == 1
    assert result["records"] == len(await stored_keys(filled, "records")) == 2
    assert result["bytes"] == sum(sizes)
    assert (result["damaged"], result["missing"], result["unreadable"], result["findings"]) == (0, 0, 0, [])
    assert await findings(filled) == {}


async def test_a_flipped_bit_anywhere_is_reported_by_key(twin: Server, logs: list[dict]) -> None:
    """Loose objects, packs and record packs; any byte: heads, contents, footers."""
    await fill(twin)
    rng = random.Random(5)
    keys = [key for prefix in ("objects", "packs", "records") for key in await stored_keys(twin, prefix)]
    tried = 0
    for key in keys:
        content = await read(twin, key)
        if not content:
            continue
        for at in {0, len(content) // 2, len(content) - 1, *(rng.randrange(len(content)) for _ in range(12))}:
            async with replaced(twin, key, flipped(content, at)):
                result = await scrubbed(twin)
                assert result["damaged"] >= 1, (key, at)
                assert set(await findings(twin)) == {key}, (key, at)
                tried += 1
    assert tried > 100
    assert {entry["key"] for entry in logs if entry["event"] == "damage in the object store"} <= set(keys)
    assert (await scrubbed(twin))["mended"] >= 1
    assert await findings(twin) == {}


async def test_a_damaged_object_is_reported_by_its_id(filled: Server) -> None:
    """In a file of its own and in a pack; a damaged record likewise."""
    first, second = history("loose"), history("packed")
    (pack,) = await stored_keys(filled, "packs")
    for records in await stored_keys(filled, "records"):
        content = await read(filled, records)
        message = content.find(b"the second one")
        owner = first if bare(first.head).encode() in content else second
        async with replaced(filled, records, flipped(content, message)):
            await scrubbed(filled)
            assert await findings(filled) == {records: {bare(owner.head): "damaged"}}
    for blob, content in second.blobs.items():
        data = await read(filled, pack)
        if content:
            async with replaced(filled, pack, flipped(data, data.index(content))):
                await scrubbed(filled)
                assert await findings(filled) == {pack: {bare(blob): "damaged", None: "damaged"}}
    blob, content = max(first.blobs.items(), key=lambda item: len(item[1]))
    key = loose_key(bytes.fromhex(bare(blob)), Scheme.TYPED)
    for spoiled in (flipped(content, 3), content[:-1], content + b"x", b""):
        async with replaced(filled, key, spoiled):
            await scrubbed(filled)
            assert await findings(filled) == {key: {bare(blob): "damaged"}}


async def test_a_damaged_snapshot_in_a_record_pack_is_named(twin: Server) -> None:
    """Whole or as changes to another one, which the index has."""
    first, _ = await fill(twin)
    named = set()
    for records in await stored_keys(twin, "records"):
        content = await read(twin, records)
        for at in [at for at in range(len(content)) if content.startswith(b"loose/", at)]:
            async with replaced(twin, records, content[:at] + b"m" + content[at + 1 :]):
                await scrubbed(twin)
                named |= set((await findings(twin))[records])
    assert named == {bare(snapshot["snapshot_id"]) for snapshot in first.snapshots}


async def test_a_missing_file_is_reported_as_missing(filled: Server) -> None:
    first, second = history("loose"), history("packed")
    (pack,) = await stored_keys(filled, "packs")
    blob = next(iter(first.blobs))
    loose = loose_key(bytes.fromhex(bare(blob)), Scheme.TYPED)
    await filled.services.store.delete([loose, pack])
    result = await scrubbed(filled)
    packed = {bare(other): "missing" for other, content in second.blobs.items() if content}
    assert await findings(filled) == {loose: {bare(blob): "missing"}, pack: packed | {None: "missing"}}
    assert result["missing"] == len(packed) + 2
    assert {"key": loose, "object_id": bare(blob), "problem": "missing"} in result["findings"]


async def test_what_was_deleted_or_moved_meanwhile_is_no_damage(twin: Server) -> None:
    """The collector takes the row first and the bytes after it: between the scrub's look at either."""
    await fill(twin)
    index, store = twin.services.index, twin.services.store
    tables = index.tables

    def collect(call: Call) -> Fault | None:
        if call.operation == "stream" and call.keys[0].split("/")[0] in {"objects", "packs"}:
            key = call.keys[0]
            gone = [
                at for at, blob in tables.blobs.items()
                if (pack_key(blob.pack_id) if blob.pack_id else loose_key(blob.object_id, at[0])) == key
            ]  # fmt: skip
            for at in gone:
                del tables.blobs[at]
            return Fault(vanish=True)
        return None

    services = job_services(
        index, FaultyStore(store, collect), twin.services.environment, twin.services.fetch.spool_dir,
        scrub_bytes_per_s=0,
    )  # fmt: skip
    result = await scrub.run(attempt(services, "scrub", DEPLOYMENT))
    assert (result["missing"], result["damaged"], result["findings"]) == (0, 0, [])
    assert result["loose"] + result["packs"] > 0


async def test_what_is_pending_is_not_missed(twin: Server) -> None:
    """Its bytes are in the index and nowhere else yet."""
    await twin.make_repository()
    assert (await push(twin, history("pending").frames()))["type"] == "R"
    assert await stored_keys(twin, "objects") == []
    result = await scrubbed(twin)
    assert (result["loose"], result["missing"]) == (0, 0)


async def test_findings_stay_until_a_later_run_finds_the_key_sound(filled: Server) -> None:
    (pack,) = await stored_keys(filled, "packs")
    content = await read(filled, pack)
    async with replaced(filled, pack, flipped(content, len(content) - 1)):  # the footer: no object is damaged
        await scrubbed(filled)
        first = await kept(filled)
        assert [one.finding.object_id for one in first] == [None]
        assert first[0].finding.detail == "0 of the 6 objects that are read from it are damaged"
        await scrubbed(filled)
        (again,) = await kept(filled)
        assert again.found_at == first[0].found_at
        assert again.seen_at > first[0].seen_at
    assert (await scrubbed(filled))["mended"] == 1
    assert await kept(filled) == []


async def kept(server: Server) -> list[KeptFinding]:
    return await server.services.index.list_findings(LISTED)


async def test_an_attempt_goes_on_where_the_last_one_was_cut(twin: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any key: nothing is left out, and hardly anything is read twice."""
    await fill(twin)
    monkeypatch.setattr(scrub, "KEPT_EVERY_KEYS", 1)
    monkeypatch.setattr(scrub, "_ROWS_AT_ONCE", 3)
    monkeypatch.setattr(scrub, "_LISTED_AT_ONCE", 1)
    monkeypatch.setattr(scrub, "SUSPECTS_AT_ONCE", 1)
    whole = await scrubbed(twin)
    state: dict | None = None
    for _ in range(100):
        context = attempt(services_of(twin, scrub_bytes_per_s=0), "scrub", DEPLOYMENT, state)
        cut = _Cutting(context, 2)
        try:
            result = await scrub.run(cut.context)
            break
        except _Cut:
            assert context.kept is not None
            state = dict(context.kept)
    counts = ("loose", "packs", "records", "bytes", "damaged", "missing")
    assert {name: result[name] for name in counts} == {name: whole[name] for name in counts}


async def test_damage_met_before_an_attempt_was_cut_is_still_known_after_it(
    twin: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(twin)
    monkeypatch.setattr(scrub, "KEPT_EVERY_KEYS", 1)
    key = (await stored_keys(twin, "objects"))[1]
    content = await read(twin, key)
    async with replaced(twin, key, flipped(content, 0) if content else b"x"):
        context = attempt(services_of(twin, scrub_bytes_per_s=0), "scrub", DEPLOYMENT)
        with pytest.raises(_Cut):
            await scrub.run(_Cutting(context, 5).context)
        assert set(await findings(twin)) == {key}
        result = await scrubbed(twin, dict(context.kept or {}))
        assert (result["mended"], result["damaged"]) == (0, 1)
        assert set(await findings(twin)) == {key}


async def test_it_reads_no_faster_than_it_may(autojump_clock: MockClock, tmp_path: Path) -> None:
    """By the clock: a deployment's users have the disk first."""
    library = Library(MemoryIndex(), tmp_path)
    repository = await library.make()
    contents = [bytes([number]) * 700 for number in range(10)]
    ids = [hash_bytes(Kind.BLOB, content, Scheme.TYPED) for content in contents]
    items = [(loose_key(i, Scheme.TYPED), content) for i, content in zip(ids, contents, strict=True)]
    await library.store.put_batch(items)
    blobs = [StoredBlob(object_id, 700) for object_id in ids]
    now = library.environment.now()
    await library.index.hold_blobs(repository.number, Scheme.TYPED, blobs, now + dt.timedelta(days=1))
    services = job_services(library.index, library.store, library.environment, tmp_path, scrub_bytes_per_s=1_000)
    before = trio.current_time()
    result = await scrub.run(attempt(services, "scrub", DEPLOYMENT))
    assert (result["loose"], result["bytes"], result["damaged"]) == (10, 7_000, 0)
    assert trio.current_time() - before == pytest.approx(7)
    assert result["waited_s"] == pytest.approx(7)


async def test_a_key_that_cannot_be_read_is_reported_and_the_rest_is_read(twin: Server) -> None:
    await fill(twin)
    bad = (await stored_keys(twin, "objects"))[0]

    def fail(call: Call) -> Fault | None:
        return Fault(unreadable=True) if call.keys[:1] == (bad,) else None

    result = await scrub.run(attempt(faulty_services(twin, fail), "scrub", DEPLOYMENT))
    assert result["unreadable"] == 1
    assert result["loose"] == len(await stored_keys(twin, "objects"))
    assert {problem for ids in (await findings(twin)).values() for problem in ids.values()} == {"unreadable"}


@pytest.mark.parametrize("temporary", [True, False])
async def test_a_store_that_is_away_is_no_damage(
    twin: Server, temporary: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another attempt goes on when it is there again."""
    monkeypatch.setattr(reading, "UNREADABLE_MOST", 2)
    await fill(twin)
    services = faulty_services(twin, lambda _: Fault(fail_before=True, temporary=temporary))
    with pytest.raises(StoreUnavailable):
        await scrub.run(attempt(services, "scrub", DEPLOYMENT))


async def test_a_record_too_large_to_look_into_is_passed_over(twin: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pack is reported all the same."""
    await fill(twin)
    monkeypatch.setattr(record_check, "RECORD_MOST", 100)
    records = (await stored_keys(twin, "records"))[0]
    content = await read(twin, records)
    async with replaced(twin, records, flipped(content, content.index(b"the second one"))):
        await scrubbed(twin)
        assert await findings(twin) == {records: {None: "damaged"}}


async def test_it_deletes_nothing(filled: Server) -> None:
    before = [key for prefix in ("objects", "packs", "records") for key in await stored_keys(filled, prefix)]
    for key in before:
        content = await read(filled, key)
        await filled.services.store.put_batch([(key, flipped(content, 0) if content else b"x")])
    await scrubbed(filled)
    after = [key for prefix in ("objects", "packs", "records") for key in await stored_keys(filled, prefix)]
    assert after == before


async def test_an_empty_deployment() -> None:
    services = job_services(MemoryIndex(), MemoryStore(), SeededEnvironment(1), Path("nowhere"))
    result = await scrub.run(attempt(services, "scrub", DEPLOYMENT))
    assert (result["loose"], result["packs"], result["records"], result["bytes"]) == (0, 0, 0, 0)


def faulty_services(server: Server, decide: object) -> object:
    there = server.services
    store = FaultyStore(there.store, decide)
    return job_services(there.index, store, there.environment, there.fetch.spool_dir, scrub_bytes_per_s=0)


class _Cut(Exception):
    pass


class _Cutting:
    """Cuts an attempt when it has kept its state for the nth time."""

    def __init__(self, context: object, times: int) -> None:
        self.context = context
        inner = context.keep_state

        async def keep_state(state: object) -> None:
            await inner(state)
            if context.times_kept == times:
                raise _Cut

        context.keep_state = keep_state
