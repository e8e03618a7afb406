"""Moving to another store while clients push: nothing that was acknowledged is lost, and nothing damaged goes along."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from museworkd.assembly import open_store
from museworkd.cli.migrate_store_command import migrate_store, store_config
from museworkd.client.progress import Quiet
from museworkd.config import Config, ConfigError
from storage.environment import SystemEnvironment
from storage.layout import loose_key
from storage.object_store import ObjectStore
from storage.objects.s3 import S3Store
from storage.objects.wrapped import WrappedStore
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from tests import s3_stores
from tests.clones import clone
from tests.fsck_runs import checked
from tests.handler_runs import promoted
from tests.http_client import push
from tests.muse import Push
from tests.s3_server import S3Server
from tests.servers import Server, museworkd, serving
from wire.errors import Refusal
from wire.ids import Kind, Scheme, hash_bytes

TYPED = Scheme.TYPED
LARGE = bytes(range(256)) * 8_300
"""More than goes through memory."""


def config_of(tmp_path: Path, s3: S3Server | None = None) -> Config:
    config = Config(data_dir=tmp_path / "data")
    if s3 is None:
        return config
    return replace(config, store=replace(s3_stores.store_config(s3, tmp_path), url=""))


@asynccontextmanager
async def opened(config: Config, url: str) -> AsyncIterator[ObjectStore]:
    store = await open_store(store_config(config, url), SystemEnvironment())
    yield store
    while isinstance(store, WrappedStore):
        store = store.inner
    if isinstance(store, S3Store):
        store.requests.close()


@asynccontextmanager
async def served(database_url: str, config: Config, url: str, tmp_path: Path) -> AsyncIterator[Server]:
    async with (
        opened(config, url) as store,
        PostgresIndex(DatabaseSettings(database_url)) as index,
        serving(index, store, tmp_path) as server,
    ):
        yield server


async def keys(config: Config, url: str) -> dict[str, int]:
    async with opened(config, url) as store:
        return {stored.key: stored.size async for stored in store.scan("")}


async def moved(config: Config, source: str, target: str, **more: bool) -> dict:
    return await migrate_store(config, source, target, Quiet(), **({"final": False, "verify": False} | more))


def grown(number: int) -> Push:
    made = Push()
    made.commit({f"{number}/{n}": f"{number} {n}".encode() * 30 for n in range(3)} | {"large": LARGE, "empty": b""})
    return made


async def move_while_pushing(database_url: str, tmp_path: Path, config: Config, source: str, target: str) -> None:
    """The documented way, with pushes going on until the daemon is stopped."""
    acknowledged: dict[str, Push] = {}
    async with served(database_url, config, source, tmp_path) as server:
        stop, some = trio.Event(), trio.Event()

        async def keep_pushing() -> None:
            number = len(await server.services.index.list_repositories(None, everything=True))
            while not stop.is_set():
                number += 1
                made, slug = grown(number), f"r{number}"
                await server.make_repository(slug=slug)
                assert (await push(server, made.frames(), repository=f"alice/{slug}"))["type"] == "R"
                acknowledged[slug] = made
                some.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_pushing)
            await some.wait()
            first = await moved(config, source, target)
            assert first["passes"][0]["copied"] > 0
            stop.set()
        await promoted(server)
    last = await moved(config, source, target, final=True)
    assert (last["settled"], last["passes"][-1]["copied"]) == (True, 0)
    assert (await moved(config, source, target, final=True))["passes"][0]["copied"] == 0
    there = await keys(config, source)
    assert {key: size for key, size in (await keys(config, target)).items() if key in there} == there
    async with served(database_url, config, target, tmp_path) as server:
        for slug, made in acknowledged.items():
            assert (await clone(server, made.head, repository=f"alice/{slug}")).blobs == made.blobs
        assert (await checked(server, deep=True)).shown()["found"] == []


async def test_a_directory_is_moved_to_another_while_clients_push(database_url: str, tmp_path: Path) -> None:
    urls = [f"file://{tmp_path}/old", f"file://{tmp_path}/new%20one"]
    await move_while_pushing(database_url, tmp_path, config_of(tmp_path), *urls)
    assert (tmp_path / "new one" / "museworkd-store").exists()


async def test_a_directory_is_moved_to_s3_and_back(database_url: str, tmp_path: Path, s3_server: S3Server) -> None:
    config = config_of(tmp_path, s3_server)
    bucket = f"s3://{s3_server.new_bucket()}/museworkd"
    await move_while_pushing(database_url, tmp_path, config, f"file://{tmp_path}/old", bucket)
    await move_while_pushing(database_url, tmp_path, config, bucket, f"file://{tmp_path}/again")


async def filled(tmp_path: Path) -> tuple[Config, dict[str, bytes]]:
    config = config_of(tmp_path)
    contents = {}
    for number in range(200):
        content = b"%d" % number * 50 if number else LARGE
        contents[loose_key(hash_bytes(Kind.BLOB, content, TYPED), TYPED)] = content
    async with opened(config, f"file://{tmp_path}/old") as store:
        await store.put_batch(list(contents.items()))
    return config, contents


async def test_a_copy_that_was_cut_goes_on_and_copies_nothing_twice(tmp_path: Path) -> None:
    config, contents = await filled(tmp_path)
    source, target = f"file://{tmp_path}/old", f"file://{tmp_path}/new"
    some = dict(list(contents.items())[:150])
    async with opened(config, target) as store:
        await store.put_batch(list(some.items()))
    cut = tmp_path / "new" / next(iter(some))
    cut.write_bytes(cut.read_bytes()[:-1])
    done = (await moved(config, source, target))["passes"]
    assert (done[0]["copied"], done[0]["there"]) == (51, 149)
    assert await keys(config, target) == {key: len(content) for key, content in contents.items()}


async def test_damaged_bytes_are_not_copied_and_are_named(tmp_path: Path, expected_errors: list, logs: list) -> None:
    config, contents = await filled(tmp_path)
    bad = sorted(contents, key=lambda key: len(contents[key]))[-2:]  # a small one, and one that goes by way of a file
    for key in bad:
        path = tmp_path / "old" / key
        path.write_bytes(b"x" + path.read_bytes()[1:])
    done = await moved(config, f"file://{tmp_path}/old", f"file://{tmp_path}/new", final=True)
    expected_errors.extend(entry for entry in logs if entry.get("key") in bad)
    assert (done["settled"], sorted(done["passes"][-1]["damaged_keys"])) == (False, sorted(bad))
    assert (await keys(config, f"file://{tmp_path}/new")).keys() == contents.keys() - set(bad)


async def test_what_went_wrong_in_the_target_is_found_by_verifying(tmp_path: Path) -> None:
    config, contents = await filled(tmp_path)
    source, target = f"file://{tmp_path}/old", f"file://{tmp_path}/new"
    await moved(config, source, target)
    key = max(contents)
    (tmp_path / "new" / key).write_bytes(bytes(len(contents[key])))
    assert (await moved(config, source, target, final=True))["passes"][0]["copied"] == 0
    assert (await moved(config, source, target, final=True, verify=True))["passes"][0]["copied"] == 1
    assert (tmp_path / "new" / key).read_bytes() == contents[key]


async def test_a_store_of_another_deployment_is_not_written_to(tmp_path: Path) -> None:
    config, _ = await filled(tmp_path)
    epoch = '{"deployment":"%s","ended":{},"generation":1,"version":1}'
    for name, number in (("old", "1" * 8), ("new", "2" * 8)):
        async with opened(config, f"file://{tmp_path}/{name}") as store:
            said = (epoch % f"{number}-0000-4000-8000-000000000000").encode()
            await store.put_batch([("deployment/epoch.json", said)])
    with pytest.raises(Refusal, match="another deployment"):
        await moved(config, f"file://{tmp_path}/old", f"file://{tmp_path}/new")
    assert len(await keys(config, f"file://{tmp_path}/new")) == 1


@pytest.mark.parametrize(
    ("source", "target"),
    [("file:///{}/old", "file:///{}/old"), ("file:///{}/nothing", "file:///{}/new")],
)
async def test_what_cannot_be_copied_is_said_at_once(tmp_path: Path, source: str, target: str) -> None:
    config, _ = await filled(tmp_path)
    with pytest.raises(Refusal):
        await moved(config, source.format(tmp_path), target.format(tmp_path))
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize("url", ["file://relative/path", "/a/path", "s3://", "http://x/y", "file:///", "s3://b/../c"])
def test_a_url_of_no_store_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        store_config(Config(), url)


def test_the_command_ends_by_saying_what_to_change(tmp_path: Path) -> None:
    trio.run(filled, tmp_path)
    stores = [f"file://{tmp_path}/old", f"file://{tmp_path}/new", "--data-dir", str(tmp_path / "data")]
    first = museworkd("migrate-store", *stores)
    assert "--final" in first.stdout
    last = museworkd("migrate-store", *stores, "--final")
    assert f'set path = "{tmp_path}/new"' in last.stdout
