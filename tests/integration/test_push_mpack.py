"""A push by one file: what comes in that way is what a push by stream brings, and is verified like it."""

from __future__ import annotations

import random
import uuid

import pytest
import trio

from museworkd.http import guard
from storage.memory.index import MemoryIndex
from storage.objects.memory import MemoryStore
from tests import containers
from tests.clones import clone
from tests.deployments import two_commits, with_history
from tests.http_client import PATIENCE_S, ask, push
from tests.mpack_pushes import bundle_of, mpack_of, presign, push_mpack, put, target_of, unpack, upload
from tests.muse import Push, blob_id, make_commit, random_history
from tests.servers import serving

pytestmark = pytest.mark.usefixtures("expected_errors")
ZEROS = "sha256:" + "0" * 64


async def same_as(server, history: Push, slug: str = "x") -> None:
    copy = await clone(server, history.head, repository=f"alice/{slug}")
    assert copy.blobs == history.blobs
    assert copy.commits == {commit["commit_id"]: commit for commit in history.commits}
    for blob, content in history.blobs.items():
        assert (await ask(server, "GET", f"/alice/{slug}/o/{blob}", token="alice")).body == content


FORMS = {
    "raw": mpack_of,
    "zstd": lambda history: mpack_of(history, zstd=True),
    "records first": lambda history: mpack_of(history, records_first=True),
    "bundle": bundle_of,
    "zlib bundle": lambda history: bundle_of(history, "zlib"),
    "zstd bundle": lambda history: bundle_of(history, "zstd"),
}


@pytest.mark.parametrize("form", FORMS)
async def test_R15_what_was_unpacked_can_be_cloned_at_once(server, form):
    await server.make_repository()
    history = random_history(5)
    answer = await push_mpack(server, FORMS[form](history), history)
    assert answer.status == 200, answer.value
    said = answer.value
    assert (said["branch"], said["head"]) == ("main", history.head)
    assert said["commits_written"] == len(history.commits)
    assert said["snapshots_written"] == len(history.snapshots)
    assert (said["blobs_written"], said["blobs_skipped"]) == (len(history.blobs), 0)
    assert said["timings_ms"]["elapsed"] > 0
    await same_as(server, history)


async def test_large_contents_travel_by_every_form(server):
    await server.make_repository()
    history = Push()
    history.commit({"large": bytes(range(256)) * 12_000, "empty": b"", "small": b"x"})
    for number, form in enumerate(FORMS.values()):
        history.commit({"large": bytes([number]) * 3_000_000})
        answer = await push_mpack(server, form(history), history)
        assert answer.status == 200, answer.value
        assert answer.value["blobs_written"] == (4 if number == 0 else 1)
    await same_as(server, history)


@pytest.mark.parametrize("way", ["stream", "mpack", "bundle"])
async def test_a_large_tree_comes_back_as_it_was_sent(server, way):
    await server.make_repository()
    files = {f"d{n * 7919 % 97}/é file {n * 7919 % 20_000:05}": b"%d" % (n % 5) for n in range(20_000)}
    history = Push()
    history.commit(files)
    for number in range(3):
        changed = {
            path: b"new" if at % 4_000 == number else content for at, (path, content) in enumerate(files.items())
        }
        changed[f"added {number}"] = b"added"
        del changed[list(files)[100 * number + 50]]
        history.commit(changed)
    if way == "stream":
        assert (await push(server, history.frames()))["type"] == "R"
    else:
        data = mpack_of(history) if way == "mpack" else bundle_of(history)
        assert (await push_mpack(server, data, history)).status == 200
    await same_as(server, history)


async def test_R2_what_another_repository_has_is_written_for_this_one_too(server):
    history = await with_history(server, random_history(6), slug="first")
    for slug in ("second", "third"):
        await server.make_repository(slug=slug)
        answer = await push_mpack(server, mpack_of(history), history, slug)
        assert answer.value["blobs_written"] == len(history.blobs)
        await same_as(server, history, slug)


async def test_a_second_push_builds_on_the_first_one(server):
    history = await with_history(server, two_commits())
    more = Push()
    more.commit({"a.txt": b"by mpack", "empty": b""}, [history.head])
    answer = await push_mpack(server, mpack_of(more), more)
    assert answer.status == 200, answer.value
    assert answer.value["blobs_skipped"] == 1
    assert (await ask(server, "GET", "/alice/x/refs", token="alice")).value["branch_heads"] == {"main": more.head}


