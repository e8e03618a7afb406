"""Ids of very old tools (the setting ``verify``): taken as they are where that is allowed, and nothing else is.

Raw HTTP and msgpack, as the public 0.1.x client sends them.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Awaitable, Callable, Mapping

import pytest

from storage.errors import IndexUnavailable
from storage.job_rows import DEPLOYMENT
from tests.acceptance.test_plain_client import TREES, bundle, call, fetched, history, push
from tests.deployments import with_history
from tests.handler_runs import run, services_of, waiting
from tests.http_client import ask
from tests.http_client import push as sent
from tests.mpack_pushes import mpack_of
from tests.muse import Push, blob_id, commit_id, last_frame, plain
from tests.servers import Server

pytestmark = pytest.mark.usefixtures("expected_errors")


def renamed(made: Push, by: str = "old tool") -> Push:
    """The same history under ids that are hashes of something else."""

    def name(old: str | None) -> str | None:
        return None if old is None else hashlib.sha256(f"{by} {old}".encode()).hexdigest()

    named = {"commit_id", "parent_commit_id", "parent2_commit_id", "snapshot_id", "parent_snapshot_id"}
    other = Push(name=plain, blobs=dict(made.blobs))
    for kind in ("commits", "snapshots", "deltas"):
        records = [{k: name(v) if k in named else v for k, v in record.items()} for record in getattr(made, kind)]
        setattr(other, kind, records)
    return other


async def set_verify(server: Server, verify: object, slug: str = "x"):
    return await ask(server, "PATCH", f"/api/repos/alice/{slug}", token="alice", json={"settings": {"verify": verify}})


def check(value: Mapping, made: Push) -> None:
    """Everything came back under the ids it came under, byte for byte."""
    assert {o["object_id"]: o["content"] for o in value["objects"]} == made.blobs
    assert {c["commit_id"]: c for c in value["commits"]} == {c["commit_id"]: c for c in made.commits}
    sent = {s["snapshot_id"]: s for s in made.snapshots}
    for got in value["snapshots"]:
        assert {**got, "directories": got.get("directories", [])} == sent.pop(got["snapshot_id"])
    assert not sent


async def by_stream(server: Server, made: Push, slug: str = "x"):
    path = f"/alice/{slug}/push/stream"
    headers = {"content-type": "application/x-muse-packstream"}
    return last_frame((await ask(server, "POST", path, token="alice", body=made.frames(), headers=headers)).body)


async def by_mpack(server: Server, made: Push, slug: str = "x"):
    data = mpack_of(made)
    key = "sha256:" + hashlib.sha256(data).hexdigest()
    asked = {"mpack_key": key, "size_bytes": len(data)}
    url = (await call(server, "push/mpack-presign", asked, slug=slug)).value["upload_url"]
    assert (await ask(server, "PUT", "/" + url.split("/", 3)[3], body=data)).status in {200, 204}
    return (await call(server, "push/unpack-mpack", {"mpack_key": key, "branch": "main", "head": made.head},
                       slug=slug)).value  # fmt: skip


async def by_push(server: Server, made: Push, slug: str = "x"):
    answer = (await push(server, made, slug=slug)).value
    return {**answer, "head": answer.get("remote_head")}


@pytest.mark.parametrize("way", [by_push, by_stream, by_mpack])
async def test_ids_of_old_tools_come_back_as_they_were_sent(server: Server, way):
    """By whatever way they are pushed: refs, a clone, an update, negotiation and a branch name them as sent."""
    await server.make_repository(verify="plain-lenient")
    whole = history(*TREES, {"a.txt": b"again\n", "c": b"c"}, {})
    old = renamed(whole)
    first = Push(name=plain, blobs=old.blobs, commits=old.commits[:2], snapshots=old.snapshots[:2])
    assert (await way(server, first))["head"] == first.head
    second = Push(name=plain, blobs=old.blobs, commits=old.commits[2:], snapshots=old.snapshots[2:])
    assert (await way(server, second))["head"] == old.head
    refs = await call(server, "refs", method="GET")
    assert refs.value["branch_heads"] == {"main": old.head}
    value = await fetched(server, [old.head])
    assert value["branch_heads"] == {"main": old.head}
    check(value, old)
    newer = await fetched(server, [old.head], [first.head])
    assert [c["commit_id"] for c in newer["commits"]] == [c["commit_id"] for c in old.commits[2:]]
    agreed = await call(server, "negotiate", {"want": [old.head], "have": [first.head]})
    assert agreed.value == {"ack": [first.head], "common_base": first.head, "ready": True}
    update = {"branch": "copy", "old": None, "new": first.head}
    moved = await call(server, "refs", {"updates": [update]})
    assert moved.value["branch_heads"] == {"main": old.head, "copy": first.head}
    assert (await call(server, "tags", {"tags": [{"tag": "v1", "commit_id": old.head}]})).value == {"stored": 1}


async def test_deltas_build_on_ids_of_old_tools(server: Server):
    """As changes to a snapshot of the same push, of an earlier one, and of one that was strict."""
    await server.make_repository()
    strict = history(TREES[0])
    assert (await push(server, strict)).status == 200
    assert (await set_verify(server, "plain-lenient")).status == 200
    base, manifest = strict.snapshots[0]["snapshot_id"], dict(strict.snapshots[0]["manifest"])
    parent, made = strict.head, Push(name=plain)
    for number in range(6):
        content = b"%d" % number
        manifest = {**manifest, f"f{number}": blob_id(content, plain)}
        snapshot, commit = (hashlib.sha256(f"{what} {number}".encode()).hexdigest() for what in "sc")
        made.blobs[blob_id(content, plain)] = content
        made.deltas.append({"snapshot_id": snapshot, "parent_snapshot_id": base, "delta_remove": [],
                            "delta_upsert": {f"f{number}": blob_id(content, plain)}, "note": "é"})  # fmt: skip
        made.commits.append({**strict.commits[0], "commit_id": commit, "snapshot_id": snapshot,
                             "parent_commit_id": parent})  # fmt: skip
        base, parent = snapshot, commit
        if number in {2, 5}:
            assert (await by_stream(server, made))["head"] == parent
            made = Push(name=plain)
    got = {s["snapshot_id"]: s for s in (await fetched(server, [parent]))["snapshots"]}
    assert got[base]["manifest"] == manifest
    assert got[base]["note"] == "é"
    assert len(got) == 7


async def test_strict_is_the_default_and_names_the_setting(twin: Server):
    """What is refused before and after the setting is lenient, is taken while it is, and stays readable."""
    await twin.make_repository()
    shown = await ask(twin, "GET", "/api/repos/alice/x", token="alice")
    assert shown.value["settings"]["verify"] == "strict"
    first = history(TREES[0])
    assert (await push(twin, first)).status == 200
    old = renamed(history(*TREES, message="old"))
    refused = await push(twin, old, force=True)
    assert (refused.status, refused.value["error"]) == (422, "bad_record_id")
    assert "plain-lenient" in refused.value["detail"]
    changed = await set_verify(twin, "plain-lenient")
    assert changed.value["settings"]["verify"] == "plain-lenient"
    assert (await push(twin, old)).status == 409
    assert (await push(twin, old, force=True)).value["remote_head"] == old.head
    assert (await set_verify(twin, "strict")).status == 200
    more = history({"more": b"1"}, message="strict")
    more.commits[0].update(parent_commit_id=old.head)
    more.commits[0]["commit_id"] = commit_id(more.commits[0], plain)
    assert (await push(twin, renamed(more, "again"))).value["error"] == "bad_record_id"
    assert (await push(twin, more)).value["remote_head"] == more.head
    value = await fetched(twin, [more.head])
    assert {c["commit_id"] for c in value["commits"]} == {c["commit_id"] for c in [*old.commits, *more.commits]}
    refused = await push(twin, first)
    assert refused.status == 409
    assert more.head in str(refused.value)


async def test_a_refusal_names_commits_as_they_were_sent(twin: Server):
    """Also where a branch is that somebody else has moved."""
    await twin.make_repository(verify="plain-lenient")
    old = renamed(history(TREES[0]))
    assert (await push(twin, old)).status == 200
    other = renamed(history({"o": b"o"}, message="other"))
    refused = await push(twin, other)
    assert (refused.status, refused.value["remote_head"]) == (409, old.head)
    part = renamed(history(*TREES, message="part"))
    lacking = Push(name=plain, blobs=part.blobs, commits=part.commits[1:], snapshots=part.snapshots)
    refused = await push(twin, lacking)
    assert (refused.value["error"], refused.value["missing"]) == ("missing_parents", [part.commits[0]["commit_id"]])
    update = {"branch": "main", "old": part.head, "new": None}
    refused = await call(twin, "refs", {"updates": [update]})
    assert (refused.status, refused.value["remote_head"]) == (409, old.head)


STILL_REFUSED = {
    "object": ("bad_object_hash", lambda made: made.blobs.update({next(iter(made.blobs)): b"forged"})),
    "lacking object": ("missing_objects", lambda made: made.snapshots[0]["manifest"].update({"more": "1" * 64})),
    "lacking snapshot": ("missing_objects", lambda made: made.commits[0].update(snapshot_id="2" * 64)),
    "lacking parent": ("missing_parents", lambda made: made.commits[0].update(parent_commit_id="3" * 64)),
    "path": ("unsafe_path", lambda made: made.snapshots[0]["manifest"].update({"../up": next(iter(made.blobs))})),
    "cycle": ("malformed", lambda made: made.commits[0].update(parent_commit_id=made.commits[1]["commit_id"])),
    "itself": ("malformed", lambda made: made.commits[0].update(parent_commit_id=made.commits[0]["commit_id"])),
    "an id that is none": ("malformed", lambda made: made.commits[0].update(commit_id="v1")),
}  # fmt: skip


@pytest.mark.parametrize("what", STILL_REFUSED)
@pytest.mark.parametrize("way", [by_push, by_stream, by_mpack])
async def test_everything_else_is_checked_as_ever(twin: Server, what: str, way):
    """Blobs hash, what is named is there, paths are safe, history has no circle (R1, R11, T10)."""
    await twin.make_repository(verify="plain-lenient")
    made = renamed(history(*TREES))
    code, forge = STILL_REFUSED[what]
    forge(made)
    assert (await way(twin, made))["error"] == code
    assert (await call(twin, "refs", method="GET")).value["branch_heads"] == {}


async def test_the_first_record_under_an_id_stays(twin: Server):
    """Who sends another one under it changes nothing, neither for what was built on it."""
    await twin.make_repository(verify="plain-lenient")
    first = renamed(history(TREES[0]))
    assert (await push(twin, first)).status == 200
    second = renamed(history({"another": b"tree"}))
    second.snapshots[0]["snapshot_id"] = first.snapshots[0]["snapshot_id"]
    second.commits[0].update(snapshot_id=first.snapshots[0]["snapshot_id"], parent_commit_id=first.head)
    third = {**first.commits[0], "message": "forged"}
    body = {**bundle(second), "commits": [third, *second.commits]}
    assert (await call(twin, "push", {"bundle": body, "branch": "main"})).value["remote_head"] == second.head
    value = await fetched(twin, [second.head])
    assert {c["commit_id"]: c["message"] for c in value["commits"]} == {
        first.head: first.commits[0]["message"], second.head: second.commits[0]["message"],
    }  # fmt: skip
    assert [s["manifest"] for s in value["snapshots"]] == [first.snapshots[0]["manifest"]]


async def test_an_id_that_nobody_proved_is_nobody_elses(server: Server):
    """A made-up record under another repository's true ids neither shows nor spoils what these are (R2, R3, T1)."""
    await server.make_repository(slug="strict")
    await server.make_repository(slug="lenient", verify="plain-lenient")
    await server.make_repository(slug="later")
    true = history(*TREES)
    assert (await push(server, true, slug="strict")).status == 200
    forged = history({"x": b"x"}, {"y": b"y"}, message="forged")
    for own, theirs in zip(forged.snapshots, true.snapshots, strict=True):
        own["snapshot_id"] = theirs["snapshot_id"]
    for own, theirs in zip(forged.commits, true.commits, strict=True):
        own |= {key: theirs[key] for key in ("commit_id", "snapshot_id", "parent_commit_id")}
    assert (await push(server, forged, slug="lenient")).value["remote_head"] == true.head
    check(await fetched(server, [true.head], slug="lenient"), forged)
    assert (await push(server, true, slug="later")).status == 200
    for slug in ("strict", "later"):
        check(await fetched(server, [true.head], slug=slug), true)
    lent = await server.make_repository(slug="two", verify="plain-lenient")
    assert lent.settings.verify == "plain-lenient"
    another = renamed(history({"z": b"z"}))
    another.commits[0]["commit_id"] = true.head
    assert (await push(server, another, slug="two")).value["remote_head"] == true.head
    check(await fetched(server, [true.head], slug="two"), another)
    check(await fetched(server, [true.head], slug="lenient"), forged)


