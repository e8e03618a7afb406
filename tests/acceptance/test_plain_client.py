"""The exchanges of the public 0.1.x client, one by one, from protocol §9: raw HTTP and msgpack as it sends them.

One connection a request, ``Connection: close``, bare ids, msgpack both ways. What that client used to lose, it keeps.
"""

from __future__ import annotations

import json
import random

import msgpack
import pytest
import trio

from tests.deployments import with_history
from tests.http_client import ask
from tests.muse import Push, blob_id, last_frame, make_commit, make_snapshot, plain, snapshot_id
from tests.servers import Server

pytestmark = pytest.mark.usefixtures("expected_errors")
ACCEPT = "application/x-msgpack, application/json"


async def call(server: Server, endpoint: str, body: object = None, *, slug: str = "x", token="alice", method="POST"):
    """Ask as that client does."""
    headers = {"accept": ACCEPT, "connection": "close", "user-agent": "muse/0.1.4"}
    answer = await ask(server, method, f"/alice/{slug}/{endpoint}", token=token, headers=headers, msgpack=body)
    assert answer.complete
    if answer.status < 400:
        assert answer.headers["content-type"] == "application/x-msgpack"
    return answer


def history(*trees: dict[str, bytes], message: str = "m") -> Push:
    made = Push(name=plain)
    for number, files in enumerate(trees):
        made.commit(files, message=f"{message} {number}", repo_id="whatever")
    return made


def bundle(made: Push, *, without: frozenset[str] = frozenset(), heads: bool = True, commits=None) -> dict:
    objects = [
        {"object_id": oid, "content": content, "path": "a/path"}
        for oid, content in made.blobs.items() if oid not in without
    ]  # fmt: skip
    body = {"commits": commits or made.commits, "snapshots": made.snapshots, "objects": objects}
    return {**body, "branch_heads": {"main": made.head}} if heads else body


async def push(server: Server, made: Push, *, slug: str = "x", token="alice", force=None, branch="main", **options):
    body = {"bundle": bundle(made, **options), "branch": branch}
    if force is not None:
        body["force"] = force
    return await call(server, "push", body, slug=slug, token=token)


async def fetched(server: Server, want: list[str], have: list[str] = (), *, slug: str = "x", token="alice"):
    answer = await call(server, "fetch", {"want": want, "have": list(have)}, slug=slug, token=token)
    assert answer.status == 200, answer.value
    return answer.value


def check_clone(value: dict, made: Push) -> None:
    """Everything is there, proved by the client's own hashing, and byte for byte as it was sent."""
    assert {o["object_id"]: o["content"] for o in value["objects"]} == made.blobs
    assert all(blob_id(o["content"], plain) == o["object_id"] for o in value["objects"])
    assert {c["commit_id"]: c for c in value["commits"]} == {c["commit_id"]: c for c in made.commits}
    sent = {s["snapshot_id"]: s for s in made.snapshots}
    assert {s["snapshot_id"] for s in value["snapshots"]} == set(sent)
    for snapshot in value["snapshots"]:
        assert snapshot_id(snapshot["manifest"], snapshot.get("directories", ()), plain) == snapshot["snapshot_id"]
        assert snapshot["created_at"] == sent[snapshot["snapshot_id"]]["created_at"]
    paths = {path for snapshot in made.snapshots for path in snapshot["manifest"]}
    assert {o["path"] for o in value["objects"]} <= paths


TREES = (
    {"a.txt": b"hello\n", "empty": b"", ".museignore": b"*.pyc\n"},
    {"a.txt": b"again\n", "d/b": bytes(range(256))},
)


async def test_first_push_and_clone(server: Server):
    """A repository becomes plain by its first commit; empty files and unknown fields stay (R12)."""
    await server.make_repository()
    made = history(*TREES)
    done = await push(server, made)
    assert done.value == {
        "ok": True, "message": "pushed 2 commits to 'main'", "branch_heads": {"main": made.head},
        "remote_head": made.head,
    }  # fmt: skip
    refs = await call(server, "refs", method="GET")
    assert refs.value["branch_heads"] == {"main": made.head}
    value = await fetched(server, [made.head])
    assert value["branch_heads"] == {"main": made.head}
    check_clone(value, made)


