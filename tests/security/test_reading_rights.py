"""Nobody reads, claims or learns of what he has no right to: ids, deltas, signed URLs, caches, and the 404 itself."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable

import pytest

from storage.objects.memory import MemoryStore
from storage.rows import Right
from tests.clones import clone, download, fetch, target_of
from tests.containers import copy, delta, insert
from tests.deployments import CountingIndex, readings, two_commits, with_history
from tests.http_client import Answer, ask, connected, push, request_bytes, without_id
from tests.muse import Push, blob_id, frame, make_commit, make_snapshot, plain
from tests.servers import Server, serving

pytestmark = pytest.mark.usefixtures("expected_errors")

SECRET = b"the secret of bob"
NOWHERE = "sha256:" + "5e" * 32
NOTHING = frame("E", n_objects=0, n_commits=0)


async def bobs_secret(server: Server) -> Push:
    await server.make_repository(owner="bob", slug="secret")
    history = Push()
    history.commit({"secret": SECRET, "other": b"o"})
    said = await push(server, history.frames(), repository="bob/secret", token="bob")
    assert said["type"] == "R"
    return history


def claimed_blob(blob: str, snapshot: str, commit: str) -> bytes:
    taken = make_snapshot({"f": blob})
    return Push(snapshots=[taken], commits=[make_commit(taken["snapshot_id"])]).frames()


def claimed_snapshot(blob: str, snapshot: str, commit: str) -> bytes:
    return Push(commits=[make_commit(snapshot)]).frames()


def claimed_parent(blob: str, snapshot: str, commit: str) -> bytes:
    history = Push()
    history.commit({}, [commit])
    return history.frames()


def claimed_head(blob: str, snapshot: str, commit: str) -> bytes:
    return frame("H", version=2, branch="main", head=commit, force=False) + NOTHING


def claimed_delta_base(blob: str, snapshot: str, commit: str) -> bytes:
    # if the base could be used, a guess of the content could be tried out byte by byte
    changed = zlib.compress(delta(len(SECRET), len(SECRET) + 1, copy(0, len(SECRET)), insert(b"!")))
    history = Push()
    history.commit({"f": SECRET + b"!"})
    objects = frame("O", object_id=blob_id(SECRET + b"!"), encoding="delta+zlib", base=blob, content=changed)
    return history.header() + objects + history.commit_frame() + history.end(n_objects=1)


def claimed_snapshot_base(blob: str, snapshot: str, commit: str) -> bytes:
    target = make_snapshot({"secret": blob_id(SECRET)})["snapshot_id"]
    record = {
        "snapshot_id": target, "parent_snapshot_id": snapshot, "delta_upsert": {}, "delta_remove": ["other"],
    }  # fmt: skip
    return Push(commits=[make_commit(target)], deltas=[record]).frames()


CLAIMS: list[Callable[[str, str, str], bytes]] = [
    claimed_blob, claimed_snapshot, claimed_parent, claimed_head, claimed_delta_base, claimed_snapshot_base,
]  # fmt: skip


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
async def test_T1_T2_claiming_what_another_repository_holds_is_refused_as_if_it_were_nowhere(server, claim):
    theirs = await bobs_secret(server)
    await server.make_repository()
    there = (blob_id(SECRET), theirs.snapshots[0]["snapshot_id"], theirs.head)
    said = [await push(server, claim(*ids)) for ids in (there, (NOWHERE,) * 3)]
    for answer in said:
        assert (answer["type"], answer["error"]) in {("X", "missing_objects"), ("X", "missing_parents")}
        answer["request_id"] = ""
    told = [re.sub(r"sha256:[0-9a-f]{64}", "<id>", repr(answer)) for answer in said]
    assert told[0] == told[1]
    for oid in theirs.blobs:
        assert (await ask(server, "GET", f"/alice/x/o/{oid}", token="alice")).status == 404
    assert (await fetch(server, [theirs.head])).status == 404


async def test_T2_a_result_does_not_tell_what_other_repositories_hold(server):
    theirs = await bobs_secret(server)
    verdicts = []
    for slug, content in (("guess", SECRET), ("other", SECRET[::-1])):
        history = Push()
        history.commit({"f": content})
        await server.make_repository(slug=slug)
        said = await push(server, history.frames(), repository=f"alice/{slug}")
        assert set(said["timings_ms"]) >= {"put", "record"}
        verdicts.append({key: said[key] for key in said if key.endswith(("written", "skipped")) or key == "type"})
    assert verdicts[0] == verdicts[1]
    assert verdicts[0]["blobs_written"] == 1
    assert (await fetch(server, [theirs.head], repository="alice/guess")).status == 404


async def test_R3_R4_T3_an_id_of_a_private_repository_opens_nothing_by_way_of_ones_own(server):
    """Bob's repository shares its first commit with alice's, which has gone on since."""
    history = await with_history(server, slug="private")
    shared, newer = history.commits[0]["commit_id"], history.head
    first = history.snapshots[0]["manifest"]
    mine = Push(
        commits=history.commits[:1], snapshots=history.snapshots[:1],
        blobs={oid: history.blobs[oid] for oid in first.values()},
    )  # fmt: skip
    await server.make_repository(owner="bob", slug="own")
    assert (await push(server, mine.frames(), repository="bob/own", token="bob"))["type"] == "R"
    options = {"repository": "bob/own", "token": "bob"}
    for want in ([newer], [shared, newer], [history.snapshots[1]["snapshot_id"]], [next(iter(history.blobs))]):
        assert (await fetch(server, want, **options)).error == "not_found"
    unknown = await fetch(server, [shared], [NOWHERE], **options)
    known, other = (without_id(a)[1] for a in (await fetch(server, [shared], [newer], **options), unknown))
    assert {**known, "mpack_url": ""} == {**other, "mpack_url": ""}  # it tells when it was asked for
    for oid in set(history.blobs) - set(first.values()):
        hidden = await ask(server, "GET", f"/bob/own/o/{oid}", token="bob")
        assert without_id(hidden) == without_id(await ask(server, "GET", f"/bob/own/o/{NOWHERE}", token="bob"))
    body = {"want": [newer], "have": [newer, shared]}
    answer = await ask(server, "POST", "/bob/own/negotiate", token="bob", json=body)
    assert answer.value == {"ack": [shared], "common_base": None, "ready": False}
    assert (await clone(server, shared, repository="bob/own", token="bob")).blobs == mine.blobs


async def test_T3_a_signed_url_ends_with_its_repository(server):
    history = await with_history(server)
    await with_history(server, history, slug="other")
    answer = (await fetch(server, [history.head])).value
    other = (await fetch(server, [history.head], repository="alice/other")).value
    assert answer["mpack_id"] == other["mpack_id"]
    await download(server, answer)
    assert (await ask(server, "DELETE", "/api/repos/alice/x", token="alice")).status == 200
    for headers in ({}, {"range": "bytes=0-9"}, {"if-none-match": "*"}):
        assert (await ask(server, "GET", target_of(answer), headers=headers)).error == "not_found"
    await download(server, other)


async def test_R5_T21_no_answer_about_a_repository_may_be_kept_by_a_shared_cache(server):
    history = await with_history(server)
    blob = next(iter(history.blobs))
    signed = target_of((await fetch(server, [history.head])).value)
    asked = [(*reading, "alice") for reading in readings("x", history.head, blob)]
    asked += [(*reading, None) for reading in readings("x", history.head, blob)]
    asked += [("GET", signed, {}, None), ("HEAD", signed, {}, None), ("GET", signed[:-1], {}, None)]
    asked += [("GET", "/api/repos", {}, "alice"), ("POST", "/alice/x/fetch", {"body": b"{"}, "alice")]
    for target in (f"/alice/x/o/{blob}", signed):
        for headers in ({"range": "bytes=0-0"}, {"range": "bytes=999999-"}, {"if-none-match": "*"}):
            asked.append(("GET", target, {"headers": headers}, "alice"))
    asked.append(("GET", f"/alice/x/o/{blob}", {"headers": {"authorization": "Bearer none"}}, None))
    statuses = Counter()
    for method, target, options, token in asked:
        answer = await ask(server, method, target, token=token, **options)
        statuses[answer.status] += 1
        control = re.split(r"[,\s]+", answer.headers["cache-control"])
        assert {"private", "no-store"} & set(control), (method, target, answer)
        assert not {"public", "s-maxage"} & {part.partition("=")[0] for part in control}
        if answer.status < 300 and "/mpack/" not in target:  # who asks is said by a header, not by the URL
            assert "no-store" in control or "authorization" in answer.headers["vary"]
    assert statuses.keys() >= {200, 206, 304, 401, 403, 404, 416, 422}


def masked(data: bytes) -> bytes:
    """Everything the server sent but the request's id and the date."""
    request_id = re.search(rb"x-request-id: ([0-9a-f]{16})\r\n", data).group(1)
    return re.sub(rb"\r\ndate: [^\r]*", b"", data.replace(request_id, b"<id>"))


