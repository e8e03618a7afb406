"""``backfill``: what the index has and no record pack is written out, once, as the push itself would have done."""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psycopg
import pytest
import trio

from actors.repair.backfill import Backfill, Backfilled
from storage.errors import StoreUnavailable
from storage.objects.faulty import Call, Fault, FaultyStore
from tests.deployments import deployed
from tests.fsck_runs import checked, told
from tests.handler_runs import promoted, services_of
from tests.http_client import push
from tests.mpack_pushes import mpack_of, push_mpack
from tests.muse import Push, snapshot_id
from tests.servers import Server, museworkd


@dataclass
class Yard:
    server: Server
    url: str
    root: Path

    def sql(self, statement: str) -> list[tuple]:
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement)
            return cursor.fetchall() if cursor.description else []

    def packs(self) -> list[Path]:
        return sorted((self.root / "records").glob("*.mpack"))

    def records(self) -> dict[str, set[bytes]]:
        """What the store alone gives by id, read from the pack format's description."""
        found: dict[str, set[bytes]] = {}
        for path in self.packs():
            data = path.read_bytes()
            assert hashlib.sha256(data).hexdigest() == path.name.removesuffix(".mpack")
            assert hashlib.sha256(data[:-32]).digest() == data[-32:]
            (count,) = struct.unpack_from("<Q", data, 5)
            at = 13
            for _ in range(count):
                name, (size,) = data[at : at + 71].decode(), struct.unpack_from("<Q", data, at + 71)
                found.setdefault(name, set()).add(data[at + 79 : at + 79 + size])
                at += 79 + size
        return found

    async def backfill(self, **more: object) -> Backfilled:
        services = services_of(self.server)
        return await Backfill(services, services.index, **more).run()


def history(seed: str, commits: int = 52) -> Push:
    """Long enough for full contents now and then, with fields no id covers, and directories."""
    made = Push()
    for number in range(commits):
        files = {f"{seed}/{n}": f"{seed} {n}".encode() for n in range(8)}
        made.commit(files | {"changing": f"{seed} {number}".encode()}, message=f"commit {number}")
    return made


def assert_same(after: dict[str, set[bytes]], before: dict[str, set[bytes]]) -> None:
    """Commits byte for byte; snapshots may be told as changes to another one, and hash to their ids all the same."""
    assert after.keys() == before.keys()
    for name, bodies in before.items():
        if all(body.startswith(b"snapshot ") for body in bodies):
            rebuilt(after, name)
            kept = [{key: value for key, value in fields(body).items() if key not in CHANGES} for body in after[name]]
            assert all(
                one in kept for one in ({k: v for k, v in fields(b).items() if k not in CHANGES} for b in bodies)
            )
        else:
            assert after[name] == bodies


CHANGES = {"manifest", "parent_snapshot_id", "delta_upsert", "delta_remove"}


def fields(body: bytes) -> dict:
    return json.loads(body.partition(b"\0")[2])


def rebuilt(records: dict[str, set[bytes]], name: str) -> dict[str, str]:
    """Rebuild a snapshot from every record of it, by what the store has alone."""
    for body in records[name]:
        record = fields(body)
        if "manifest" in record:
            manifest = record["manifest"]
        else:
            base = record["parent_snapshot_id"]
            manifest = dict(rebuilt(records, base)) if base is not None else {}
            manifest = {path: oid for path, oid in manifest.items() if path not in record["delta_remove"]}
            manifest |= record["delta_upsert"]
        assert snapshot_id(manifest, record.get("directories", ())) == name
    return manifest


@pytest.fixture
async def yard(database_url: str, tmp_path: Path) -> AsyncIterator[Yard]:
    async with deployed(database_url, tmp_path) as server:
        made = history("a")
        for slug in ("x", "y"):
            await server.make_repository(slug=slug)
        assert (await push(server, made.frames()))["type"] == "R"
        later = history("b", 3)
        assert (await push_mpack(server, mpack_of(later), later, "y")).status == 200
        assert (await push(server, made.frames(branch="again"), repository="alice/y"))["type"] == "R"
        await promoted(server)
        yield Yard(server, database_url, tmp_path / "store")