async def test_the_head_is_found_without_branch_heads_and_in_any_order(twin: Server):
    """Commits newest first, members in another order, no ``branch_heads``: the one nothing builds on is the head."""
    await twin.make_repository()
    made = history(*TREES, {"c": b"c"})
    inner = bundle(made, heads=False)
    body = {"branch": "main", "bundle": {k: list(reversed(inner[k])) for k in ("objects", "snapshots", "commits")}}
    assert (await call(twin, "push", body)).value["remote_head"] == made.head
    check_clone(await fetched(twin, [made.head]), made)


async def test_incremental_no_op_and_forced_pushes(twin: Server):
    """What the server has need not come again; a rewritten history needs force, and is told so."""
    await twin.make_repository()
    made = history(TREES[0])
    assert (await push(twin, made)).status == 200
    made.commit(TREES[1], message="next")
    new = Push(name=plain, blobs=dict(made.blobs), commits=made.commits[1:],
               snapshots=made.snapshots[1:])  # fmt: skip
    assert (await push(twin, new, without=frozenset({blob_id(b"", plain)}))).value["remote_head"] == made.head
    again = await push(twin, new)
    assert (again.status, again.value["remote_head"]) == (200, made.head)
    other = history({"other": b"history"}, message="other")
    refused = await push(twin, other)
    assert refused.status == 409
    assert "non-fast-forward push to 'main'" in refused.value["detail"]
    assert (await push(twin, other, force=True)).value["remote_head"] == other.head
    check_clone(await fetched(twin, [other.head]), other)


async def test_objects_come_before_the_push_by_four_connections(server: Server):
    """2,000 objects in chunks of 400, the same ones from several at once: held for this repository, then claimed."""
    await server.make_repository()
    contents = {f"f{n:04}": b"content %d " % n * (1 + n % 40) for n in range(2_000)} | {"big": b"x" * 3_000_000}
    made = history(contents)
    missing = (await call(server, "filter-objects", {"object_ids": list(made.blobs)})).value["missing"]
    assert missing == list(made.blobs)
    totals = []

    async def send(part: list[str]) -> None:
        objects = [{"object_id": oid, "content": made.blobs[oid], "path": "p"} for oid in part]
        totals.append((await call(server, "push/objects", {"objects": objects})).value)

    async with trio.open_nursery() as nursery:
        for start in (0, 400, 800, 1_200, 1_600, 1_600, 2_000):
            nursery.start_soon(send, missing[start : start + 400])
    assert sum(total["stored"] + total["skipped"] for total in totals) == len(missing) + 400 + 1 - 1
    assert (await call(server, "filter-objects", {"object_ids": missing})).value["missing"] == []
    assert (await push(server, made, without=frozenset(made.blobs))).status == 200
    check_clone(await fetched(server, [made.head]), made)


async def test_held_objects_are_read_by_nobody_and_help_no_other_repository(twin: Server):
    """An upload is no right: another repository lacks it still, and it cannot be fetched (R2, R4, T1)."""
    await twin.make_repository()
    await twin.make_repository(slug="y")
    made = history({"secret": b"s"})
    objects = [{"object_id": oid, "content": content} for oid, content in made.blobs.items()]
    assert (await call(twin, "push/objects", {"objects": objects})).value == {"stored": 1, "skipped": 0}
    ids = list(made.blobs)
    assert (await call(twin, "filter-objects", {"object_ids": ids}, slug="y")).value["missing"] == ids
    assert (await ask(twin, "GET", f"/alice/x/o/{ids[0]}", token="alice")).status == 404
    refused = await push(twin, made, slug="y", without=frozenset(ids))
    assert (refused.status, refused.value["error"]) == (422, "missing_objects")
    wrong = {"objects": [{"object_id": ids[0], "content": b"another"}]}
    assert (await call(twin, "push/objects", wrong, slug="y")).value["error"] == "bad_object_hash"


