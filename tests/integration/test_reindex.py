"""The database is disposable: made anew from the object store alone, it says what the lost one said."""

from __future__ import annotations

import importlib.resources
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from actors.journal.joining import join
from actors.journal.writing import JournalOffice
from storage.environment import SeededEnvironment
from storage.errors import DeploymentMismatch
from storage.journal import DeploymentState
from storage.layout import epoch_key, loose_key, record_pack_key
from storage.object_store import ObjectStore
from storage.objects.filesystem import FilesystemStore
from storage.postgres.database import Database, DatabaseSettings
from storage.postgres.embedded import EmbeddedPostgres
from storage.postgres.index import PostgresIndex
from storage.postgres.reindex import _BESIDE, TRUTH, begin
from tests.clones import clone
from tests.conftest import _database
from tests.deployments import two_commits
from tests.growing import WAYS, Growing, another_repository
from tests.handler_runs import promoted
from tests.http_client import push
from tests.muse import Push
from tests.reindexing import World, emptied, rebuild, truth
from tests.servers import Server, museworkd, serving
from wire.ids import Scheme

pytestmark = pytest.mark.usefixtures("expected_errors")
OPERATIONS = int(os.environ.get("MUSEWORKD_TEST_REINDEX_OPERATIONS", "150"))


@pytest.fixture
def another_database(postgres: EmbeddedPostgres) -> Iterator[str]:
    """A second database beside the test's own."""
    yield from _database(postgres, "template_museworkd")


@pytest.mark.parametrize("seed", [1])
async def test_what_was_decided_comes_back_after_a_long_life(
    database_url: str, another_database: str, tmp_path: Path, seed: int
):
    """After random operations over every way, each table that is truth equals the lost one, and so do clones."""
    environment = SeededEnvironment(seed)
    store = await FilesystemStore.open(tmp_path / "store")
    async with PostgresIndex(DatabaseSettings(database_url), environment) as index:
        async with serving(index, store, tmp_path, environment) as server:
            world = World(server, environment, seed)
            await world.live(OPERATIONS)
            await server.services.push.journal.settle()
        await emptied(index)
    lost = await truth(database_url)
    report = await rebuild(another_database, store, tmp_path / "spool")
    assert report.damaged == []
    found = await truth(another_database)
    for table, rows in lost.items():
        assert found[table] == rows, table
    async with (
        PostgresIndex(DatabaseSettings(another_database), environment) as index,
        serving(index, store, tmp_path, environment) as server,
    ):
        for slug, tree in world.trees.items():
            for branch, head in tree.heads.items():
                if head in tree.files:
                    copy = await clone(server, head, repository=f"alice/{slug}")
                    assert copy.files(head) == tree.files[head], (slug, branch)


class CutError(Exception):
    """The rebuilding was cut."""


async def small_life(url: str, store: ObjectStore, tmp_path: Path, *, promote: bool = False) -> dict[str, str]:
    """A few pushes by every way, a forced one, and a repository that is gone; gives heads by repository."""
    environment = SeededEnvironment(3)
    heads = {}
    async with (
        PostgresIndex(DatabaseSettings(url), environment) as index,
        serving(index, store, tmp_path, environment) as server,
    ):
        await another(server)
        for way in WAYS:
            slug = f"by-{way}"
            await server.make_repository(slug=slug)
            branch = Growing(slug)
            for _ in range(2):
                await branch.push(server, WAYS[way])
            heads[slug] = branch.head
        gone = await server.make_repository(slug="gone")
        assert (await push(server, two_commits().frames(), repository="alice/gone"))["type"] == "R"
        await index.delete_repository(gone.number, environment.now())
        if promote:
            await promoted(server)
        await server.services.push.journal.settle()
    return heads


async def another(server: Server) -> None:
    await server.make_repository(slug="other")
    await another_repository(server)