def lose_packs(yard: Yard) -> None:
    for path in yard.packs():
        path.unlink()


def forget_names(yard: Yard) -> None:
    yard.sql("UPDATE pushes SET record_pack = NULL")


def lose_both(yard: Yard) -> None:
    lose_packs(yard)
    forget_names(yard)


@pytest.mark.parametrize("loss", [lose_packs, lose_both])
async def test_what_is_written_out_is_what_the_pushes_had_written(yard: Yard, loss: Callable) -> None:
    before = yard.records()
    assert len(before) > 100
    loss(yard)
    done = await yard.backfill()
    assert (done.pushes, done.written, done.left) == (3, 3, 0)
    assert_same(yard.records(), before)
    assert told(await checked(yard.server, deep=True)) == []


async def test_rows_of_an_earlier_version_are_written_out_and_named(yard: Yard) -> None:
    """It wrote record packs, and did not note which."""
    before = yard.records()
    forget_names(yard)
    assert told(await checked(yard.server)) == ["records_unnamed"]
    assert (await yard.backfill()).left == 0
    assert_same(yard.records(), before)
    assert yard.sql("SELECT count(*) FROM pushes WHERE record_pack IS NULL") == [(0,)]
    assert told(await checked(yard.server, deep=True)) == []


async def test_a_second_run_finds_nothing_to_do(yard: Yard) -> None:
    lose_both(yard)
    await yard.backfill()
    packs = yard.packs()
    done = await yard.backfill()
    assert (done.pushes, done.written, done.records, done.left) == (0, 0, 0, 0)
    assert yard.packs() == packs


async def test_a_run_that_was_cut_leaves_what_it_has_written(yard: Yard) -> None:
    before = yard.records()
    lose_both(yard)
    services, puts = services_of(yard.server), itertools.count(1)

    def fail(call: Call) -> Fault | None:
        return Fault(fail_before=True) if call.operation == "put_batch" and next(puts) == 2 else None

    with pytest.raises(StoreUnavailable):
        await Backfill(replace(services, store=FaultyStore(services.store, fail)), services.index).run()
    assert len(yard.packs()) == 1
    done = await yard.backfill()
    assert (done.pushes, done.written, done.left) == (2, 2, 0)
    assert_same(yard.records(), before)


async def test_what_is_damaged_in_the_index_is_left_and_said(yard: Yard, expected_errors: list, logs: list) -> None:
    lose_both(yard)
    yard.sql("UPDATE commit_records SET record = set_byte(record, 30, 0) WHERE record_id = "
             "(SELECT record_id FROM commit_refs ORDER BY commit_id LIMIT 1)")  # fmt: skip
    done = await yard.backfill()
    expected_errors.extend(entry for entry in logs if entry["log_level"] == "error")
    assert done.left >= 1
    assert done.written + done.left == done.pushes == 3
    assert len(done.failures) == done.left
    assert len(yard.packs()) == done.written


async def test_the_rate_is_kept(yard: Yard) -> None:
    lose_both(yard)
    began = trio.current_time()
    done = await yard.backfill(bytes_per_s=200_000.0)
    assert trio.current_time() - began >= done.bytes / 200_000 * 0.9 > 0.1


async def test_nothing_is_written_by_a_dry_run(yard: Yard) -> None:
    lose_both(yard)
    services = services_of(yard.server)
    done = await Backfill(services, services.index).run(dry_run=True)
    assert (done.pushes, done.left, done.written, yard.packs()) == (3, 3, 0, [])


async def test_a_push_that_brought_nothing_lacks_nothing(yard: Yard) -> None:
    made = history("a")
    assert (await push(yard.server, made.frames(branch="same")))["type"] == "R"
    forget_names(yard)
    assert (await yard.backfill()).pushes == 3


async def test_the_command_says_how_many_were_and_are_left(yard: Yard, tmp_path: Path) -> None:
    lose_both(yard)
    options = ["--database-url", yard.url, "--data-dir", str(tmp_path), "--json", "--quiet"]
    first = await trio.to_thread.run_sync(lambda: museworkd("backfill", *options))
    shown = json.loads(first.stdout)
    assert (shown["pushes"], shown["written"], shown["left"]) == (3, 3, 0)
    assert shown["records"] > 100