async def test_a_repeated_push_gets_its_first_verdict(server):
    await server.make_repository()
    history, push_id = two_commits(), str(uuid.uuid4())
    data = mpack_of(history)
    first = await push_mpack(server, data, history, push_id=push_id)
    again = await unpack(server, data, history, push_id=push_id)
    assert (again.status, again.value) == (200, first.value)
    state = await ask(server, "GET", f"/alice/x/push/{push_id}", token="alice")
    assert state.value == {**first.value, "status": "accepted"}


async def test_the_state_of_a_push_is_its_pushers_business(server):
    await server.make_repository(public=True)
    push_id = str(uuid.uuid4())
    await push_mpack(server, mpack_of(two_commits()), two_commits(), push_id=push_id)
    for token, target, error in [
        (None, push_id, "unauthenticated"), ("bob", push_id, "forbidden"), ("alice", str(uuid.uuid4()), "not_found"),
        ("alice", "no-uuid", "malformed"),
    ]:  # fmt: skip
        assert (await ask(server, "GET", f"/alice/x/push/{target}", token=token)).error == error


async def test_F30_an_upload_goes_on_where_it_broke_off(server):
    await server.make_repository()
    history = random_history(7)
    data = mpack_of(history)
    target = target_of((await presign(server, data)).value["upload_url"])
    cut = len(data) // 3
    assert (await ask(server, "HEAD", target)).headers["upload-offset"] == "0"
    part = await put(server, target, data[:cut], 0, len(data))
    assert (part.status, part.headers["upload-offset"]) == (202, str(cut))
    assert (await ask(server, "HEAD", target)).headers["upload-offset"] == str(cut)
    gap = await put(server, target, data[cut + 1 :], cut + 1, len(data))
    assert (gap.status, gap.error) == (416, "range_mismatch")
    assert (await put(server, target, data[cut - 10 :], cut - 10, len(data))).status == 204
    assert (await presign(server, data)).value["upload_url"] is None
    assert (await unpack(server, data, history)).status == 200
    await same_as(server, history)


async def test_T4_an_upload_url_is_for_one_method_content_size_and_repository(server):
    await server.make_repository()
    await server.make_repository(slug="other")
    data = mpack_of(two_commits())
    target = target_of((await presign(server, data)).value["upload_url"])
    path, _, query = target.partition("?")
    assert (await ask(server, "GET", target)).error == "method_not_allowed"
    for other in (
        target[:-4] + "0000", path, path + "0?" + query, target.replace("/alice/x/", "/alice/other/"),
        target.replace("expires=", "expires=9"), target.replace("/mpack/", "/object/"),
    ):  # fmt: skip
        answer = await put(server, other, data)
        assert (answer.status, answer.error) == (403, "forbidden"), other
    assert (await put(server, target, data + b"x")).error == "malformed"
    assert (await put(server, target, data[:-1])).error == "malformed"
    assert (await put(server, target, data, 5, len(data))).error == "malformed"


async def test_T5_an_upload_replaced_after_it_was_verified_changes_nothing(server):
    await server.make_repository()
    history = two_commits()
    data = mpack_of(history)
    target = target_of((await presign(server, data)).value["upload_url"])
    assert (await put(server, target, data)).status == 204
    assert (await unpack(server, data, history)).status == 200
    other = bytes(reversed(data))
    assert (await put(server, target, other)).status == 204
    await same_as(server, history)
    refused = await unpack(server, data, history)
    assert refused.status == 422
    await same_as(server, history)


async def test_an_mpack_above_the_limit_is_refused_before_a_byte_is_sent(twin):
    await twin.make_repository()
    most = twin.services.limits.mpack_bytes
    for size, error in [(most + 1, "too_large"), (0, "malformed"), (True, "malformed"), ("1", "malformed")]:
        body = {"mpack_key": ZEROS, "size_bytes": size}
        answer = await ask(twin, "POST", "/alice/x/push/mpack-presign", token="alice", json=body)
        assert answer.error == error