async def test_the_same_history_in_two_repositories(server: Server):
    """Snapshots, commits and blobs shared between repositories are whole in each (R2)."""
    made = history(*TREES)
    for slug in ("x", "y"):
        await server.make_repository(slug=slug)
        assert (await push(server, made, slug=slug)).status == 200
    for slug in ("x", "y"):
        check_clone(await fetched(server, [made.head], slug=slug), made)


async def test_a_push_without_its_parents_says_which_to_push_first(twin: Server):
    """A second repository does not inherit what the first has: the sentence names the commit and what to do."""
    await twin.make_repository()
    made = history(*TREES)
    part = Push(name=plain, blobs=made.blobs, commits=made.commits[1:], snapshots=made.snapshots)
    refused = await push(twin, part)
    assert (refused.status, refused.value["error"]) == (422, "missing_parents")
    assert made.commits[0]["commit_id"] in refused.value["detail"]
    assert "first" in refused.value["detail"]
    assert (await call(twin, "refs", method="GET")).value["branch_heads"] == {}


async def test_simultaneous_pushes_have_one_winner(server: Server):
    """Of eight at once one moves the branch; the others get the non-fast-forward text (R6)."""
    await server.make_repository()
    base = history(TREES[0])
    assert (await push(server, base)).status == 200
    results: dict[str, object] = {}

    async def one(number: int) -> None:
        mine = Push(name=plain, blobs=dict(base.blobs), commits=list(base.commits), snapshots=list(base.snapshots))
        mine.commit({**TREES[0], f"n{number}": b"%d" % number}, message=f"{number}")
        results[mine.head] = await push(server, mine)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(one, number)
    won = [head for head, answer in results.items() if answer.status == 200]
    assert len(won) == 1
    assert (await call(server, "refs", method="GET")).value["branch_heads"] == {"main": won[0]}
    for head, answer in results.items():
        if head != won[0]:
            assert (answer.status, "non-fast-forward push to 'main'" in answer.value["detail"]) == (409, True)


async def test_simultaneous_first_pushes_make_one_branch(server: Server):
    """Two first pushes at once leave one branch, and the loser is told (R6)."""
    await server.make_repository()
    made = [history({"n": b"%d" % number}, message=f"first {number}") for number in range(4)]
    answers = {}

    async def one(each: Push) -> None:
        answers[each.head] = await push(server, each)

    async with trio.open_nursery() as nursery:
        for each in made:
            nursery.start_soon(one, each)
    won = [head for head, answer in answers.items() if answer.status == 200]
    assert len(won) == 1
    assert {answer.status for answer in answers.values()} == {200, 409}


async def test_fetch_of_what_is_new_and_rounds_of_negotiation(twin: Server):
    """``have`` of 30,000 ids, most of them unknown; 64 a round in negotiate; an empty want brings nothing."""
    await twin.make_repository()
    made = history(*({"f": b"%d" % n, "same": b"same"} for n in range(40)))
    assert (await push(twin, made)).status == 200
    known = made.commits[29]["commit_id"]
    unknown = [random.Random(n).randbytes(32).hex() for n in range(30_000)]
    value = await fetched(twin, [made.head], [*unknown, known])
    assert [c["commit_id"] for c in value["commits"]] == [c["commit_id"] for c in made.commits[30:]]
    assert len(value["objects"]) == 10
    nothing = await call(twin, "fetch", {"want": [], "have": []})
    assert nothing.value == {"commits": [], "snapshots": [], "objects": [], "branch_heads": {"main": made.head}}
    agreed = await call(twin, "negotiate", {"want": [made.head], "have": [*unknown[:63], known]})
    assert agreed.value == {"ack": [known], "common_base": known, "ready": True}
    assert (await call(twin, "negotiate", {"want": [made.head], "have": []})).value["ready"] is True


