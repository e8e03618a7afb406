"""What no branch leads to any more is nobody's to read by its id, while it is still held (protocol §8)."""

from __future__ import annotations

import pytest

from tests.clones import clone, fetch
from tests.deployments import with_history
from tests.http_client import ask, push
from tests.muse import Push, blob_id, make_commit, plain, typed
from tests.servers import Server

pytestmark = pytest.mark.usefixtures("expected_errors")


async def readable(server: Server, blob: str) -> bool:
    """Ask for a blob by every way that names it; all say the same."""
    got = await ask(server, "GET", f"/alice/x/o/{blob}", token="alice")
    head = await ask(server, "HEAD", f"/alice/x/o/{blob}", token="alice")
    many = await ask(server, "POST", "/alice/x/fetch/objects", token="alice", json={"object_ids": [blob]})
    statuses = [got.status, head.status, many.status]
    if ":" not in blob:
        body = {"object_ids": [blob], "direction": "get"}
        urls = (await ask(server, "POST", "/alice/x/presign", token="alice", json=body)).value["presigned"]
        statuses.append(200 if blob in urls else 404)
    assert len(set(statuses)) == 1, statuses
    assert statuses[0] in {200, 404}
    if statuses[0] == 404:
        nowhere = await ask(
            server, "GET", f"/alice/x/o/{'5' * 64 if ':' not in blob else 'sha256:' + '5' * 64}", token="alice"
        )
        assert {**got.value, "request_id": 0} == {**nowhere.value, "request_id": 0}
    return statuses[0] == 200


async def delete(server: Server, branch: str, old: str) -> None:
    update = {"branch": branch, "old": old, "new": None, "force": True}
    answer = await ask(server, "POST", "/alice/x/refs", token="alice", json={"updates": [update]})
    assert answer.status == 200, answer


@pytest.mark.parametrize("name", [typed, plain], ids=["typed", "plain"])
async def test_R4_T3_a_blob_only_a_forced_away_commit_has_is_not_given(server: Server, name: object) -> None:
    """What the old and the new history share stays readable; what only the old one had does not, by no way."""
    old = Push(name=name)
    old.commit({"shared": b"shared", "first": b"first", **{f"d/{n}": b"%d" % n for n in range(40)}})
    base = old.head
    old.commit({"shared": b"shared", "secret": b"a password", **{f"d/{n}": b"%d" % n for n in range(40)}})
    await with_history(server, old)
    secret, first, shared = (blob_id(content, name) for content in (b"a password", b"first", b"shared"))
    assert all([await readable(server, blob) for blob in (secret, first, shared)])
    new = Push(name=name)
    new.commit({"shared": b"shared", "instead": b"instead"}, [base], message="instead")
    assert (await push(server, new.frames(force=True)))["type"] == "R"
    assert not await readable(server, secret)
    assert all([await readable(server, blob) for blob in (first, shared, blob_id(b"instead", name))])
    assert (await fetch(server, [old.head])).status == 404
    back = Push(name=name)
    back.commit({"again": b"a password"}, [new.head], message="it is said again")
    assert (await push(server, back.frames()))["type"] == "R"
    assert await readable(server, secret)


async def test_T3_a_deleted_branchs_blobs_go_with_it_unless_another_branch_has_them(server: Server) -> None:
    """A branch that was merged leaves nothing behind; one that was not leaves what nobody may read."""
    main = Push()
    main.commit({"a": b"a"})
    await with_history(server, main)
    merged, lost = Push(branch="merged"), Push(branch="lost")
    merged.commit({"a": b"a", "b": b"of the merged"}, [main.head], message="b")
    lost.commit({"a": b"a", "c": b"of the lost"}, [main.head], message="c")
    for branch in (merged, lost):
        assert (await push(server, branch.frames()))["type"] == "R"
    forward = Push(commits=merged.commits, snapshots=merged.snapshots, blobs=merged.blobs)
    assert (await push(server, forward.frames()))["type"] == "R"
    await delete(server, "merged", merged.head)
    assert await readable(server, blob_id(b"of the merged"))
    assert await readable(server, blob_id(b"of the lost"))
    await delete(server, "lost", lost.head)
    assert await readable(server, blob_id(b"of the merged"))
    assert not await readable(server, blob_id(b"of the lost"))
    await clone(server, merged.head)


async def test_T3_a_blob_brought_by_a_lost_push_is_given_where_a_later_one_named_it(server: Server) -> None:
    """Who brought it does not matter: a later push on another branch named it without sending it."""
    main, first = Push(), Push(branch="first")
    main.commit({"a": b"a"})
    await with_history(server, main)
    first.commit({"x": b"brought by the first"}, [main.head], message="first")
    assert (await push(server, first.frames()))["type"] == "R"
    second = Push(branch="second")
    second.commit({"y": b"brought by the first", "z": b"z"}, [main.head], message="second")
    del second.blobs[blob_id(b"brought by the first")]
    assert (await push(server, second.frames()))["type"] == "R"
    await delete(server, "first", first.head)
    assert await readable(server, blob_id(b"brought by the first"))
    await delete(server, "second", second.head)
    assert not await readable(server, blob_id(b"brought by the first"))
    assert not await readable(server, blob_id(b"z"))


async def test_where_branches_were_is_told_until_it_is_swept(server: Server) -> None:
    """The index gives forced-away and deleted heads, and no others."""
    history = Push()
    history.commit({"a": b"1"})
    await with_history(server, history)
    index = server.services.index
    repository = await index.find_repository("alice", "x")
    assert await index.left_behind(repository.number, 10) == set()
    record = make_commit(history.snapshots[0]["snapshot_id"], [history.head], message="2")
    forward = Push(commits=[record])
    assert (await push(server, forward.frames()))["type"] == "R"
    assert await index.left_behind(repository.number, 10) == set()
    aside = Push(commits=[make_commit(history.snapshots[0]["snapshot_id"], [], message="3")])
    assert (await push(server, aside.frames(force=True)))["type"] == "R"
    left = {bytes.fromhex(record["commit_id"][7:])}
    assert await index.left_behind(repository.number, 10) == left
    assert await index.left_behind(repository.number, 0) == set()

    sweep = await index.begin_sweep(repository.number, server.services.environment.now(), -1_000.0)
    assert sweep is not None
    await index.end_sweep(sweep, server.services.environment.now(), -1_000.0, complete=True)
    assert await index.left_behind(repository.number, 10) == set()