async def test_what_a_refused_push_has_left_is_not_mistaken_for_another_record(server: Server):
    """Rows of a push that was refused late stay for a while: under their ids nothing else is taken, and they are."""
    await server.make_repository(verify="plain-lenient")
    assert (await push(server, renamed(history(TREES[0], message="before")))).status == 200
    long = renamed(history(*({"f": b"%d" % n} for n in range(130)), message="long"))
    assert (await push(server, long)).status == 409
    other = renamed(history({"f": b"other"}, message="other"))
    other.commits[0].update(commit_id=long.commits[0]["commit_id"])
    refused = await push(server, other, force=True)
    assert (refused.value["error"], other.head in refused.value["detail"]) == ("bad_record_id", True)
    other = renamed(history({"f": b"other"}, message="other"))
    other.snapshots[0]["snapshot_id"] = other.commits[0]["snapshot_id"] = long.snapshots[0]["snapshot_id"]
    assert (await push(server, other, force=True)).value["error"] == "bad_record_id"
    assert (await push(server, long, force=True)).value["remote_head"] == long.head
    check(await fetched(server, [long.head]), long)


def before_recording(
    server: Server, monkeypatch: pytest.MonkeyPatch, between: Callable[[], Awaitable[None]], failing: str = ""
) -> None:
    """Have something done when the next push has looked at everything, and before it records any commit or snapshot.

    ``failing``: the operation after which, once, the index is gone.
    """
    kind, begun = type(server.services.index), []

    def interposed(name: str, real: Callable) -> Callable:
        async def operation(*arguments: object, **named: object) -> object:
            if not begun:
                begun.append(name)
                await between()
                given = await real(*arguments, **named)
                if name == failing:
                    raise IndexUnavailable("the connection was lost")
                return given
            return await real(*arguments, **named)

        return operation

    for name in ("record_snapshots", "record_commits", "finish_push"):
        monkeypatch.setattr(kind, name, interposed(name, getattr(kind, name)))