async def test_contents_that_wait_in_the_index_come_back(database_url: str, another_database: str, tmp_path: Path):
    """What was acknowledged is in the store even before a job has given it its place there."""
    store = await FilesystemStore.open(tmp_path / "store")
    heads = await small_life(database_url, store, tmp_path)
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM blobs WHERE pending").fetchone() > (0,)
    lost = await truth(database_url)
    assert (await rebuild(another_database, store, tmp_path / "spool")).damaged == []
    found = await truth(another_database)
    for table, rows in lost.items():
        assert found[table] == rows, table
    await can_be_cloned(another_database, store, tmp_path, heads)


async def can_be_cloned(url: str, store: ObjectStore, tmp_path: Path, heads: dict[str, str]) -> None:
    async with PostgresIndex(DatabaseSettings(url)) as index, serving(index, store, tmp_path) as server:
        for slug, head in heads.items():
            await clone(server, head, repository=f"alice/{slug}")
            branch = Push()
            branch.commit({"after": b"the rebuilding"}, [head])
            assert (await push(server, branch.frames(), repository=f"alice/{slug}"))["type"] == "R"


async def test_a_rebuilding_that_is_cut_anywhere_goes_on(database_url: str, another_database: str, tmp_path: Path):
    """Cut at every step it takes in the database, and at every put, it ends as if it had not been."""
    store = await FilesystemStore.open(tmp_path / "store")
    heads = await small_life(database_url, store, tmp_path, promote=True)
    lost = await truth(database_url)
    cuts, complete = 0, False
    while not complete:
        left = [8 + 12 * cuts]

        class Cut(Database):
            async def run(self, function, *arguments, left=left):  # type: ignore[no-untyped-def]
                left[0] -= 1
                if left[0] == 0:
                    raise CutError
                done = await super().run(function, *arguments)
                left[0] -= 1
                if left[0] == 0:  # it happened, and nobody heard of it
                    raise CutError
                return done

        try:
            report = await rebuild(another_database, store, tmp_path / "spool", database=Cut)
            assert report.damaged == []
            complete = True
        except* CutError:
            cuts += 1
            async with PostgresIndex(DatabaseSettings(another_database)) as index:
                there = await index.deployment(None)
                complete = there is not None and there.state is DeploymentState.IN_USE
                if not complete:
                    with pytest.raises(DeploymentMismatch, match=r"reindex"):
                        await join(index, store, SeededEnvironment(1))
    assert cuts > 5
    found = await truth(another_database)
    for table, rows in lost.items():
        assert found[table] == rows, table
    await can_be_cloned(another_database, store, tmp_path, heads)
    async with PostgresIndex(DatabaseSettings(database_url)) as index:  # the lost one, which somebody finds again
        with pytest.raises(DeploymentMismatch, match="older than the object store"):
            await join(index, store, SeededEnvironment(1))


async def test_a_rebuilt_deployment_can_be_rebuilt_again(database_url: str, another_database: str, tmp_path: Path):
    """What is decided after a rebuilding goes on with the numbers; and a database in use is not thrown away unasked."""
    store = await FilesystemStore.open(tmp_path / "store")
    heads = await small_life(database_url, store, tmp_path)
    await rebuild(another_database, store, tmp_path / "spool")
    await can_be_cloned(another_database, store, tmp_path, heads)
    lost = await truth(another_database)
    with pytest.raises(DeploymentMismatch, match="not empty"):
        await rebuild(database_url, store, tmp_path / "spool")
    report = await rebuild(database_url, store, tmp_path / "spool", replace_all=True)
    assert (report.generation, report.damaged) == (3, [])
    found = await truth(database_url)
    for table, rows in lost.items():
        assert found[table] == rows, table


def test_whoever_begins_anew_leaves_no_table_as_it_was(database_url: str):
    """But for the migrations, and which types of jobs the operator has paused."""
    with psycopg.connect(database_url) as connection:
        listed = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()").fetchall()
        tables = {name for (name,) in listed} - {"schema_migrations", "job_types"}
        filled = connection.execute("INSERT INTO large_bodies VALUES (%s, 0, '')", [bytes(32)])
        assert filled.rowcount == 1
        begin(connection, uuid.uuid4(), 1, replace=True)
        assert connection.execute("SELECT count(*) FROM large_bodies").fetchone() == (0,)
    assert tables == {*TRUTH, *_BESIDE}


