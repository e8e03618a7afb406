"""What earlier servers of this protocol did wrong, by number: storing, moving branches, and reading back."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import zstandard

from museworkd.client.checkout import checkout
from museworkd.client.errors import ClientError
from museworkd.client.fetch import clone as client_clone
from museworkd.client.progress import Quiet
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Remote
from storage.environment import SeededEnvironment
from storage.layout import loose_key
from storage.memory.index import MemoryIndex
from storage.objects.filesystem import FilesystemStore
from storage.objects.memory import MemoryStore
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from tests.clones import clone, fetch
from tests.damage import keys
from tests.deployments import two_commits, with_history
from tests.growing import WAYS, RefusedError
from tests.handler_runs import promoted
from tests.http_client import ask, push
from tests.muse import Push, blob_id, frame, make_commit, make_snapshot
from tests.refused_pushes import X, around, refused
from tests.servers import TOKENS, Server, serving
from wire.ids import Scheme, parse_id

pytestmark = pytest.mark.usefixtures("expected_errors")

NOTHING = frame("E", n_objects=0, n_commits=0)


async def heads(server: Server, slug: str = "x") -> dict[str, str]:
    return (await ask(server, "GET", f"/alice/{slug}/refs", token="alice")).value["branch_heads"]


def key_of(oid: str) -> str:
    return loose_key(parse_id(oid, Scheme.TYPED), Scheme.TYPED)


@pytest.mark.parametrize("encoding", ["raw", "zlib", "zstd"])
async def test_R1_other_bytes_for_an_id_that_is_stored_already_are_refused_and_change_nothing(server, encoding):
    theirs = await with_history(server, slug="theirs")
    await server.make_repository()
    content = {"raw": bytes, "zlib": zlib.compress, "zstd": zstandard.compress}[encoding](b"poison")
    for oid in theirs.blobs:
        poisoned = frame("O", object_id=oid, encoding=encoding, content=content)
        await refused(server, around([poisoned], 1), "bad_object_hash", oid)
    assert (await clone(server, theirs.head, repository="alice/theirs")).blobs == theirs.blobs


async def test_R2_an_object_another_repository_pushed_first_is_in_this_repositorys_clone(server):
    await with_history(server, slug="first")
    mine = two_commits()
    mine.commit({"a.txt": b"hello\n", "mine": b"mine"}, message="mine")
    await with_history(server, mine, slug="second")
    assert (await ask(server, "DELETE", "/api/repos/alice/first", token="alice")).status == 200
    assert (await clone(server, mine.head, repository="alice/second")).blobs == mine.blobs
    for oid, content in mine.blobs.items():
        assert (await ask(server, "GET", f"/alice/second/o/{oid}", token="alice")).body == content


async def test_R2_an_object_of_another_repositorys_refused_push_is_in_this_repositorys_clone(server):
    await server.make_repository(slug="first")
    refused_push = two_commits()
    said = await push(server, refused_push.frames()[:-1] + b"\x09", repository="alice/first")  # its end is damaged
    assert said["type"] == "X"
    history = await with_history(server, two_commits())
    assert (await clone(server, history.head)).blobs == history.blobs


@pytest.mark.parametrize("way", WAYS)
async def test_R2_R12_R13_R15_what_comes_by_any_way_is_there_at_once_and_comes_back_whole(server, way):
    """Another repository has pushed all of it before, and is deleted; no worker has run; nothing is asked twice."""
    oid = blob_id(b"")
    first = make_snapshot({"empty": oid, "a": X}, ["only/a/directory"])
    second = make_snapshot({"empty": oid, "a": X, "dir/empty": oid}, ["only/a/directory", "other"])
    change = {
        "snapshot_id": second["snapshot_id"], "parent_snapshot_id": first["snapshot_id"], "delta_remove": [],
        "delta_upsert": {"dir/empty": oid}, "directories": second["directories"],
    }  # fmt: skip
    history = Push(blobs={oid: b"", X: b"x"}, snapshots=[first], deltas=[change])
    history.commits.append(make_commit(first["snapshot_id"]))
    history.commits.append(make_commit(second["snapshot_id"], [history.head]))
    for slug in ("theirs", "x"):
        await server.make_repository(slug=slug)
        said = await WAYS[way](server, history, str(uuid.uuid4()), slug)
        assert (said["type"], said["blobs_written"], said["commits_written"]) == ("R", 2, 2)
        for blob, content in history.blobs.items():
            assert (await ask(server, "GET", f"/alice/{slug}/o/{blob}", token="alice")).body == content
    assert (await ask(server, "DELETE", "/api/repos/alice/theirs", token="alice")).status == 200
    copy = await clone(server, history.head)
    assert copy.files(history.head) == {"empty": b"", "a": b"x", "dir/empty": b""}
    assert copy.snapshots[second["snapshot_id"]]["directories"] == second["directories"]
    assert copy.snapshots[first["snapshot_id"]]["directories"] == first["directories"]


async def test_R6_of_37_pushes_at_once_through_two_daemons_one_moves_the_branch(database, tmp_path):
    async with AsyncExitStack() as stack:
        indexes, store = [MemoryIndex()] * 2, MemoryStore()
        if database is not None:
            store = await FilesystemStore.open(tmp_path / "store")
            opened = [PostgresIndex(DatabaseSettings(database)) for _ in range(2)]
            indexes = [await stack.enter_async_context(index) for index in opened]
        daemons = [
            await stack.enter_async_context(serving(index, store, tmp_path / f"{number}", SeededEnvironment(1)))
            for number, index in enumerate(indexes)
        ]  # of one seed, because both make the tokens
        base = await with_history(daemons[0])
        said: dict[str, dict] = {}

        async def move(number: int) -> None:
            history = Push()
            history.commit({"f": b"%d" % number}, [base.head], message=f"by {number}")
            frames = history.frames(push_id=str(uuid.UUID(int=number)))
            said[history.head] = await push(daemons[number % 2], frames)

        async with trio.open_nursery() as nursery:
            for number in range(37):
                nursery.start_soon(move, number)
        won = [head for head, answer in said.items() if answer["type"] == "R"]
        assert len(won) == 1
        assert [await heads(daemon) for daemon in daemons] == [{"main": won[0]}] * 2
        assert {answer["error"] for answer in said.values() if answer["type"] == "X"} == {"non_fast_forward"}
        number = (await indexes[0].find_repository("alice", "x")).number
        log = [entry.new for entry in await indexes[0].branch_log(number, "main")]
        assert sorted(log) == sorted(parse_id(head, Scheme.TYPED) for head in (base.head, won[0]))


async def test_R7_a_fast_forward_is_judged_by_the_servers_history_and_not_by_what_was_sent(server):
    history = Push()
    for number in range(30):
        history.commit({"f": b"%d" % number}, message=f"{number}")
    await with_history(server, history)
    aside = Push(commits=list(history.commits), snapshots=list(history.snapshots), blobs=dict(history.blobs))
    aside.commit({"f": b"aside"}, [history.commits[3]["commit_id"]], message="aside")
    alone = Push(commits=aside.commits[-1:], snapshots=aside.snapshots[-1:], blobs={blob_id(b"aside"): b"aside"})
    middle = history.commits[20]["commit_id"]
    for frames in (
        aside.frames(),  # with the branch's own head in it
        aside.frames(expected_head=history.head),
        alone.frames(),  # without anything of the branch
        frame("H", version=2, branch="main", head=middle, force=False) + NOTHING,
    ):
        said = await push(server, frames)
        assert (said["type"], said["error"]) == ("X", "non_fast_forward")
        assert await heads(server) == {"main": history.head}
    forward = Push()
    forward.commit({"f": b"forward"}, [middle, history.head], message="a merge that the server alone can judge")
    assert (await push(server, forward.frames()))["type"] == "R"
    assert await heads(server) == {"main": forward.head}


@pytest.mark.parametrize("way", ["mpack", "presigned"])
async def test_R7_a_push_by_any_way_is_judged_by_the_servers_history(server, way):
    """What is beside the branch is refused, although the branch's own head was sent along."""
    history = await with_history(server)
    aside = Push(commits=list(history.commits), snapshots=list(history.snapshots), blobs=dict(history.blobs))
    aside.commit({"f": b"aside"}, [history.commits[0]["commit_id"]], message="aside")
    try:
        said = await WAYS[way](server, aside, str(uuid.uuid4()), "x")
    except RefusedError as refused:
        said = refused.said
    assert (said["type"], said["error"]) == ("X", "non_fast_forward")
    assert await heads(server) == {"main": history.head}