def contesting(what: str) -> tuple[Push, Push]:
    """Two histories that have one id in common, and something else under it; of the one it is in the first batch."""
    one = renamed(history(*({"f": b"one %d" % n} for n in range(102)), message="one"))
    other = renamed(history({"f": b"other"}, message="other"))
    if what == "commit":
        other.commits[0].update(commit_id=one.commits[0]["commit_id"])
    else:
        other.snapshots[0]["snapshot_id"] = other.commits[0]["snapshot_id"] = one.snapshots[0]["snapshot_id"]
    return one, other


@pytest.mark.parametrize(
    ("what", "way", "branch", "said"),
    [
        ("snapshot", by_stream, "main", "non_fast_forward"),
        ("snapshot", by_mpack, "one", None),
        ("commit", by_push, "main", "non_fast_forward"),
        ("commit", by_stream, "one", None),
    ],
)
async def test_what_another_push_records_meanwhile_is_not_taken_for_ones_own(
    server: Server, monkeypatch: pytest.MonkeyPatch, what: str, way, branch: str, said: str | None
):
    """Neither if that one was accepted nor if it was not: who is accepted has its own content in every clone (R2)."""
    await server.make_repository(verify="plain-lenient")
    first = renamed(history(TREES[0], message="first"))
    assert (await push(server, first)).status == 200
    one, other = contesting(what)
    one.branch = branch
    other.commits[0].update(parent_commit_id=first.head)
    answers = []

    async def meanwhile() -> None:
        answers.append(await by_stream(server, one))

    before_recording(server, monkeypatch, meanwhile)
    refused = await way(server, other)
    assert [answer.get("error") for answer in answers] == [said]
    contested = one.commits[0]["commit_id"] if what == "commit" else one.snapshots[0]["snapshot_id"]
    assert (refused.get("error"), refused.get("id")) == ("bad_record_id", contested), refused
    heads = {"main": first.head} | ({} if said else {"one": one.head})
    assert (await call(server, "refs", method="GET")).value["branch_heads"] == heads
    if said is None:
        check(await fetched(server, [one.head]), one)