async def test_an_answer_that_would_be_too_large_is_refused_in_words(twin: Server):
    """More than 64 MiB is not sent: the sentence names what to do."""
    await twin.make_repository()
    made = history({f"f{n}": random.Random(n).randbytes(9_000_000) for n in range(8)})
    for oid, content in made.blobs.items():
        objects = {"objects": [{"object_id": oid, "content": content}]}
        assert (await call(twin, "push/objects", objects)).value["stored"] == 1
    assert (await push(twin, made, without=frozenset(made.blobs))).status == 200
    refused = await call(twin, "fetch", {"want": [made.head], "have": []})
    assert (refused.status, refused.value["error"]) == (413, "too_large")
    assert "newer client" in refused.value["detail"]


async def test_presign_gives_urls_to_read_and_takes_uploads_inline(server: Server):
    """The right is checked for the direction; a URL gives one blob; what is put comes inline."""
    await server.make_repository(public=True)
    made = history(TREES[0])
    assert (await push(server, made)).status == 200
    ids = list(made.blobs)
    put = await call(server, "presign", {"object_ids": ids, "direction": "put"})
    assert put.value == {"presigned": {}, "inline": ids}
    got = await call(server, "presign", {"object_ids": ids, "direction": "get", "ttl_seconds": 60}, token="bob")
    assert set(got.value["presigned"]) == set(ids)
    for oid, url in got.value["presigned"].items():
        assert (await ask(server, "GET", "/" + url.split("/", 3)[3])).body == made.blobs[oid]
    assert (await call(server, "presign", {"object_ids": ids, "direction": "put"}, token="bob")).status == 403


async def test_who_may_not(twin: Server):
    """Without write right a push is answered 409 with the text that client shows; elsewhere 403; unseen is 404."""
    await twin.make_repository(public=True)
    made = history(TREES[0])
    assert (await push(twin, made)).status == 200
    refused = await push(twin, made, token="bob")
    assert (refused.status, "not authorized" in refused.value["detail"]) == (409, True)
    assert (await call(twin, "push/objects", {"objects": []}, token="bob")).status == 403
    assert (await call(twin, "filter-objects", {"object_ids": []}, token="bob")).status == 403
    assert (await push(twin, made, token=None)).status == 401
    await twin.make_repository(slug="private")
    for endpoint in ("push", "push/objects", "filter-objects", "fetch"):
        assert (await call(twin, endpoint, {}, slug="private", token="bob")).status == 404
        assert (await call(twin, endpoint, {}, slug="nothing", token="bob")).status == 404
    assert (await call(twin, "refs", method="GET", slug="nothing")).status == 404


async def test_each_client_is_told_when_the_repository_is_the_others(twin: Server):
    """Both schemes live side by side; who comes to the wrong one reads a sentence about it."""
    typed = await with_history(twin, slug="typed")
    made = history(TREES[0])
    for answer in (
        await push(twin, made, slug="typed"),
        await call(twin, "filter-objects", {"object_ids": list(made.blobs)}, slug="typed"),
        await call(twin, "fetch", {"want": [made.head], "have": []}, slug="typed"),
    ):
        assert (answer.status, "typed ids" in answer.value["detail"]) == (422, True)
    empty = await call(twin, "fetch", {"want": [], "have": []}, slug="typed")
    assert empty.status == 422
    await twin.make_repository(slug="plain")
    assert (await push(twin, made, slug="plain")).status == 200
    refused = await call(twin, "fetch/mpack", {"want": [typed.head], "have": []}, slug="plain")
    assert refused.status == 422
    assert "plain" in refused.value["detail"]