async def test_R8_F4_an_object_the_store_has_lost_is_an_error_and_never_left_out(server, tmp_path):
    history = await with_history(server)
    await promoted(server)
    lost = blob_id(b"hello again\n")
    await server.services.store.delete([key_of(lost), *await keys(server.services.store, "packs")])  # every copy
    for answer in (
        await fetch(server, [history.head]),
        await fetch(server, [history.head], [history.commits[0]["commit_id"]]),
        await ask(server, "GET", f"/alice/x/o/{lost}", token="alice"),
    ):
        assert (answer.status, answer.error) == (503, "store_damaged")
        assert lost[-60:] in answer.value["detail"]
    remote = Remote(f"{server.url}/alice/x", TOKENS["alice"])
    with pytest.raises(ClientError):
        await client_clone(remote, tmp_path / "clone", Quiet())
    assert not (tmp_path / "clone").exists()


async def test_R9_a_torn_write_of_before_is_replaced_when_the_object_is_pushed_again(server):
    history = two_commits()
    torn = [(key_of(oid), content[:3]) for oid, content in history.blobs.items() if content]
    await server.services.store.put_batch(torn)
    await with_history(server, history)
    assert (await clone(server, history.head)).blobs == history.blobs


@pytest.mark.parametrize("left", [b"", b"hel", b"hel\0\0\0"], ids=ascii)
async def test_R9_a_torn_object_is_served_as_an_error(server, left):
    history = await with_history(server)
    await promoted(server)
    torn = blob_id(b"hello\n")
    await server.services.store.put_batch([(key_of(torn), left)])
    await server.services.store.delete(await keys(server.services.store, "packs"))
    assert (await ask(server, "GET", f"/alice/x/o/{torn}", token="alice")).error == "store_damaged"
    assert (await fetch(server, [history.head])).error == "store_damaged"