async def test_what_an_attempt_recorded_is_looked_at_by_the_next(server: Server, monkeypatch: pytest.MonkeyPatch):
    """An attempt that recorded another push's snapshot as its own, and ended before it saw, is no way around (R2)."""
    await server.make_repository(verify="plain-lenient")
    first = renamed(history(TREES[0], message="first"))
    assert (await push(server, first)).status == 200
    one, other = contesting("snapshot")
    other.commits[0].update(parent_commit_id=first.head)

    async def meanwhile() -> None:
        assert (await by_stream(server, one))["error"] == "non_fast_forward"

    before_recording(server, monkeypatch, meanwhile, "record_snapshots")
    frames = other.frames(push_id=str(uuid.UUID(int=1)))
    lost = await sent(server, frames)
    assert (lost["type"], lost["retryable"]) == ("X", True), lost
    refused = await sent(server, frames)
    assert refused["error"] == "bad_record_id", refused
    assert (await call(server, "refs", method="GET")).value["branch_heads"] == {"main": first.head}


async def test_the_work_behind_pushes_takes_such_ids(server: Server):
    """Every job runs over them and finds no damage; what a branch reaches survives a collection."""
    repository = await server.make_repository(verify="plain-lenient")
    old = renamed(history(*TREES))
    await by_mpack(server, old)
    services = services_of(server, gc_keep_s=0.0)
    for type_, payload in (await waiting(server, repository.number)).items():
        await run(services, type_, repository.number, payload)
    for type_ in ("fetch.mpack.prebuild", "mpack.gc", "gc", "push.file_last_commits", "intel.structural"):
        await run(services, type_, repository.number)
    scrubbed = await run(services, "scrub", DEPLOYMENT)
    assert scrubbed["damaged"] == 0, scrubbed
    assert scrubbed["records"] > 0, scrubbed
    check(await fetched(server, [old.head]), old)