T, P = "sha256:" + "a" * 64, "a" * 64
OBJECT = {"object_id": P, "content": b"x"}
ASKED = {
    "push": ({"bundle": {"commits": [], "snapshots": [], "objects": []}, "branch": "main"}, None),
    "push/objects": ({"objects": [OBJECT]}, {"objects": [{**OBJECT, "object_id": T}]}),
    "presign": ({"object_ids": [P], "direction": "get"}, {"object_ids": [T], "direction": "get"}),
    "filter-objects": ({"object_ids": [P]}, {"object_ids": [T]}),
    "fetch": ({"want": [P], "have": []}, {"want": [T], "have": []}),
    "negotiate": ({"want": [P], "have": [P]}, {"want": [T], "have": [T]}),
    "tags": ({"tags": [{"tag": "v", "commit_id": P}]}, {"tags": [{"tag": "v", "commit_id": T}]}),
    "fetch/mpack": ({"want": [P]}, {"want": [T]}),
    "fetch/stream": ({"want": [P]}, {"want": [T]}),
    "fetch/objects": ({"object_ids": [P]}, {"object_ids": [T]}),
    "fetch/presign": ({"want": [P], "have": []}, {"want": [T], "have": []}),
    "push/presign": ({"object_ids": [P], "sizes": {P: 1}}, {"object_ids": [T], "sizes": {T: 1}}),
    "push/confirm": ({"object_ids": [P]}, {"object_ids": [T]}),
    "push/unpack-mpack": (
        {"mpack_key": T, "branch": "main", "head": P}, {"mpack_key": T, "branch": "main", "head": T},
    ),
    "refs": (
        {"updates": [{"branch": "b", "old": None, "new": P}]}, {"updates": [{"branch": "b", "old": None, "new": T}]},
    ),
}  # fmt: skip
"""Endpoint → what a plain client asks, and what a typed one does."""


async def test_every_endpoint_says_whose_repository_it_is(twin: Server):
    """Asked with the other scheme's ids, each answers 422 with a sentence that names the repository's scheme."""
    await with_history(twin, slug="typed")
    await twin.make_repository(slug="plain")
    assert (await push(twin, history(TREES[0]), slug="plain")).status == 200
    unclear = {}
    for endpoint, (plainly, typedly) in ASKED.items():
        for slug, body in (("typed", plainly), ("plain", typedly)):
            if body is not None:
                answer = await call(twin, endpoint, body, slug=slug)
                told = str(answer.value.get("detail"))
                if (answer.status, answer.error) != (422, "malformed") or slug not in told:
                    unclear[endpoint, slug] = (answer.status, answer.value)
    for slug, head in (("typed", P), ("plain", T)):
        body = b"".join(map(msgpack.packb, ({"type": "H", "version": 2, "branch": "main", "head": head},)))
        answer = await ask(twin, "POST", f"/alice/{slug}/push/stream", token="alice", body=body)
        told = last_frame(answer.body) if answer.status == 200 else answer.value
        if told.get("error") != "malformed" or slug not in told["detail"]:
            unclear["push/stream", slug] = told
    assert unclear == {}


async def test_json_is_answered_as_json(twin: Server):
    """Without msgpack in ``Accept`` the answer is JSON, contents in base64."""
    await twin.make_repository()
    made = history({"a": b"\xff\x00"})
    assert (await push(twin, made)).status == 200
    answer = await ask(twin, "POST", "/alice/x/fetch", token="alice", json={"want": [made.head], "have": []})
    value = json.loads(answer.body)
    assert answer.headers["content-type"] == "application/json"
    assert value["objects"] == [{"object_id": next(iter(made.blobs)), "content": "/wA=", "path": "a"}]
    assert value["commits"] == made.commits


FORGED = {
    "object": lambda made: made.blobs.update({next(iter(made.blobs)): b"forged"}),
    "commit": lambda made: made.commits[0].update(message="forged"),
    "snapshot": lambda made: made.snapshots[0]["manifest"].update({"more": blob_id(b"hello\n", plain)}),
    "path": lambda made: None,
}


@pytest.mark.parametrize("what", FORGED)
async def test_nothing_is_taken_on_trust(twin: Server, what: str):
    """Ids are recomputed and paths are safe, as for every push; nothing of a refused one is seen (R1, R11, T10)."""
    await twin.make_repository()
    made = history({"../up": b"x"} if what == "path" else TREES[0])
    FORGED[what](made)
    refused = await push(twin, made)
    codes = {"object": "bad_object_hash", "commit": "bad_record_id", "snapshot": "bad_record_id", "path": "unsafe_path"}
    assert (refused.status, refused.value["error"]) == (422, codes[what])
    assert (await call(twin, "refs", method="GET")).value["branch_heads"] == {}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\x80", b"\x81\xa6branch\xa4main", b"\xc1", msgpack.packb([1]), msgpack.packb({"bundle": {}}),
        msgpack.packb({"bundle": 3, "branch": "main"}), msgpack.packb({"bundle": {}, "branch": "main"}),
        msgpack.packb({"bundle": {"commits": [3]}, "branch": "main"}), msgpack.packb({"bundle": {}, "branch": 3}),
        msgpack.packb({"bundle": {"commits": [{"commit_id": "x"}]}, "branch": "main"}),
    ],
)  # fmt: skip
async def test_a_malformed_push_is_refused_with_a_code(twin: Server, body: bytes):
    """Never a 500, whatever comes (R14)."""
    await twin.make_repository()
    headers = {"content-type": "application/x-msgpack", "accept": ACCEPT}
    answer = await ask(twin, "POST", "/alice/x/push", token="alice", body=body, headers=headers)
    assert (answer.status, answer.error) == (422, "malformed")


