"""``fsck`` finds every damage that is planted, by its code, and none where there is none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import psycopg
import pytest
import trio
import trio.testing

from actors.fsck.problems import Problem
from actors.fsck.run import FsckOptions, fsck
from museworkd.client.progress import Quiet
from storage.job_rows import DEPLOYMENT
from storage.layout import loose_key, pack_key
from storage.object_store import ObjectStore
from storage.objects.wrapped import WrappedStore
from tests.clones import clone, fetch
from tests.deployments import deployed
from tests.fsck_runs import checked, told
from tests.handler_runs import promoted, run, services_of
from tests.http_client import push
from tests.mpack_pushes import mpack_of, push_mpack
from tests.muse import Push, bare
from tests.servers import Server, museworkd
from wire.ids import Kind, Scheme, hash_bytes

LOOSE, PACKED, COPIES = "loose", "packed", "copies"
TYPED = Scheme.TYPED
TABLES = [
    "blobs", "blob_refs", "packs", "commits", "commit_records", "commit_refs", "snapshots", "snapshot_refs",
    "branches", "branch_log", "pushes", "content_cache",
]  # fmt: skip


def history(seed: str, commits: int = 3) -> Push:
    made = Push()
    for number in range(commits):
        files = {f"{seed}/{n}": f"{seed} {n} {number if n == number else ''}".encode() * 9 for n in range(5)}
        made.commit(files | {"empty": b"", "shared": b"in both"}, message=f"commit {number}")
    return made


@dataclass
class Yard:
    """Two repositories, the blobs of the first loose and of the second in a pack, and ways to damage them.

    A third one was sent all of that the other way round, so that there is another copy of everything.
    """

    url: str
    data: Path
    loose: Push
    packed: Push
    server: Server | None = None

    @property
    def root(self) -> Path:
        return self.data / "store"

    def sql(self, statement: str, *arguments: object) -> list[tuple]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement, arguments)
            return cursor.fetchall() if cursor.description else []

    def files(self, pattern: str) -> list[Path]:
        found = sorted(path for path in self.root.glob(pattern) if path.is_file())
        assert found, pattern
        return found

    @property
    def loose_file(self) -> Path:
        """Of a blob only the first repository has."""
        oid = next(oid for oid, content in self.loose.blobs.items() if content.startswith(b"a 4"))
        return self.root / loose_key(bytes.fromhex(bare(oid)), TYPED)

    @property
    def pack_file(self) -> Path:
        ((pack_id,),) = self.sql("SELECT DISTINCT p.pack_id FROM packs p JOIN blobs b USING (pack)")
        return self.root / pack_key(bytes(pack_id))

    @property
    def packed_at(self) -> int:
        """Where a content lies in the pack."""
        return self.sql('SELECT "offset" FROM blobs WHERE pack IS NOT NULL AND size > 9 ORDER BY 1 LIMIT 1')[0][0]

    @property
    def record_file(self) -> Path:
        return self.files("records/*.mpack")[0]

    async def clones(self) -> None:
        """Both histories come whole from the server."""
        await self.clones_of(LOOSE, self.loose)
        await self.clones_of(PACKED, self.packed)

    async def clones_of(self, slug: str, made: Push) -> None:
        assert (await clone(self.server, made.head, repository=f"alice/{slug}")).blobs == made.blobs


@pytest.fixture(scope="module")
def built(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Yard:
    """Made once; what a test does to it is undone by :func:`yard`."""
    made = Yard(module_database_url, tmp_path_factory.mktemp("fsck"), history("a"), history("b"))

    async def build() -> None:
        async with deployed(made.url, made.data) as server:
            for slug in (LOOSE, PACKED):
                await server.make_repository(slug=slug)
            assert (await push(server, made.loose.frames(), repository=f"alice/{LOOSE}"))["type"] == "R"
            await promoted(server)
            assert (await push_mpack(server, mpack_of(made.packed), made.packed, PACKED)).status == 200
            await server.make_repository(slug=COPIES)
            assert (await push_mpack(server, mpack_of(made.loose), made.loose, COPIES)).status == 200
            other = made.packed.frames(branch="other")
            assert (await push(server, other, repository=f"alice/{COPIES}"))["type"] == "R"

    trio.run(build)
    made.sql("CREATE SCHEMA saved")
    for table in TABLES:
        made.sql(f"CREATE TABLE saved.{table} AS TABLE public.{table}")
    shutil.copytree(made.root, made.data / "saved")
    return made


@pytest.fixture
async def yard(built: Yard) -> AsyncIterator[Yard]:
    async with deployed(built.url, built.data) as built.server:
        yield built
    with psycopg.connect(built.url) as connection:
        connection.execute("SET session_replication_role = replica")
        for table in TABLES:
            connection.execute(f"DELETE FROM public.{table}")
            connection.execute(f"INSERT INTO public.{table} OVERRIDING SYSTEM VALUE SELECT * FROM saved.{table}")
    for saved in (built.data / "saved").rglob("*"):
        path = built.root / saved.relative_to(built.data / "saved")
        if saved.is_file() and (not path.exists() or path.read_bytes() != saved.read_bytes()):
            shutil.copy(saved, path)
    for path in [*built.root.rglob("*")]:
        if path.is_file() and not (built.data / "saved" / path.relative_to(built.root)).exists():
            path.unlink()


async def test_a_whole_deployment_has_no_problem(yard: Yard) -> None:
    report = await checked(yard.server, deep=True, repair=True)
    assert report.shown()["found"] == []
    assert report.shown()["whole"] is True
    checks = report.checked
    assert (checks["repositories"], checks["commits"], checks["snapshots"], checks["branches"]) == (3, 12, 12, 4)
    assert checks["blobs"] == len(yard.loose.blobs | yard.packed.blobs)
    assert checks["bytes"] > sum(path.stat().st_size for path in yard.files("objects/**/*"))


async def test_what_no_row_names_is_explained(yard: Yard) -> None:
    """Fetch packs, uploads and what dead pushes left are no problems, and are counted."""
    assert (await fetch(yard.server, [yard.loose.head], repository=f"alice/{LOOSE}")).status == 200
    store = yard.server.services.store
    orphan = b"nobody has recorded it"
    object_id = hash_bytes(Kind.BLOB, orphan, TYPED)
    await store.put_batch([(loose_key(object_id, TYPED), orphan), ("staging/1/mpack/" + "ab" * 32, b"half of a pack")])
    report = await checked(yard.server, deep=True)
    assert report.shown()["found"] == []
    assert (report.explained["objects without a row"], report.explained["uploads"]) == (1, 1)
    assert report.explained["fetch packs"] >= 1


def lose(path: Path) -> None:
    path.unlink()


def cut(path: Path, at: int = 3) -> None:
    os.truncate(path, at)


def flip(path: Path, at: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def row(statement: str) -> Callable[[Yard], None]:
    return lambda yard: yard.sql(statement) and None


ONE_BLOB = "blob_id = (SELECT blob_id FROM blobs WHERE pack IS NOT NULL AND size > 9 ORDER BY 1 LIMIT 1)"
CHILD = "(SELECT commit_id FROM commits WHERE generation = 2 ORDER BY 1 LIMIT 1)"
CHANGED = "(SELECT snapshot_id FROM snapshots WHERE base_id IS NOT NULL ORDER BY 1 LIMIT 1)"
WHOLE = "(SELECT snapshot_id FROM snapshots WHERE base_id IS NULL ORDER BY 1 LIMIT 1)"
FLIPPED = "set_byte({0}, length({0}) - 20, 255 - get_byte({0}, length({0}) - 20))"

DAMAGES: dict[str, tuple[Callable[[Yard], None], set[str]]] = {
    "a loose object is lost": (lambda y: lose(y.loose_file), {"object_missing"}),
    "a loose object is cut": (lambda y: cut(y.loose_file), {"object_size"}),
    "a pack is lost": (lambda y: lose(y.pack_file), {"object_missing"}),
    "a pack is cut": (lambda y: cut(y.pack_file, y.packed_at), {"range_outside"}),
    "a range is wrong": (row(f'UPDATE blobs SET "offset" = 99999999 WHERE {ONE_BLOB}'), {"range_outside"}),
    "a row of a blob is lost": (row(f"DELETE FROM blobs WHERE {ONE_BLOB}"), {"row_missing"}),
    "a reference to a blob is lost": (row(f"DELETE FROM blob_refs WHERE {ONE_BLOB}"), {"blob_unheld"}),
    "the facts of a commit are lost": (
        row(f"DELETE FROM commits WHERE commit_id = {CHILD}"), {"commit_missing", "parent_missing"},
    ),
    "a record of a commit is lost": (
        row("DELETE FROM commit_records "
            f"WHERE record_id IN (SELECT record_id FROM commit_refs WHERE commit_id = {CHILD})"),
        {"commit_missing"},
    ),
    "a record of a commit is damaged": (
        row(f"UPDATE commit_records SET record = {FLIPPED.format('record')} "
            f"WHERE record_id IN (SELECT record_id FROM commit_refs WHERE commit_id = {CHILD})"),
        {"commit_missing"},
    ),
    "a generation is wrong": (
        row(f"UPDATE commits SET generation = 7 WHERE commit_id = {CHILD}"), {"commit_wrong"},
    ),
    "a parent is another one": (
        row(f"UPDATE commits SET parents = ARRAY[sha256('x')] WHERE commit_id = {CHILD}"),
        {"parent_missing", "commit_wrong"},
    ),
    "a reference to a parent is lost": (
        row(f"DELETE FROM commit_refs WHERE commit_id = (SELECT parents[1] FROM commits WHERE commit_id = {CHILD})"),
        {"parent_missing"},
    ),
    "a reference to a snapshot is lost": (
        row(f"DELETE FROM snapshot_refs WHERE snapshot_id = {CHANGED}"), {"snapshot_unheld"},
    ),
    "a snapshot is lost": (row(f"DELETE FROM snapshots WHERE snapshot_id = {WHOLE}"), {"snapshot_missing"}),
    "a whole snapshot is damaged": (
        row(f"UPDATE snapshots SET delta = {FLIPPED.format('delta')} WHERE snapshot_id = {WHOLE}"), {"snapshot_wrong"},
    ),
    "changes of a snapshot are damaged": (
        row(f"UPDATE snapshots SET delta = {FLIPPED.format('delta')} WHERE snapshot_id = {CHANGED}"),
        {"snapshot_wrong"},
    ),
    "a full content beside changes is damaged": (
        row(f"UPDATE snapshots SET depth = 0, \"full\" = (SELECT {FLIPPED.format('delta')} FROM snapshots "
            f"WHERE snapshot_id = {WHOLE}) WHERE snapshot_id = {CHANGED}"),
        {"snapshot_wrong"},
    ),
    "a head is not held": (row("UPDATE branches SET head = sha256('x')"), {"head_missing", "branch_log"}),
    "a branch was moved without its log": (
        row(f"UPDATE branches SET head = {CHILD} WHERE repo = (SELECT repo FROM commit_refs WHERE commit_id = {CHILD} "
            "LIMIT 1)"),
        {"branch_log"},
    ),
    "a line of a log is lost": (row("DELETE FROM branch_log WHERE entry = 1"), {"branch_log"}),
    "a line of a log is another one": (row("UPDATE branch_log SET old = sha256('x')"), {"branch_log"}),
    "a record pack is lost": (lambda y: lose(y.record_file), {"records_missing"}),
    "a record pack is not named": (row("UPDATE pushes SET record_pack = NULL"), {"records_unnamed"}),
    "a key is nobody's": (lambda y: (y.root / "packs" / "strange.txt").write_text("x") and None, {"unknown_key"}),
}  # fmt: skip
DEEP: dict[str, tuple[Callable[[Yard], None], set[str]]] = {
    "a loose object is flipped": (lambda y: flip(y.loose_file), {"object_damaged"}),
    "a pack is flipped": (lambda y: flip(y.pack_file, y.packed_at), {"object_damaged", "pack_damaged"}),
    "a record pack is flipped": (lambda y: flip(y.record_file, 300), {"records_damaged"}),
    "a segment of the journal is flipped": (lambda y: flip(y.files("journal/**/*.json")[0]), {"journal_damaged"}),
}


@pytest.mark.parametrize("damage", DEEP)
async def test_what_only_reading_can_find_is_found_only_by_reading(yard: Yard, damage: str) -> None:
    DEEP[damage][0](yard)
    assert told(await checked(yard.server)) == []


MENDED = {
    *DEEP, "a loose object is lost", "a loose object is cut", "a pack is lost", "a pack is cut", "a range is wrong",
    "a row of a blob is lost", "a snapshot is lost", "a whole snapshot is damaged", "changes of a snapshot are damaged",
    "a full content beside changes is damaged", "a record pack is lost", "a record pack is not named",
} - {"a segment of the journal is flipped"}  # fmt: skip


@pytest.mark.parametrize("damage", [*DAMAGES, *DEEP])
async def test_every_damage_is_found_by_its_code_and_mended_if_another_copy_allows_it(
    yard: Yard, damage: str, logs: list[dict]
) -> None:
    plant, codes = (DAMAGES | DEEP)[damage]
    plant(yard)
    there = {path for path in yard.root.rglob("*") if path.is_file()}
    report = await checked(yard.server, deep=damage in DEEP, repair=True)
    assert set(told(report)) == codes, report.shown()["found"]
    assert (report.left == 0) is (damage in MENDED), report.shown()["found"]
    assert there <= {path for path in yard.root.rglob("*") if path.is_file()}  # never deletes anything
    if damage in MENDED:
        await yard.clones()
        assert told(await checked(yard.server)) == []
    logs.clear()


async def test_one_repository_is_looked_at_by_itself(yard: Yard) -> None:
    index = yard.server.services.index
    loose, packed = [await index.find_repository("alice", slug) for slug in (LOOSE, PACKED)]
    flip(yard.loose_file)
    lose(yard.pack_file)
    assert told(await checked(yard.server, repository=loose)) == []
    assert told(await checked(yard.server, repository=loose, deep=True)) == ["object_damaged"]
    found = await checked(yard.server, repository=packed)
    assert told(found) == ["object_missing"]
    assert len({one.object_id for one in found.found}) == len(yard.packed.blobs.keys() - yard.loose.blobs.keys())
    assert (await checked(yard.server, repository=packed, repair=True)).left == 0
    await yard.clones_of(PACKED, yard.packed)


async def test_the_command_ends_with_3_when_something_is_left(yard: Yard, tmp_path: Path) -> None:
    options = ["--database-url", yard.url, "--data-dir", str(yard.data), "--quiet"]

    async def run_fsck(*arguments: str, check: int) -> str:
        run = partial(museworkd, "fsck", *options, *arguments, check=check)
        return (await trio.to_thread.run_sync(run)).stdout

    assert "everything is whole" in await run_fsck(check=0)
    lose(yard.loose_file)
    shown = json.loads(await run_fsck("--json", check=3))
    assert (shown["whole"], shown["by_problem"]) == (False, {"object_missing": 1})
    assert shown["found"][0]["key"] == yard.loose_file.relative_to(yard.root).as_posix()
    assert "object_missing" in await run_fsck("--repo", f"alice/{LOOSE}", check=3)
    assert json.loads(await run_fsck("--json", "--repair", check=0))["mended"] == 1
    assert "whole" in await run_fsck("--deep", check=0)


async def test_nothing_is_reported_while_pushes_collections_and_foldings_go_on(
    database_url: str, tmp_path: Path
) -> None:
    """And what was damaged before is found all the same."""
    async with deployed(database_url, tmp_path) as server:
        services = services_of(server, gc_keep_s=1)
        stop = trio.Event()
        pushed = [0]

        async def keep_pushing(slug: str) -> None:
            repository = await server.make_repository(slug=slug)
            number = 0
            while not stop.is_set():
                number += 1
                made = history(f"{slug}{number}", 2)
                if number % 2:
                    answer = await push(server, made.frames(force=True), repository=f"alice/{slug}")
                    assert answer["type"] == "R" or answer["retryable"], answer
                else:
                    await push_mpack(server, mpack_of(made), made, slug, force=True)
                await run(services, "content.promote", repository.number)
                pushed[0] += 1

        async def keep_collecting() -> None:
            while not stop.is_set():
                await run(services, "gc", DEPLOYMENT, {"keep_s": 0})
                for repository in await services.index.list_repositories(None, everything=True):
                    await run(services, "mpack.gc", repository.number)

        async with trio.open_nursery() as nursery:
            for slug in ("p", "q"):
                nursery.start_soon(keep_pushing, slug)
            nursery.start_soon(keep_collecting)
            for _ in range(3):
                before = pushed[0]
                report = await checked(server, deep=True)
                assert report.shown()["found"] == []
                while pushed[0] == before:
                    await trio.testing.wait_all_tasks_blocked(0.01)
            stop.set()
        assert (await checked(server, deep=True)).shown()["found"] == []


class Moving(WrappedStore):
    """A store in which something happens just before a key is asked for."""

    def __init__(self, inner: ObjectStore, happen: Callable[[], Awaitable[None]]) -> None:
        super().__init__(inner)
        self._happen: Callable[[], Awaitable[None]] | None = happen

    async def size(self, key: str) -> int:
        happen, self._happen = self._happen, None
        if happen is not None:
            await happen()
        return await super().size(key)


async def test_what_is_moved_between_two_looks_is_no_problem(yard: Yard) -> None:
    """A folding whose old pack is deleted after its rows were read, and before the pack was asked for."""
    services = services_of(yard.server)
    index, pack = services.index, yard.pack_file

    async def move() -> None:
        repository = await index.find_repository("alice", PACKED)
        _, places = await index.repository_places(repository.number, b"", 1_000)
        lease = services.environment.uuid()
        await index.take_lease(lease, DEPLOYMENT, services.environment.now(), 300)
        found = [(place, replace(place, pack_id=None, offset=0)) for place in places if place.pack_id is not None]
        assert len(await index.correct_places(lease, TYPED, found)) == len(found) > 3
        pack.unlink()

    repository = await index.find_repository("alice", PACKED)
    moving = replace(services, store=Moving(services.store, move))
    report = await fsck(moving, FsckOptions(repository=repository), Quiet())
    assert report.shown()["found"] == []
    assert not pack.exists()


async def test_a_content_that_waits_and_is_lost_is_mended_from_the_store(database_url: str, tmp_path: Path) -> None:
    """A small push leaves its contents in the index, and a pack of them beside its records."""
    async with deployed(database_url, tmp_path) as server:
        await server.make_repository(slug="x")
        made = history("small", 2)
        assert (await push(server, made.frames(), repository="alice/x"))["type"] == "R"
        assert (await checked(server, deep=True)).shown()["found"] == []
        with psycopg.connect(database_url, autocommit=True) as connection:
            assert connection.execute("UPDATE content_cache SET content = 'another'").rowcount == len(made.blobs)
        report = await checked(server)
        assert told(report) == ["content_missing"]
        assert (await checked(server, repair=True)).left == 0
        assert (await checked(server, deep=True)).shown()["found"] == []
        assert (await clone(server, made.head, repository="alice/x")).blobs == made.blobs


def test_every_problem_is_described_in_the_handbook() -> None:
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "fsck.md").read_text()
    assert [problem for problem in Problem if f"| `{problem.value}` |" not in page] == []