async def test_typed_repositories_are_always_verified(twin: Server):
    """Neither is a typed repository lenient, nor does a lenient one become typed; the sentence says what to do."""
    typed = await with_history(twin, slug="typed")
    refused = await set_verify(twin, "plain-lenient", "typed")
    assert (refused.status, "typed" in refused.value["detail"]) == (422, True)
    await twin.make_repository(verify="plain-lenient")
    answer = await ask(twin, "POST", "/alice/x/push/stream", token="alice", body=typed.frames())
    assert (last_frame(answer.body) if answer.status == 200 else answer.value)["error"] == "malformed"
    assert "plain-lenient" in str(last_frame(answer.body) if answer.status == 200 else answer.value)
    for wrong in ("lenient", None, 1, ["strict"], {}):
        assert (await set_verify(twin, wrong)).status == 422


@pytest.mark.parametrize("endpoint", ["fetch/mpack", "fetch/stream", "fetch/presign"])
async def test_clients_that_verify_are_told_why_they_cannot(twin: Server, endpoint: str):
    """They would call every such id damage; that of version 0.1 takes them."""
    await twin.make_repository(verify="plain-lenient")
    old = renamed(history(TREES[0]))
    assert (await push(twin, old)).status == 200
    refused = await call(twin, endpoint, {"want": [old.head], "have": []})
    assert (refused.status, "POST fetch" in refused.value["detail"]) == (422, True)