async def test_merges_keep_both_parents_and_dates_byte_for_byte(twin: Server):
    """``committed_at`` and ``message`` come back as they were sent, odd as they may be."""
    await twin.make_repository()
    made = history(TREES[0])
    first = made.head
    second = made.commit(TREES[1], [first], committed_at="2026-01-02T03:04:05.1+00:00", message="  ümlaut\r\n")
    snapshot = make_snapshot(made.snapshots[0]["manifest"], name=plain)
    made.commits.append(
        make_commit(snapshot["snapshot_id"], [second, first], plain, structured_delta={"x": [None]}, committed_at="x")
    )
    assert (await push(twin, made)).status == 200
    check_clone(await fetched(twin, [made.head]), made)


async def test_tags_and_releases(server: Server):
    """Names for commits, with all their fields; a name for a commit that is not here is refused."""
    await server.make_repository(public=True)
    made = history(*TREES)
    assert (await push(server, made)).status == 200
    tag = {"tag_id": "t1", "repo_id": "r", "commit_id": made.head, "tag": "v1", "created_at": "2026-01-02", "more": [1]}
    assert (await call(server, "tags", {"tags": [tag]})).value == {"stored": 1}
    assert (await call(server, "tags", method="GET")).value == {"tags": [tag]}
    unknown = await call(server, "tags", {"tags": [tag, {**tag, "tag": "v2", "commit_id": "0" * 64}]})
    assert (unknown.status, unknown.value["error"]) == (422, "missing_parents")
    release = {"tag": "v1", "commit_id": made.head, "title": "One", "body": "ü\n", "extra": {"a": None}}
    release_id = (await call(server, "releases", release)).value["release_id"]
    listed = await call(server, "releases", method="GET", token="bob")
    assert listed.value == {"releases": [{**release, "release_id": release_id}]}
    assert (await call(server, f"releases/{release_id}", method="DELETE", token="bob")).status == 403
    assert (await call(server, "releases", {"release_id": release_id}, method="DELETE")).value["retracted"] is True
    assert (await call(server, f"releases/{release_id}", method="DELETE")).status == 404
    assert (await call(server, "releases", method="GET")).value == {"releases": []}
    assert (await call(server, "releases", {**release, "commit_id": "0" * 64})).status == 422


@pytest.mark.parametrize("which", [0, 1, 2])
async def test_a_record_that_the_index_lacks_is_an_error_that_names_it(twin: Server, monkeypatch, which: int):
    """Wherever in the history it is: never left out, and nobody waits for it (R8)."""
    await twin.make_repository()
    made = history(*({"f": b"%d" % n} for n in range(3)))
    assert (await push(twin, made)).status == 200
    lost = bytes.fromhex(made.commits[which]["commit_id"])
    index = twin.services.index
    read = index.commit_records

    async def without(repo: int, commit_ids: list[bytes]) -> dict[bytes, bytes]:
        return {commit_id: record for commit_id, record in (await read(repo, commit_ids)).items() if commit_id != lost}

    monkeypatch.setattr(index, "commit_records", without)
    with trio.fail_after(10):
        answer = await call(twin, "fetch", {"want": [made.head], "have": []})
    assert (answer.status, answer.value["error"], lost.hex() in answer.value["detail"]) == (503, "store_damaged", True)
