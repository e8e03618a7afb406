"""Signatures that do not hold, ids that name something else, and graphs made to wear the server out."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from storage.objects.memory import MemoryStore
from tests.clones import clone, fetch
from tests.deployments import CountingIndex, with_history
from tests.http_client import ask, push
from tests.muse import Push, blob_id, commit_id, frame, make_commit, make_snapshot, plain
from tests.refused_pushes import X, refused
from tests.servers import serving

pytestmark = pytest.mark.usefixtures("expected_errors")

KEY = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"a key for tests").digest())
PROVENANCE = ("agent_id", "model_id", "toolchain_id", "prompt_hash")


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def signed_digest(record: dict) -> bytes:
    covered = [record["commit_id"], record["author"], *(record[name] for name in PROVENANCE)]
    return hashlib.sha256("\0".join(covered).encode()).hexdigest().encode()


def signed(snapshot: str, parents: list[str] | None = None, **fields: object) -> dict:
    public = base64url(KEY.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw))
    named = {name: f"the {name} ü" for name in PROVENANCE}
    record = make_commit(snapshot, parents, signer_public_key=public, format_version=8, **{**named, **fields})
    record["signature"] = base64url(KEY.sign(signed_digest(record)))
    return record


def of_commits(*records: dict) -> bytes:
    return Push(blobs={X: b"x"}, snapshots=[make_snapshot({"f": X})], commits=list(records)).frames()


async def test_T7_what_was_signed_is_what_every_reader_gets(server):
    await server.make_repository(require_signed_commits=True)
    record = signed(make_snapshot({"f": X})["snapshot_id"], message="caf\u00e9 e\u0301\r\n")
    assert (await push(server, of_commits(record)))["type"] == "R"
    got = (await clone(server, record["commit_id"])).commits[record["commit_id"]]
    key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(got["signer_public_key"] + "="))
    key.verify(base64.urlsafe_b64decode(got["signature"] + "=="), signed_digest({**got, "commit_id": commit_id(got)}))


async def test_T7_a_signature_that_holds_for_another_commit_refuses_the_push(twin):
    await twin.make_repository()
    snapshot = make_snapshot({"f": X})["snapshot_id"]
    good = signed(snapshot)
    for moved in (
        signed(snapshot, message="another") | {"signature": good["signature"]},
        signed(snapshot, [good["commit_id"]]) | {"signature": good["signature"]},
        good | {"agent_id": good["model_id"], "model_id": good["agent_id"]},
        good | {"agent_id": good["agent_id"] + "\0" + good["model_id"], "model_id": ""},
        {key: value for key, value in good.items() if key != "prompt_hash"},
    ):
        records = [good, moved] if moved["commit_id"] != good["commit_id"] else [moved]
        await refused(twin, of_commits(*records), "bad_signature", X)


async def test_T7_a_second_record_of_a_commit_is_checked_although_the_first_one_counts(twin):
    await twin.make_repository(require_signed_commits=True)
    good = signed(make_snapshot({"f": X})["snapshot_id"])
    unsigned = {key: value for key, value in good.items() if key != "signature"}
    for records in ([good, unsigned], [unsigned, good], [good, good | {"signature": base64url(bytes(64))}]):
        frames = Push(blobs={X: b"x"}, snapshots=[make_snapshot({"f": X})], commits=records)
        await refused(twin, frames.frames(head=good["commit_id"]), "bad_signature", X)
    assert (await push(twin, of_commits(good)))["type"] == "R"
    await refused(twin, of_commits(unsigned), "bad_signature")
    assert (await clone(twin, good["commit_id"])).commits[good["commit_id"]] == good


def spellings(oid: str) -> dict[str, str]:
    """The id of a blob that is there, as it must not be written."""
    digest = oid.removeprefix("sha256:")
    return {
        "upper case": f"sha256:{digest.upper()}", "bare": digest, "raw bytes": "".join(f"%{digest[i:i + 2]}" for i in
        range(0, 64, 2)), "upper prefix": f"SHA256:{digest}", "other hash": f"sha512:{digest}", "short": oid[:-1],
        "shorter": oid[:15], "long": oid + "0", "space": f"sha256:%20{digest[1:]}", "newline": f"{oid}%0a",
        "NUL": f"{oid}%00", "spaces between": f"sha256:{digest[:2]}%20{digest[2:-1]}", "prefix twice": f"sha256:{oid}",
        "wide digits": f"sha256:{digest[:-1]}" + "%EF%BC%90", "dots": f"x/../{oid}", "kind": f"blob:{digest}",
    }  # fmt: skip


async def test_T13_an_id_has_one_spelling(twin):
    history = Push()
    history.commit({"f": b"abc"})  # an id with letters in it
    await with_history(twin, history)
    oid = blob_id(b"abc")
    assert re.search("[a-f]", oid.removeprefix("sha256:"))
    assert (await ask(twin, "GET", f"/alice/x/o/{oid}", token="alice")).body == b"abc"
    for name, text in spellings(oid).items():
        answer = await ask(twin, "GET", f"/alice/x/o/{text}", token="alice")
        assert answer.status in {404, 422}, name
        wanted = await fetch(twin, [text])
        assert wanted.error == "malformed", name


@pytest.mark.parametrize("first", ["typed", "plain"])
async def test_T13_one_digest_in_two_schemes_is_two_objects(server, first):
    """A plain blob may have the very bytes that are hashed for a typed one."""
    content = b"hello\n"
    forged = b"blob %d\0" % len(content) + content
    assert blob_id(forged, plain) == blob_id(content).removeprefix("sha256:")
    one, other = Push(), Push(name=plain)
    one.commit({"f": content})
    other.commit({"f": forged})
    for name in (first, "plain" if first == "typed" else "typed"):
        await with_history(server, one if name == "typed" else other, slug=name)
    assert (await clone(server, one.head, repository="alice/typed")).files(one.head) == {"f": content}
    assert (await clone(server, other.head, repository="alice/plain")).files(other.head) == {"f": forged}
    typed_blob = await ask(server, "GET", f"/alice/typed/o/{blob_id(content)}", token="alice")
    plain_blob = await ask(server, "GET", f"/alice/plain/o/{blob_id(forged, plain)}", token="alice")
    assert (typed_blob.body, plain_blob.body) == (content, forged)


async def test_T13_a_plain_blob_with_the_text_of_a_commit_is_not_that_commit(server):
    history = Push(name=plain)
    history.commit({"a": b"a"})
    record, snapshot = history.commits[0], history.snapshots[0]
    commit_text = "\0".join(["", snapshot["snapshot_id"], record["message"], record["committed_at"]]).encode()
    snapshot_text = f"a\0{blob_id(b'a', plain)}".encode()
    assert blob_id(commit_text, plain) == history.head
    assert blob_id(snapshot_text, plain) == snapshot["snapshot_id"]
    await with_history(server, history)
    for text in (commit_text, snapshot_text):
        assert (await ask(server, "GET", f"/alice/x/o/{blob_id(text, plain)}", token="alice")).status == 404
    only_blobs = Push(name=plain)
    only_blobs.commit({"commit": commit_text, "snapshot": snapshot_text})
    await with_history(server, only_blobs, slug="blobs")
    assert (await fetch(server, [history.head], repository="alice/blobs")).error == "not_found"
    claim = Push(commits=[make_commit(snapshot["snapshot_id"], name=plain)], name=plain)
    said = await push(server, claim.frames(force=True), repository="alice/blobs")
    assert (said["type"], said["error"]) == ("X", "missing_objects")


DIAMONDS = 250


def ladder() -> Push:
    """Diamonds on diamonds: 2 to the power of 250 ways lead down, over 751 commits."""
    history = Push()
    history.commit({"f": b"x"})
    for number in range(DIAMONDS):
        base = history.head
        sides = [history.commit({"f": b"x"}, [base], message=f"{number} {side}") for side in "ab"]
        history.commit({"f": b"x"}, sides, message=f"{number}")
    return history


async def test_T14_a_ladder_of_diamonds_is_walked_once(tmp_path):
    index = CountingIndex()
    async with serving(index, MemoryStore(), tmp_path) as server:
        history = await with_history(server, ladder())
        tip = Push()
        tip.commit({"f": b"x"}, [history.head], message="tip")
        index.asked.clear()
        assert (await push(server, tip.frames()))["type"] == "R"
        answer = await fetch(server, [tip.head])
        assert answer.value["commit_count"] == 3 * DIAMONDS + 2
        back = frame("H", version=2, branch="main", head=history.commits[0]["commit_id"], force=False)
        said = await push(server, back + frame("E", n_objects=0, n_commits=0))
        assert said["error"] == "non_fast_forward"
        assert index.asked["ancestry"] <= 20


async def test_T14_a_negotiation_of_long_lists_costs_one_walk_and_not_one_for_each_pair(tmp_path):
    index = CountingIndex()
    async with serving(index, MemoryStore(), tmp_path) as server:
        base = Push()
        base.commit({"f": b"x"})
        await with_history(server, base)
        sides = []
        for side in "ab":
            history = Push()
            history.commit({"f": b"x"}, [base.head], message=side)
            for number in range(400):
                history.commit({"f": b"x"}, message=f"{side} {number}")
            assert (await push(server, history.frames(branch=side)))["type"] == "R"
            sides.append([commit["commit_id"] for commit in history.commits])
        index.asked.clear()
        body = {"want": sides[0], "have": sides[1]}
        answer = (await ask(server, "POST", "/alice/x/negotiate", token="alice", json=body)).value
        assert (answer["ack"], answer["common_base"], answer["ready"]) == (sides[1], None, False)
        body["have"] = [*sides[1], base.head, sides[0][7]]
        answer = (await ask(server, "POST", "/alice/x/negotiate", token="alice", json=body)).value
        assert (answer["common_base"], answer["ready"]) == (sides[0][7], True)
        assert index.asked["ancestry"] <= 10
        assert sum(index.asked.values()) <= 25


async def test_T14_a_commit_of_more_parents_than_the_record_has_is_refused(twin):
    """Parents are two fields: a list in one of them, or of them in the text, cannot become thousands."""
    await twin.make_repository()
    history = Push()
    first = history.commit({"f": b"x"})
    many = [make_commit(history.snapshots[0]["snapshot_id"], [first], message=f"{n}")["commit_id"] for n in range(3)]
    for parent, code in ((many, "malformed"), ("\0".join(many), "malformed")):
        record = make_commit(history.snapshots[0]["snapshot_id"], message="m") | {"parent_commit_id": parent}
        frames = Push(blobs=history.blobs, snapshots=history.snapshots, commits=[*history.commits, record])
        await refused(twin, frames.frames(), code, X)
