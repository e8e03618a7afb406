"""An earlier attempt of a push, or another push meanwhile, must not lend an accepted push what is not there (I1)."""

from __future__ import annotations

import fcntl
import uuid

import pytest

from museworkd.http.uploads import Uploads
from tests import containers
from tests.clones import clone
from tests.deployments import with_history
from tests.http_client import ask, connected, head_bytes, push
from tests.mpack_pushes import push_mpack
from tests.muse import Push, bare, blob_id, frame, make_commit, make_snapshot, plain
from tests.presigned_pushes import hold, records_only
from tests.security.test_quota import no_push_is_left
from wire.errors import Code, Refusal

pytestmark = pytest.mark.usefixtures("expected_errors")

MORE_THAN_A_BATCH = [make_snapshot({}, [f"d{number}"]) for number in range(230)]


async def cut(server, data: bytes) -> None:
    """Send a push without its end, and go when it has been taken as far as it goes."""
    async with connected(server) as connection:
        headers = {"content-length": str(len(data) + 100)}
        await connection.send(head_bytes("POST", "/alice/x/push/stream", token="alice", headers=headers) + data)
    await no_push_is_left(server)


async def test_a_snapshot_of_a_cut_attempt_is_whole_or_not_there(server):
    await server.make_repository()
    history, push_id = Push(), str(uuid.uuid4())
    blob = blob_id(b"the blob")
    history.blobs[blob] = b"the blob"
    first = make_snapshot({"a.txt": blob})
    commit = make_commit(first["snapshot_id"])
    history.commits.append(commit)
    records = [frame("C", commits=[], snapshots=[first, *MORE_THAN_A_BATCH[:60]], snapshot_deltas=[])]
    records.append(frame("C", commits=[], snapshots=MORE_THAN_A_BATCH[60:], snapshot_deltas=[]))
    await cut(server, history.header(push_id=push_id) + b"".join([*history.object_frames(), *records]))
    again = history.header(push_id=push_id) + frame("C", commits=[commit], snapshots=[], snapshot_deltas=[])
    said = await push(server, again + history.end(n_objects=0))
    if said["type"] == "R":
        assert (await clone(server, commit["commit_id"])).blobs == history.blobs
    else:
        assert said["error"] == "missing_objects"


async def test_T13_what_an_attempt_of_one_scheme_recorded_counts_for_nothing_in_the_other(server):
    await server.make_repository()
    push_id, named = str(uuid.uuid4()), MORE_THAN_A_BATCH[0]["snapshot_id"]
    typed = Push()
    typed.commits.append(make_commit(named))
    halves = [MORE_THAN_A_BATCH[:115], MORE_THAN_A_BATCH[115:]]
    frames = [frame("C", commits=[], snapshots=half, snapshot_deltas=[]) for half in halves]
    await cut(server, typed.header(push_id=push_id) + b"".join(frames))
    other = Push(name=plain)
    other.commits.append(make_commit(bare(named), [], plain))
    frames = [other.header(push_id=push_id), frame("C", commits=other.commits, snapshots=[], snapshot_deltas=[])]
    said = await push(server, b"".join(frames) + other.end(n_objects=0))
    assert (said["type"], said["error"]) in {("X", "malformed"), ("X", "missing_objects")}
    assert (await ask(server, "GET", "/alice/x/refs", token="alice")).value["branch_heads"] == {}


async def test_a_held_blob_may_be_accepted_with_another_push_before_it_is_claimed(server, monkeypatch):
    base = await with_history(server)
    ours, theirs = Push(), Push(branch="other")
    for history in (ours, theirs):
        files = {f"f{number}": b"content %d" % number for number in range(5)}
        history.commit(files, [base.head], message=history.branch)
    await hold(server, ours.blobs)
    index = server.services.index
    claim, others = type(index).claim_blobs, []

    async def late(self: object, *arguments: object) -> object:
        if not others:
            others.append(True)
            assert (await push(server, records_only(theirs)))["type"] == "R"
        return await claim(self, *arguments)

    monkeypatch.setattr(type(index), "claim_blobs", late)
    said = await push(server, records_only(ours))
    assert said["type"] == "R", said
    assert (await clone(server, ours.head)).blobs.keys() >= ours.blobs.keys()


async def test_a_branch_that_moves_while_a_push_arrives_is_judged_where_it_is(server):
    base = await with_history(server)
    middle, last = Push(), Push()
    middle.commit({"m": b"middle"}, [base.head])
    last.commit({"l": b"last"}, [middle.head])
    frames = last.frames(expected_head=middle.head)
    head, rest = frames[: len(frames) - len(last.end()) - 10], frames[len(frames) - len(last.end()) - 10 :]
    async with connected(server) as connection:
        headers = {"content-length": str(len(frames))}
        await connection.send(head_bytes("POST", "/alice/x/push/stream", token="alice", headers=headers) + head)
        assert (await connection.begin_answer("POST"))[0] == 200
        assert (await push(server, middle.frames()))["type"] == "R"
        await connection.send(rest)
        await connection.rest()
    assert (await ask(server, "GET", "/alice/x/refs", token="alice")).value["branch_heads"] == {"main": last.head}


async def test_T5_an_upload_that_was_put_into_the_store_is_not_written_to(tmp_path, monkeypatch):
    """Between opening a partial upload and locking it, the connection before may have completed it."""
    uploads, flock = Uploads(tmp_path), fcntl.flock
    (tmp_path / "name").write_bytes(b"complete")

    def locked(fd: int, how: int) -> None:
        (tmp_path / "name").replace(tmp_path / "an object of the store")
        flock(fd, how)

    monkeypatch.setattr("museworkd.http.uploads.fcntl.flock", locked)
    with pytest.raises(Refusal) as caught:
        async with uploads.hold("name") as partial:
            await partial.restart()
    assert caught.value.code is Code.BUSY
    assert (tmp_path / "an object of the store").read_bytes() == b"complete"


async def test_tags_of_an_mpack_are_no_reason_to_refuse_it(server):
    """Protocol §3: section 4. They are kept in the record pack; a tag of a commit that is not there is refused."""
    base = await with_history(server)
    history = Push()
    history.commit({"t": b"tagged"}, [base.head])

    def with_tag(commit: str) -> bytes:
        tag = {"tag_id": "t1", "repo_id": "r", "commit_id": commit, "tag": "v1", "created_at": "2026-01-01"}
        return containers.mpack([
            (containers.OBJECTS, containers.pack(list(history.blobs.items()))),
            (containers.SNAPSHOTS, containers.record_section([*history.snapshots, *history.deltas])),
            (containers.COMMITS, containers.record_section(history.commits)),
            (containers.TAGS, containers.record_section([tag])),
        ])  # fmt: skip

    assert (await push_mpack(server, with_tag("sha256:" + "5e" * 32), history)).error == "missing_parents"
    assert (await push_mpack(server, with_tag(history.head), history)).status == 200
    assert (await clone(server, history.head)).blobs.keys() >= history.blobs.keys()