async def test_what_was_decided_before_there_was_a_journal_comes_back(
    database_url: str, another_database: str, tmp_path: Path
):
    """Facts that the migration found are written out, and pushes are found by the commits of their record packs."""
    store = await FilesystemStore.open(tmp_path / "store")
    heads = await small_life(database_url, store, tmp_path, promote=True)
    await store.delete([found.key async for found in store.scan("journal")] + [epoch_key()])
    migration = importlib.resources.files("migrations").joinpath("0013_journal.sql").read_text()
    with psycopg.connect(database_url) as connection:
        connection.execute("UPDATE pushes SET record_pack = NULL")
        connection.execute("TRUNCATE journal_outbox, deployment")
        connection.execute(
            migration[migration.index("INSERT INTO journal_outbox (kind, gone, fact) SELECT 'identity'") :]
        )
    async with PostgresIndex(DatabaseSettings(database_url)) as index:
        await JournalOffice(index, store, SeededEnvironment(1)).write_out()
    lost = await truth(database_url)
    assert (await rebuild(another_database, store, tmp_path / "spool")).damaged == []
    found = await truth(another_database)
    del lost["pushes"], found["pushes"]  # which packs they were in is known now
    for table, rows in lost.items():
        assert found[table] == rows, table
    await can_be_cloned(another_database, store, tmp_path, heads)


async def test_what_the_store_has_lost_is_told(database_url: str, another_database: str, tmp_path: Path):
    """A record pack or a content that is gone does not keep the rest from coming back; the command says so with 3."""
    store = await FilesystemStore.open(tmp_path / "data" / "store")
    heads = await small_life(database_url, store, tmp_path, promote=True)
    with psycopg.connect(database_url) as connection:
        (pack,) = connection.execute(
            "SELECT record_pack FROM pushes JOIN repositories r USING (repo) WHERE slug = 'by-mpack' ORDER BY 1 LIMIT 1"
        ).fetchone()
        (blob,) = connection.execute("""
            SELECT blob_id FROM blob_refs JOIN blobs b USING (blob_id) JOIN repositories r USING (repo)
            WHERE b.pack IS NULL AND b.size > 0 GROUP BY blob_id
            HAVING min(slug) = 'by-stream' AND max(slug) = min(slug) LIMIT 1
        """).fetchone()
    packs = [found.key async for found in store.scan("packs")]
    await store.delete([record_pack_key(bytes(pack)), loose_key(bytes(blob), Scheme.TYPED), *packs])
    done = museworkd(
        "reindex", "--json", "--data-dir", str(tmp_path / "data"), "--database-url", another_database, check=3
    )
    said = json.loads(done.stdout)
    details = " ".join(finding["detail"] for finding in said["damaged"])
    assert bytes(blob).hex() in details
    assert bytes(pack).hex() in details
    assert "history: " in done.stderr
    async with PostgresIndex(DatabaseSettings(another_database)) as index, serving(index, store, tmp_path) as server:
        await clone(server, heads["by-presigned"], repository="alice/by-presigned")


async def test_verdicts_come_back_whatever_they_quote(database_url: str, another_database: str, tmp_path: Path):
    """A refused push's path may hold what no operator on JSON can read; of one with several entries the order stays."""
    store, environment = await FilesystemStore.open(tmp_path / "store"), SeededEnvironment(3)
    quoted = {"error": "unsafe_path", "detail": "ü \ud800", "path": "a\0b"}
    async with (
        PostgresIndex(DatabaseSettings(database_url), environment) as index,
        serving(index, store, tmp_path, environment) as server,
    ):
        number = (await server.make_repository()).number
        history = two_commits()
        assert (await push(server, history.frames()))["type"] == "R"
        refused = await index.begin_push(number, environment.uuid(), "alice", "main", environment.now(), 100)
        await index.refuse_push(refused, quoted, environment.now())
        with psycopg.connect(database_url) as connection:
            accepted, told = connection.execute("SELECT push_id, verdict FROM pushes WHERE state = 1").fetchone()
            connection.execute("CREATE TEMPORARY TABLE before AS SELECT push, record_pack FROM pushes")
            connection.execute("UPDATE pushes SET record_pack = NULL WHERE state = 1")
            connection.execute("UPDATE pushes p SET record_pack = b.record_pack FROM before b WHERE b.push = p.push")
        await emptied(index)
    assert (await rebuild(another_database, store, tmp_path / "spool")).damaged == []
    async with PostgresIndex(DatabaseSettings(another_database)) as index:
        assert (await index.find_push(number, refused.push_id)).verdict == quoted
        assert (await index.find_push(number, accepted)).verdict == told
        assert list(await index.branch_heads(number)) == ["main"]