def wrong_pushes() -> dict[str, tuple[bytes, Push, str, dict]]:
    """Name → upload, history, code, other members of the request."""
    good = two_commits()
    data = mpack_of(good)
    lying = Push(blobs={blob_id(b"x"): b"y"}, commits=good.commits, snapshots=good.snapshots)
    lacking = Push(commits=good.commits, snapshots=good.snapshots)
    orphan = Push(blobs=good.blobs, snapshots=good.snapshots, commits=[
        make_commit(good.snapshots[0]["snapshot_id"], ["sha256:" + "1" * 64]),
    ])  # fmt: skip
    forged = Push(blobs=good.blobs, snapshots=good.snapshots, commits=[dict(good.commits[0], message="other")])
    return {
        "a wrong object": (mpack_of(lying), good, "bad_object_hash", {}),
        "a wrong compressed object": (mpack_of(lying, zstd=True), good, "bad_object_hash", {}),
        "a wrong object in a bundle": (bundle_of(lying), good, "bad_object_hash", {}),
        "no objects": (mpack_of(lacking), good, "missing_objects", {}),
        "a missing parent": (mpack_of(orphan), orphan, "missing_parents", {}),
        "a forged commit": (mpack_of(forged), good, "bad_record_id", {}),
        "another head": (data, good, "missing_parents", {"head": ZEROS}),
        "another count": (data, good, "count_mismatch", {"declared_objects_count": 7}),
        "a head that moved": (data, good, "head_moved", {"expected_head": ZEROS}),
        "a cut mpack": (data[:-1], good, "malformed", {}),
        "a wrong footer": (data[:-1] + bytes([data[-1] ^ 1]), good, "malformed", {}),
        "garbage": (b"garbage", good, "malformed", {}),
        "an unknown section": (containers.mpack([(9, b"")]), good, "malformed", {}),
        "a bad branch": (data, good, "malformed", {"branch": "a..b"}),
        "no head": (data, good, "malformed", {"head": None}),
    }


@pytest.mark.parametrize("wrong", wrong_pushes())
async def test_a_wrong_mpack_is_refused_with_its_code_and_leaves_nothing_visible(server, wrong):
    await server.make_repository()
    data, history, code, more = wrong_pushes()[wrong]
    answer = await push_mpack(server, data, history, **more)
    assert answer.error == code, answer.value
    assert (await ask(server, "GET", "/alice/x/refs", token="alice")).value["branch_heads"] == {}
    for blob in history.blobs:
        assert (await ask(server, "GET", f"/alice/x/o/{blob}", token="alice")).status == 404
    good = two_commits()
    assert (await push_mpack(server, mpack_of(good), good)).status == 200
    await same_as(server, good)


async def test_T1_naming_a_pack_is_not_having_it(server):
    history = two_commits()
    data = mpack_of(history)
    await server.make_repository(slug="owned")
    assert (await push_mpack(server, data, history, "owned")).status == 200
    await server.make_repository(slug="x")
    assert (await presign(server, data)).value["upload_url"] is not None
    answer = await unpack(server, data, history)
    assert (answer.status, answer.error) == (404, "not_found")


async def test_an_upload_waits_for_its_unpacking_only_in_its_repository(server):
    history = two_commits()
    data = mpack_of(history)
    for slug in ("x", "other"):
        await server.make_repository(slug=slug)
    await upload(server, data)
    assert (await unpack(server, data, history, "other")).error == "not_found"
    assert (await unpack(server, data, history)).status == 200


async def test_a_long_unpacking_is_polled(database, tmp_path):
    from tests.deployments import deployed

    async with deployed(database, tmp_path, server__unpack_sync_s=1e-9) as server:
        await server.make_repository()
        history, push_id = random_history(8), str(uuid.uuid4())
        answer = await push_mpack(server, mpack_of(history), history, push_id=push_id)
        assert answer.status == 202
        assert (answer.value["push_id"], answer.value["status"]) == (push_id, "pending")
        state = await polled(server, target_of(answer.value["poll_url"]).rstrip("?"))
        assert (state["status"], state["head"]) == ("accepted", history.head)
        await same_as(server, history)
        wrong, push_id = mpack_of(Push(commits=history.commits, snapshots=[])), str(uuid.uuid4())
        await server.make_repository(slug="y")
        answer = await push_mpack(server, wrong, history, "y", push_id=push_id)
        state = await polled(server, f"/alice/y/push/{push_id}")
        assert (state["status"], state["error"]) == ("refused", "missing_objects")