CONDITIONS = [{}, {"if-none-match": "*"}, {"range": "bytes=0-0"}, {"accept": "application/x-msgpack"}]


@pytest.mark.parametrize("token", [None, "bob"])
async def test_T22_a_private_name_is_answered_byte_for_byte_like_a_missing_one(twin, token):
    """Names of one length, so that nothing has to be taken out of the bytes but ids and dates."""
    history = await with_history(twin, slug="private")
    blob = next(iter(history.blobs))
    changes = [
        ("POST", "/alice/{}/push/stream", {"body": two_commits().frames()}),
        ("POST", "/alice/{}/fetch", {"body": b"\xc1", "headers": {"content-type": "application/x-msgpack"}}),
        ("POST", "/alice/{}/negotiate", {"body": b"{}", "headers": {"content-type": "text/html"}}),
        ("GET", "/alice/{}/o/nonsense", {}), ("DELETE", "/alice/{}/refs", {}), ("GET", "/alice/{}/push/stream", {}),
        ("GET", "/alice/{}/mpack/" + "0" * 64, {}), ("PATCH", "/api/repos/alice/{}", {"json": {}}),
        ("DELETE", "/api/repos/alice/{}", {}), ("PUT", "/api/repos/alice/{}/collaborators/bob", {"json": {}}),
    ]  # fmt: skip
    cases = [(method, target.replace("private", "{}"), options) for method, target, options in
             readings("private", history.head, blob)] + changes  # fmt: skip
    for method, target, options in cases:
        for condition in CONDITIONS:
            said = []
            for slug in ("private", "missing"):
                headers = {**condition, **options.get("headers", {}), "connection": "close"}
                asked = {**options, "headers": headers}
                async with connected(twin) as connection:
                    await connection.send(request_bytes(method, target.format(slug), token=token, **asked))
                    said.append(masked(await connection.until_end()))
            assert said[0] == said[1], (method, target)
            assert re.match(rb"HTTP/1.1 40[1345] ", said[0])
            assert b"etag" not in said[0].lower()