DAMAGES = ["flipped", "cut", "gone"]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["repository", "push", "identity"])
async def test_a_damaged_segment_is_told_and_the_rest_comes_back(
    database_url: str, another_database: str, tmp_path: Path, kind: str, damage: str, logs: list, expected_errors: list
):
    """Whatever facts it had, and also when it was the last; a repository it says nothing of is whole."""
    store = await FilesystemStore.open(tmp_path / "store")
    async with PostgresIndex(DatabaseSettings(database_url)) as index:
        async with serving(index, store, tmp_path) as server:
            branches = {slug: Growing(slug) for slug in ("x", "y")}
            for slug, branch in branches.items():
                await server.make_repository(slug=slug)
                for _ in range(3):
                    await branch.push(server, WAYS["stream"])
                    await server.services.push.journal.settle()
            await emptied(index)
        last = await index.last_entry()
    files = sorted((tmp_path / "store").rglob("journal/**/*.json"))
    hit = [file for file in files if f'"kind":"{kind}"' in file.read_text()]
    match kind:
        case "repository":  # whatever says what it is
            hit = [file for file in hit if '"slug":"x"' in file.read_text()]
        case "push":
            hit = hit[1:2]
        case "identity":
            hit = hit[:1]
    assert hit
    assert files[-1] not in hit
    for file in hit:
        content = file.read_bytes()
        file.chmod(0o644)
        match damage:
            case "flipped":
                file.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
            case "cut":
                file.write_bytes(content[: len(content) // 2])
            case "gone":
                file.unlink()
    report = await rebuild(another_database, store, tmp_path / "spool")
    told = " ".join(finding.detail for finding in report.damaged)
    expected_errors += [entry for entry in logs if entry["event"] == "a push does not come back"]
    assert all((file.name in told) == (damage != "gone") for file in hit), told
    if kind == "repository":
        assert "repository number 1" in told
    if kind == "push":
        assert "moves of branch main before" in told
    async with PostgresIndex(DatabaseSettings(another_database)) as index:
        assert await index.last_entry() == last
        await can_be_cloned(another_database, store, tmp_path, {"y": branches["y"].head})


async def test_nothing_new_gets_the_number_of_an_entry_that_cannot_be_read(
    database_url: str, another_database: str, tmp_path: Path
):
    """The last segment is damaged: when its copy is found again, it still says what it said."""
    store = await FilesystemStore.open(tmp_path / "store")
    await small_life(database_url, store, tmp_path)
    async with PostgresIndex(DatabaseSettings(database_url)) as index:
        await index.set_quota("late", 7)
        await JournalOffice(index, store, SeededEnvironment(1)).write_out()
        last = await index.last_entry()
    file = max((tmp_path / "store").rglob("journal/**/*.json"))
    content = file.read_bytes()
    assert b"late" in content
    file.chmod(0o644)
    file.write_bytes(b"")
    assert file.name in " ".join(f.detail for f in (await rebuild(another_database, store, tmp_path / "spool")).damaged)
    async with PostgresIndex(DatabaseSettings(another_database)) as index:
        await index.set_quota("new", 8)
        await JournalOffice(index, store, SeededEnvironment(1)).write_out()
        assert await index.last_entry() > last
    file.write_bytes(content)
    assert (await rebuild(database_url, store, tmp_path / "spool", replace_all=True)).damaged == []
    with psycopg.connect(database_url) as connection:
        quotas = connection.execute("SELECT owner, quota_bytes FROM owner_quotas").fetchall()
        assert dict(quotas) == {"late": 7, "new": 8}