async def polled(server, target: str) -> dict:
    """Ask until there is a verdict; each question is a turn of the loop, nothing sleeps."""
    for _ in range(2_000):
        state = (await ask(server, "GET", target, token="alice")).value
        if (state.get("status") != "pending" and "error" not in state) or state.get("status") in {"refused", "failed"}:
            return state
    raise AssertionError(state)


async def test_a_large_upload_does_not_go_through_the_parser_piece_by_piece(server, monkeypatch):
    """It would take four times as long. h11 names its parts otherwise when this fails."""
    taken = []
    take = guard._Http1Protocol.take_body

    async def counted(protocol: guard._Http1Protocol, data: bytes) -> None:
        taken.append(len(data))
        await take(protocol, data)

    monkeypatch.setattr(guard._Http1Protocol, "take_body", counted)
    await server.make_repository()
    history = Push()
    history.commit({f"f{n}": random.Random(n).randbytes(500_000) for n in range(8)}, [])
    data = mpack_of(history)
    assert (await push_mpack(server, data, history)).status == 200
    assert sum(taken) > len(data) // 2
    assert (await clone(server, history.head)).blobs == history.blobs


async def test_a_push_asked_for_before_its_upload_can_be_sent_again_under_its_id(server):
    await server.make_repository()
    history, push_id = two_commits(), str(uuid.uuid4())
    data = mpack_of(history)
    early = await unpack(server, data, history, push_id=push_id)
    assert (early.status, early.error) == (404, "not_found")
    assert (await push_mpack(server, data, history, push_id=push_id)).status == 200


async def test_a_damaged_upload_can_be_sent_again_under_its_push_id(server):
    await server.make_repository()
    history, push_id = two_commits(), str(uuid.uuid4())
    data = mpack_of(history)
    target = target_of((await presign(server, data)).value["upload_url"])
    assert (await put(server, target, data[:-1] + bytes([data[-1] ^ 1]))).status == 204
    damaged = await unpack(server, data, history, push_id=push_id)
    assert (damaged.status, damaged.value["retryable"]) == (422, False)
    assert (await push_mpack(server, data, history, push_id=push_id)).status == 200


async def test_after_a_refusal_about_the_branch_the_upload_waits_for_another_push(server):
    first = await with_history(server)
    other = Push()
    other.commit({"other": b"history"}, [])
    data = mpack_of(other)
    assert (await push_mpack(server, data, other)).error == "non_fast_forward"
    assert (await presign(server, data)).value["upload_url"] is None
    assert (await unpack(server, data, other, force=True)).status == 200
    assert (await ask(server, "GET", "/alice/x/refs", token="alice")).value["branch_heads"] == {"main": other.head}
    assert first.head != other.head


class Waiting(MemoryIndex):
    """An index whose first recording waits."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go_on = trio.Event(), trio.Event()

    async def record_blobs(self, *arguments):
        if not self.reached.is_set():
            self.reached.set()
            await self.go_on.wait()
        return await super().record_blobs(*arguments)


class WaitingStore(MemoryStore):
    """A store in which the second attempt waits before it takes the upload."""

    def __init__(self) -> None:
        super().__init__()
        self.copies = 0
        self.reached, self.go_on = trio.Event(), trio.Event()

    async def copy(self, source: str, target: str) -> None:
        if target.startswith("staging/incoming/"):
            self.copies += 1
            if self.copies == 2:
                self.reached.set()
                await self.go_on.wait()
        await super().copy(source, target)


async def test_F31_an_attempt_that_was_taken_over_leaves_the_upload_to_the_other_one(tmp_path):
    """Of two requests with one push id the older one is told so, and the newer one finds the upload."""
    index, store = Waiting(), WaitingStore()
    history = random_history(11)
    answers = {}
    async with serving(index, store, tmp_path) as server:
        await server.make_repository()
        data, push_id = mpack_of(history), str(uuid.uuid4())
        await upload(server, data)

        async def ask_to_unpack(name: str) -> None:
            answers[name] = await unpack(server, data, history, push_id=push_id)

        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_to_unpack, "older")
                await index.reached.wait()
                nursery.start_soon(ask_to_unpack, "newer")
                await store.reached.wait()
                index.go_on.set()
                while "older" not in answers:
                    await trio.lowlevel.checkpoint()
                store.go_on.set()
        assert (answers["older"].status, answers["older"].error) == (409, "push_superseded")
        assert (answers["newer"].status, answers["newer"].value["head"]) == (200, history.head)
        assert (await clone(server, history.head)).blobs == history.blobs