@pytest.mark.parametrize("token", [None, "bob"])
async def test_T22_a_private_name_costs_as_many_questions_as_a_missing_one(tmp_path, token):
    index = CountingIndex()
    async with serving(index, MemoryStore(), tmp_path) as server:
        history = await with_history(server, slug="private")
        asked = []
        for slug in ("private", "missing"):
            for method, target, options in readings(slug, history.head, next(iter(history.blobs))):
                index.asked.clear()
                assert (await ask(server, method, target, token=token, **options)).status == 404
                asked.append(dict(index.asked))
        half = len(asked) // 2
        assert asked[:half] == asked[half:]


async def test_T22_a_repository_is_named_to_those_who_may_read_it_only(server):
    made = await server.make_repository(slug="private")
    await server.make_repository(slug="public", public=True)

    async def named(token: str | None) -> Answer:
        return await ask(server, "GET", "/api/repos", token=token)

    for token in (None, "bob"):
        assert b"private" not in re.sub(rb'"visibility": ?"[a-z]*"', b"", (await named(token)).body)
    await server.services.index.set_collaborator(made.number, "bob", Right.READ)
    assert b'"private"' in re.sub(rb'"visibility": ?"[a-z]*"', b"", (await named("bob")).body)


async def test_T3_ids_of_the_plain_scheme_open_nothing_either(server):
    history = Push(name=plain)
    history.commit({"a": b"a of alice"})
    await with_history(server, history, slug="private")
    await server.make_repository(owner="bob", slug="own")
    claim = Push(commits=history.commits, snapshots=history.snapshots, name=plain)
    said = await push(server, claim.frames(), repository="bob/own", token="bob")
    assert (said["type"], said["error"]) == ("X", "missing_objects")
    for oid in history.blobs:
        assert (await ask(server, "GET", f"/bob/own/o/{oid}", token="bob")).status in {404, 422}
    assert (await fetch(server, [history.head], repository="bob/own", token="bob")).error == "not_found"