async def test_R12_R13_a_checked_out_clone_has_empty_files_and_empty_directories(server, tmp_path):
    await server.make_repository()
    oid = blob_id(b"")
    first = make_snapshot({"empty": oid}, ["only/a/directory"])
    second = make_snapshot({"empty": oid, "dir/empty": oid}, ["only/a/directory", "other"])
    delta = {
        "snapshot_id": second["snapshot_id"], "parent_snapshot_id": first["snapshot_id"], "delta_remove": [],
        "delta_upsert": {"dir/empty": oid}, "directories": second["directories"],
    }  # fmt: skip
    history = Push(blobs={oid: b""}, snapshots=[first], deltas=[delta])
    history.commits.append(make_commit(first["snapshot_id"]))
    history.commits.append(make_commit(second["snapshot_id"], [history.head]))
    assert (await push(server, history.frames()))["type"] == "R"
    target = tmp_path / "clone"
    await client_clone(Remote(f"{server.url}/alice/x", TOKENS["alice"]), target, Quiet())
    with LocalRepository(target) as repository:
        await checkout(repository, Quiet())
    assert sorted(shown(target)) == ["dir/", "dir/empty", "empty", "only/", "only/a/", "only/a/directory/", "other/"]
    assert (target / "empty").read_bytes() == (target / "dir/empty").read_bytes() == b""


def shown(root: Path) -> list[str]:
    found = [path for path in root.rglob("*") if ".muse" not in path.relative_to(root).parts]
    return [f"{path.relative_to(root)}{'/' if path.is_dir() else ''}" for path in found]


def noted_puts(server: Server, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keys that are put from now on, but for the journal's."""
    puts: list[str] = []
    put_batch = server.services.store.put_batch

    async def noted(items: Sequence[tuple[str, bytes]]) -> None:
        puts.extend(key for key, _ in items if not key.startswith("journal/"))
        await put_batch(items)

    monkeypatch.setattr(server.services.store, "put_batch", noted)
    return puts


async def test_R16_a_push_of_a_second_branch_needs_nothing_and_writes_nothing(server, monkeypatch):
    history = await with_history(server)
    puts = noted_puts(server, monkeypatch)
    branch = frame("H", version=2, branch="second", head=history.head, force=False) + NOTHING
    for frames, skipped in ((branch, 0), (history.frames(branch="third"), len(history.blobs))):
        said = await push(server, frames)
        assert said["type"] == "R"
        assert (said["commits_written"], said["snapshots_written"], said["blobs_written"]) == (0, 0, 0)
        assert said["blobs_skipped"] == skipped
    # what is sent again is verified again: its records may be put once more, its blobs never
    assert len(puts) <= 1
    more = Push()
    more.commit({"f": b"x"}, [history.head])
    said = await push(server, more.frames(branch="second"))
    assert (said["commits_written"], said["snapshots_written"], said["blobs_written"]) == (1, 1, 1)
    assert await heads(server) == {"main": history.head, "second": more.head, "third": history.head}
    assert (await clone(server, more.head)).files(more.head) == {"f": b"x"}
    assert X in (await clone(server, more.head)).blobs


@pytest.mark.parametrize("way", WAYS)
async def test_R16_a_second_branch_by_any_way_writes_no_row_and_no_blob_again(server, way):
    """The same history under another name is taken as it is there."""
    history = await with_history(server)
    said = await WAYS[way](server, replace(history, branch="second"), str(uuid.uuid4()), "x")
    assert said["type"] == "R"
    assert (said["commits_written"], said["snapshots_written"], said["blobs_written"]) == (0, 0, 0)
    assert await heads(server) == {"main": history.head, "second": history.head}
    assert (await clone(server, history.head)).blobs == history.blobs
