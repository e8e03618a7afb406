"""What is decided is in the object store when it is answered, or follows; and a store knows its database (T30)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.journal.joining import Epoch, join, read_epoch, write_epoch
from actors.journal.writing import JournalOffice, JournalWriter
from actors.reindex.records import find_record
from storage.environment import SeededEnvironment, SystemEnvironment
from storage.errors import DeploymentMismatch, ObjectMissing, StoreUnavailable
from storage.journal import SEGMENT_ENTRIES, Deployment, Entry, read_segment
from storage.layout import epoch_key, parse_journal_key
from storage.object_store import ObjectStore
from storage.objects.filesystem import FilesystemStore
from storage.objects.memory import MemoryStore
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from storage.rows import NewRepository, Visibility
from tests.deployments import deployed, two_commits
from tests.growing import WAYS, push_ids
from tests.http_client import ask, push
from tests.muse import Push, blob_id, make_commit, make_snapshot, plain
from tests.reindexing import emptied, rebuild, waiting
from tests.servers import Server, museworkd, serving
from wire.canonical import parse_canonical
from wire.ids import Kind, Scheme, parse_id
from wire.limits import DEFAULT_LIMITS

pytestmark = pytest.mark.usefixtures("expected_errors")


async def entries(store: ObjectStore) -> dict[int, Entry]:
    """Every entry in a store, each segment proved by its key."""
    epoch, found = await read_epoch(store), {}
    if epoch is None:
        return {}
    async for stored in store.scan("journal"):
        key = parse_journal_key(stored.key)
        assert key is not None, stored.key
        content = await store.get(stored.key, stored.size)
        assert (
            content
            == json.dumps(json.loads(content), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        )
        for entry in read_segment(key, content, epoch.deployment):
            assert found.setdefault(entry.number, entry) == entry
    return dict(sorted(found.items()))


@pytest.fixture
async def real(database_url: str, tmp_path: Path) -> Iterator[Server]:
    """A server over PostgreSQL and a directory."""
    async with deployed(database_url, tmp_path) as server:
        yield server


async def test_what_was_answered_is_in_the_store(real: Server):
    """Every kind of fact is written out by the time its request is answered."""
    store = real.services.store

    async def kinds() -> set[str]:
        return {entry.kind for entry in (await entries(store)).values()}

    async def api(method: str, target: str, body: object, status: int = 200) -> None:
        answer = await ask(real, method, target, token="alice", json=body)
        assert answer.status == status, answer.body

    await api("POST", "/api/repos", {"slug": "x"}, 201)
    assert {"identity", "token", "repository"} <= await kinds()
    history = two_commits()
    assert (await push(real, history.frames()))["type"] == "R"
    assert {"push", "branch", "usage"} <= await kinds()
    await api("PUT", "/api/repos/alice/x/collaborators/bob", {"right": "write"})
    assert "collaborator" in await kinds()
    tag = {"tag_id": "t", "repo_id": "r", "commit_id": history.head, "tag": "v1", "created_at": "then"}
    await api("POST", "/alice/x/tags", {"tags": [tag]})
    assert "tag" in await kinds()
    await api("POST", "/alice/x/releases", {"release": {"release_id": "r1"}})
    assert "release" in await kinds()
    move = {"branch": "b", "old": None, "new": history.head}
    await api("POST", "/alice/x/refs", {"updates": [move]})
    moves = [e.fact["branch"] for e in (await entries(store)).values() if e.kind == "branch"]
    assert sorted(moves) == ["b", "main"]
    await emptied(real.services.index)


async def test_a_secret_is_never_written_out(real: Server):
    """The store holds hashes of tokens, and of what signs URLs nothing."""
    await real.make_repository()
    await real.services.push.journal.settle()
    index = real.services.index
    kept = await index.secret("signed urls", b"\0" * 32)
    facts = json.dumps([entry.fact for entry in (await entries(real.services.store)).values()])
    for secret in ("token-of-alice", kept.hex()):
        assert secret not in facts
    assert hashlib.sha256(b"token-of-alice").hexdigest() in facts


async def test_what_is_decided_beside_the_daemon_follows_by_itself(real: Server):
    """A command that works on the database alone has its facts written out by whichever daemon runs."""
    await real.make_repository()
    with trio.fail_after(20):
        while not any(e.kind == "repository" for e in (await entries(real.services.store)).values()):
            await wait_all_tasks_blocked(0.05)


class Refusing(MemoryStore):
    """A store that takes no segments while it is told so."""

    refusing = False

    async def put_batch(self, items: list[tuple[str, bytes]]) -> None:
        if self.refusing and any(key.startswith("journal/") for key, _ in items):
            raise StoreUnavailable("injected")
        await super().put_batch(items)


async def test_a_push_does_not_wait_for_a_store_that_takes_no_entries(postgres_index: PostgresIndex, tmp_path: Path):
    """It is answered within the bound; its facts wait in the outbox, and are written out when the store is back."""
    store = Refusing()
    async with serving(postgres_index, store, tmp_path) as server:
        await server.make_repository()
        await server.services.push.journal.settle()
        store.refusing = True
        frames = two_commits().frames()
        with trio.fail_after(10):
            assert (await push(server, frames))["type"] == "R"
        assert {e.kind for e in await waiting(postgres_index)} >= {"push", "branch"}
        store.refusing = False
        assert (await push(server, frames))["type"] == "R"  # who asks again waits again
        assert {"push", "branch"} <= {entry.kind for entry in (await entries(store)).values()}
        await emptied(postgres_index)
    assert {"push", "branch"} <= {entry.kind for entry in (await entries(store)).values()}


class Hanging(MemoryStore):
    """A store that takes a segment and never says so."""

    def __init__(self) -> None:
        super().__init__()
        self.hangs = trio.Event()

    async def put_batch(self, items: list[tuple[str, bytes]]) -> None:
        if any(key.startswith("journal/") for key, _ in items):
            self.hangs.set()
            await trio.sleep_forever()
        await super().put_batch(items)


async def test_the_watchdog_is_answered_while_the_store_hangs(postgres_index: PostgresIndex):
    """A store that hangs is no reason for the service manager to end the daemon."""
    store = Hanging()
    writer = JournalWriter(JournalOffice(postgres_index, store, SystemEnvironment()))
    await postgres_index.set_quota("alice", 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(writer.live)
        with trio.fail_after(20):
            await store.hangs.wait()
            await writer.round_trip()
        nursery.cancel_scope.cancel()


async def test_many_facts_go_in_several_segments_and_two_writers_do_no_harm(postgres_index: PostgresIndex):
    """What two daemons write out at once is there once, by its numbers."""
    store, environment = MemoryStore(), SystemEnvironment()
    for number in range(SEGMENT_ENTRIES + 10):
        await postgres_index.set_quota(f"owner-{number}", number)
    offices = [JournalOffice(postgres_index, store, environment) for _ in range(2)]
    async with trio.open_nursery() as nursery:
        for office in offices:
            nursery.start_soon(office.write_out)
    assert await waiting(postgres_index) == []
    found = await entries(store)
    assert sorted(e.fact["quota_bytes"] for e in found.values()) == list(range(SEGMENT_ENTRIES + 10))
    assert await postgres_index.last_entry() == max(found)
    assert await offices[0].write_out() == 0


async def test_what_came_to_nothing_leaves_no_entry(real: Server):
    """A push that is refused leaves its verdict; a branch that is not moved leaves nothing."""
    await real.make_repository()
    first, other = two_commits(), Push()
    other.commit({"other": b"root"})
    assert (await push(real, first.frames()))["type"] == "R"
    assert (await push(real, other.frames()))["error"] == "non_fast_forward"
    await real.services.push.journal.settle()
    facts = [(e.kind, e.fact) for e in (await entries(real.services.store)).values()]
    assert [fact["state"] for kind, fact in facts if kind == "push"] == [1, 2]
    assert [fact["old"] for kind, fact in facts if kind == "branch"] == [None]


async def by_plain(server: Server, history: Push, push_id: str, slug: str) -> dict:
    """Push as the 0.1.x client does."""
    del push_id
    objects = [{"object_id": oid, "content": content, "path": "p"} for oid, content in history.blobs.items()]
    bundle = {"commits": history.commits, "snapshots": history.snapshots, "objects": objects}
    bundle["branch_heads"] = {"main": history.head}
    answer = await ask(
        server, "POST", f"/alice/{slug}/push", token="alice", msgpack={"bundle": bundle, "branch": "main"}
    )
    assert answer.status == 200, answer.body
    return {"type": "R"}


def a_history(name) -> Push:
    """Full snapshots and, where the client has them, deltas; with fields of no id."""
    made = Push(name=name)
    files = {f"f{number}": b"file %d" % number for number in range(6)}
    made.commit(files, metadata={"k": "v"})
    if name is not plain:
        base = made.snapshots[0]["snapshot_id"]
        for number in range(3):
            changed = {"f0": b"changed %d" % number}
            files |= changed
            manifest = {path: blob_id(content) for path, content in files.items()}
            target = make_snapshot(manifest)["snapshot_id"]
            upsert = {path: blob_id(content) for path, content in changed.items()}
            made.blobs |= {blob_id(content): content for content in changed.values()}
            made.deltas.append({
                "snapshot_id": target, "parent_snapshot_id": base, "delta_upsert": upsert, "delta_remove": [],
            })  # fmt: skip
            made.commits.append(make_commit(target, [made.head], message=f"delta {number}"))
            base = target
    made.commit({"g": b"another tree"}, message="ü")
    return made


@pytest.mark.parametrize("way", [*WAYS, "plain"])
async def test_every_record_is_readable_by_its_id_from_the_store_alone(real: Server, way: str):
    """Commits and snapshots pushed by any path are in canonical form, found by id without the index."""
    history = a_history(plain if way == "plain" else Push().name)
    await real.make_repository()
    assert (await (by_plain if way == "plain" else WAYS[way])(real, history, next(push_ids), "x"))["type"] == "R"
    store, scheme = real.services.store, Scheme.PLAIN if way == "plain" else Scheme.TYPED
    for sent in history.commits:
        stored = await find_record(store, Kind.COMMIT, parse_id(sent["commit_id"], scheme), DEFAULT_LIMITS)
        kind, record = parse_canonical(stored)
        assert (kind, {key: record[key] for key in sent}) == (Kind.COMMIT, sent)
        assert stored == canonical("commit", record)
    for sent in [*history.snapshots, *history.deltas]:
        manifest = await read_manifest(store, sent["snapshot_id"], scheme)
        assert make_snapshot(manifest, name=history.name)["snapshot_id"] == sent["snapshot_id"]
    with pytest.raises(ObjectMissing):
        await find_record(store, Kind.COMMIT, b"\1" * 32, DEFAULT_LIMITS)


def canonical(kind: str, record: dict) -> bytes:
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    return b"%s %d\0" % (kind.encode(), len(text)) + text


async def read_manifest(store: ObjectStore, snapshot: str, scheme: Scheme) -> dict[str, str]:
    stored = await find_record(store, Kind.SNAPSHOT, parse_id(snapshot, scheme), DEFAULT_LIMITS)
    _, record = parse_canonical(stored)
    assert stored == canonical("snapshot", record)
    if "manifest" in record:
        return record["manifest"]
    base = record["parent_snapshot_id"]
    manifest = {} if base is None else await read_manifest(store, base, scheme)
    kept = {path: oid for path, oid in manifest.items() if path not in record["delta_remove"]}
    return kept | record["delta_upsert"]


MISMATCHES = {
    "another deployment": "never together",
    "an emptied database": "reindex",
    "an older database": "older than the object store",
    "a database of an earlier generation": "older than the object store",
    "an emptied store": "lacks deployment/epoch.json",
    "an older store": "older than the database",
    "a store of an earlier generation": "older than the database",
    "a rebuilding that was cut": "run `museworkd reindex` again",
}


@pytest.mark.parametrize("case", MISMATCHES)
async def test_a_database_and_a_store_that_do_not_belong_together_are_refused(database_url: str, case: str):
    """With words that say what to do; what belongs together is let in before and after."""
    store, environment = MemoryStore(), SeededEnvironment(7)
    async with PostgresIndex(DatabaseSettings(database_url)) as index:
        await index.set_quota("alice", 1)
        assert (await join(index, store, environment)).generation == 1
        office = JournalOffice(index, store, environment)
        await office.write_out()
        with psycopg.connect(database_url, autocommit=True) as connection:
            before = connection.execute("SELECT journalled, segment FROM deployment").fetchone()
            await index.set_quota("alice", 2)
            await office.write_out()
            assert (await join(index, store, environment)).journalled > before[0]
            epoch = await read_epoch(store)
            match case:
                case "another deployment":
                    await write_epoch(store, Epoch(environment.uuid(), 1))
                case "an emptied database":
                    connection.execute("TRUNCATE deployment, journal_outbox, owner_quotas")
                case "an older database":
                    connection.execute("UPDATE deployment SET journalled = %s, segment = %s", before)
                case "a database of an earlier generation":
                    await write_epoch(store, Epoch(epoch.deployment, 2, {1: 2}))
                case "an emptied store":
                    await store.delete([epoch_key()])
                case "an older store":
                    await store.delete([(await index.deployment(None)).segment])
                case "a store of an earlier generation":
                    connection.execute("UPDATE deployment SET generation = 2")
                case "a rebuilding that was cut":
                    connection.execute("UPDATE deployment SET state = 2")
        with pytest.raises(DeploymentMismatch, match=MISMATCHES[case]):
            await join(index, store, environment)


async def test_joining_can_be_cut_anywhere(postgres_index: PostgresIndex):
    """Between the database's word and the store's, another start finishes what was begun."""
    store, environment = MemoryStore(), SeededEnvironment(7)
    begun = await postgres_index.deployment(environment.uuid())
    assert (await join(postgres_index, store, environment)).deployment == begun.deployment
    with pytest.raises(ObjectMissing):
        await store.get("deployment/other.json", 1)
    assert (await read_epoch(store)).deployment == begun.deployment
    assert (await join(postgres_index, store, environment)).deployment == begun.deployment


async def test_a_store_cut_while_entries_are_written_out_is_no_older_database(database_url: str, tmp_path: Path):
    """A segment that was put just before its writer died does not make the database an older one."""
    store = await FilesystemStore.open(tmp_path / "store")
    environment = SystemEnvironment()
    async with PostgresIndex(DatabaseSettings(database_url)) as index:
        await index.set_quota("alice", 1)

        async def dies(of: Deployment, numbers: list[int], key: str) -> None:
            raise StoreUnavailable(f"{of.generation} {len(numbers)} {key}")

        office = JournalOffice(index, store, environment)
        index.written_out = dies  # type: ignore[method-assign]
        with pytest.raises(StoreUnavailable):
            await office.write_out()
        del index.written_out  # type: ignore[method-assign]
        assert len(await entries(store)) == 1
        await join(index, store, environment)
        await JournalOffice(index, store, environment).write_out()
        assert len(await entries(store)) == 1


async def test_a_daemon_beside_another_deployments_store_does_not_start(database_url: str, tmp_path: Path):
    """It ends with exit code 4, and says what can be done."""
    store = await FilesystemStore.open(tmp_path / "data" / "store")
    await write_epoch(store, Epoch(SystemEnvironment().uuid(), 1))
    done = await trio.to_thread.run_sync(
        lambda: museworkd(
            "serve",
            "--bind",
            "127.0.0.1:0",
            "--data-dir",
            str(tmp_path / "data"),
            "--database-url",
            database_url,
            check=4,
        )
    )
    assert "museworkd reindex" in done.stderr


async def test_who_waits_is_let_go_when_all_is_in_the_store(postgres_index: PostgresIndex):
    """However little of it fits in a segment: refusals that quote other letters are longer where they wait."""
    store, environment = MemoryStore(), SystemEnvironment()
    new = NewRepository(environment.uuid(), "ada", "x", Visibility.PRIVATE, "main", "code", environment.now())
    number = (await postgres_index.create_repository(new)).number
    for _ in range(300):
        ticket = await postgres_index.begin_push(number, environment.uuid(), "ada", "main", environment.now(), 100)
        await postgres_index.refuse_push(ticket, {"error": "x", "missing": ["é" * 200] * 5}, environment.now())
    await postgres_index.set_quota("ada", 12345)
    office = JournalOffice(postgres_index, store, environment)
    settled, found = [], []

    async def wait() -> None:
        settled.append(await office.settle())
        found.extend(entry.kind for entry in (await entries(store)).values())

    office.wake = lambda: None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        await office.write_out()
    assert settled == [True]
    assert found.count("push") == 300
    assert found[-1] == "quota"


async def test_a_daemon_that_goes_on_after_its_database_was_made_anew_writes_nothing(
    database_url: str, tmp_path: Path, logs: list, expected_errors: list
):
    """Neither while it is made anew nor after; it says so, and what it decided waits for the next daemon."""
    store = await FilesystemStore.open(tmp_path / "store")
    async with PostgresIndex(DatabaseSettings(database_url)) as index:
        async with serving(index, store, tmp_path) as server:
            await server.make_repository()
            assert (await push(server, two_commits().frames()))["type"] == "R"
            await emptied(index)
            before = await index.deployment(None)
            await rebuild(database_url, store, tmp_path / "spool", replace_all=True)
            written = set(await entries(store))
            await index.set_quota("alice", 1)
            with trio.fail_after(20):
                while not any(e["event"].startswith("nothing is written out by this") for e in logs):
                    await wait_all_tasks_blocked(0.05)
            assert not await server.services.push.journal.settle()
            assert set(await entries(store)) == written
            assert [entry.kind for entry in await waiting(index)] == ["quota"]
            with pytest.raises(DeploymentMismatch, match="restart"):
                await index.written_out(before, [entry.number for entry in await waiting(index)], "of another life")
            assert [entry.kind for entry in await waiting(index)] == ["quota"]
        expected_errors += [e for e in logs if e["event"].startswith("nothing is written out by this")]
        await JournalOffice(index, store, SystemEnvironment()).write_out()
        with psycopg.connect(database_url, autocommit=True) as connection:
            now = await index.deployment(None)
            connection.execute("UPDATE deployment SET state = 2")
            with pytest.raises(DeploymentMismatch, match="restart"):
                await index.outbox(now, 1, 1)
    assert "quota" in {entry.kind for entry in (await entries(store)).values()}
