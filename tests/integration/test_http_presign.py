"""A push by presigned objects: what it brings is what a push by stream brings, and is verified like it."""

from __future__ import annotations

import datetime as dt
import hashlib
import uuid
from collections.abc import Awaitable, Callable

import pytest

from storage.environment import SeededEnvironment
from storage.layout import loose_key
from storage.memory.index import MemoryIndex
from storage.object_store import ObjectStore
from storage.objects.faulty import Fault, FaultyStore
from storage.objects.memory import MemoryStore
from storage.objects.wrapped import WrappedStore
from storage.rows import HELD_S, PushTicket, Right, StoredBlob
from tests import containers
from tests.clones import clone
from tests.deployments import deployed, two_commits, with_history
from tests.http_client import ask, push
from tests.integration.test_http_malformed import BAD_JSON, BAD_MSGPACK
from tests.mpack_pushes import target_of
from tests.muse import Push, blob_id, frame, plain, random_history
from tests.presigned_pushes import confirm, hold, presign, push_presigned, put, records_only, upload
from tests.servers import serving
from wire.ids import Scheme

pytestmark = pytest.mark.usefixtures("expected_errors")

MANY = 50_000
SIZES = [0, 1, 5_000, 32 * 1024, 32 * 1024 + 1, 256 * 1024, 256 * 1024 + 1, 1_000_000]
"""On both sides of where a content is treated in another way."""
ROUTES = ["push/presign", "push/confirm"]


def of_sizes(*sizes: int, name=None) -> Push:
    history = Push() if name is None else Push(name=name)
    history.commit({f"f{size}": bytes([size % 251]) * size for size in sizes})
    return history


async def same_as(server, history: Push, slug: str = "x") -> None:
    copy = await clone(server, history.head, repository=f"alice/{slug}")
    assert copy.blobs == history.blobs
    assert copy.commits == {commit["commit_id"]: commit for commit in history.commits}


@pytest.mark.parametrize("name", [None, plain], ids=["typed", "plain"])
async def test_what_was_confirmed_need_not_be_in_the_push(server, name):
    """The whole way: presign, upload, confirm, a push without objects, a clone that lacks nothing (R12, R15)."""
    await server.make_repository()
    history = of_sizes(*SIZES, name=name)
    said = await push_presigned(server, history)
    assert said["type"] == "R", said
    assert (said["blobs_written"], said["blobs_skipped"]) == (len(history.blobs), 0)
    await same_as(server, history)


async def test_a_push_may_bring_some_objects_itself(server):
    await server.make_repository()
    history = random_history(12)
    first = dict(list(history.blobs.items())[::2])
    await hold(server, first)
    rest = Push(blobs={i: c for i, c in history.blobs.items() if i not in first}, commits=history.commits)
    rest.snapshots = history.snapshots
    said = await push(server, rest.frames())
    assert (said["type"], said["blobs_written"]) == ("R", len(history.blobs))
    await same_as(server, history)


async def test_every_step_may_be_repeated(server):
    """F32: whoever did not hear the answer asks again."""
    await server.make_repository()
    history = of_sizes(0, 7, 300_000)
    ids = list(history.blobs)
    first, again = await presign(server, history.blobs), await presign(server, history.blobs)
    for answer in (first, again):
        assert answer.value["already_stored"] == []
        assert answer.value["expires_in"] == server.services.presign_s
        for object_id, url in answer.value["presigned_urls"].items():
            assert (await put(server, url, history.blobs[object_id])).status == 204
    for _ in range(2):
        assert (await confirm(server, ids)).value == {"confirmed": ids, "rejected": []}
        there = await presign(server, history.blobs)
        assert (there.value["presigned_urls"], there.value["already_stored"]) == ({}, ids)
    push_id = str(uuid.uuid4())
    said = await push(server, records_only(history, push_id=push_id))
    assert said["type"] == "R"
    assert await push(server, records_only(history, push_id=push_id)) == said
    assert (await confirm(server, ids)).value == {"confirmed": ids, "rejected": []}
    assert (await presign(server, history.blobs)).value["already_stored"] == ids


async def test_what_is_held_is_confirmed_without_the_store(tmp_path):
    store = MemoryStore()
    async with serving(MemoryIndex(), store, tmp_path) as server:
        await server.make_repository()
        blobs = of_sizes(3, 4).blobs
        await hold(server, blobs)
        before = store.statistics()
        assert (await confirm(server, blobs)).value["confirmed"] == list(blobs)
        assert (await presign(server, blobs)).value["already_stored"] == list(blobs)
        assert store.statistics() == before


async def test_each_object_is_answered_once(server):
    await server.make_repository()
    blobs = of_sizes(3, 4).blobs
    a, b = blobs
    body = {"object_ids": [a, b, a, a], "sizes": {a: 3, b: 4}}
    answer = await ask(server, "POST", "/alice/x/push/presign", token="alice", json=body)
    assert list(answer.value["presigned_urls"]) == [a, b]
    await hold(server, blobs)
    answer = await ask(server, "POST", "/alice/x/push/presign", token="alice", json=body)
    assert answer.value["already_stored"] == [a, b]
    assert (await confirm(server, [a, b, a])).value["confirmed"] == [a, b]


async def test_nothing_is_signed_and_nothing_confirmed_for_nothing(twin):
    await twin.make_repository()
    said = (await presign(twin, {})).value
    assert (said["presigned_urls"], said["already_stored"]) == ({}, [])
    assert (await confirm(twin, [])).value == {"confirmed": [], "rejected": []}


async def test_what_was_uploaded_wrongly_is_rejected_and_can_be_sent_again(server):
    """R1: nothing is taken that does not hash to its id; the others of the request are."""
    await server.make_repository()
    history = of_sizes(9, 10, 40_000, 300_000, 300_001, 12)
    good, short, wrong, large, wrong_large, absent = history.blobs
    urls = (await presign(server, history.blobs)).value["presigned_urls"]
    for object_id in (good, large, short, wrong, wrong_large):
        content = history.blobs[object_id]
        damaged = object_id in {wrong, wrong_large}
        assert (await put(server, urls[object_id], content[::-1] if not damaged else content[:-1] + b"?")).status == 204
    said = (await confirm(server, history.blobs, sizes={short: 11})).value
    assert said["confirmed"] == [good, large]
    assert {r["object_id"]: r["error"] for r in said["rejected"]} == {
        short: "bad_object_hash", wrong: "bad_object_hash", wrong_large: "bad_object_hash", absent: "missing_objects",
    }  # fmt: skip
    assert all(r["detail"] for r in said["rejected"])
    assert (await push(server, records_only(history)))["missing_count"] == 4
    urls = (await presign(server, history.blobs)).value["presigned_urls"]
    assert sorted(urls) == sorted([short, wrong, wrong_large, absent])
    await upload(server, history.blobs)
    assert (await confirm(server, history.blobs)).value["rejected"] == []
    assert (await push(server, records_only(history)))["type"] == "R"
    await same_as(server, history)


async def test_a_large_upload_goes_on_where_it_broke_off(server):
    """F28: small ones are sent again whole."""
    await server.make_repository()
    history = of_sizes(400_000)
    ((object_id, content),) = history.blobs.items()
    url = (await presign(server, history.blobs)).value["presigned_urls"][object_id]
    part = await put(server, url, content[:150_000], **{"content-range": "bytes 0-149999/400000"})
    assert (part.status, part.headers["upload-offset"]) == (202, "150000")
    assert (await confirm(server, [object_id])).value["rejected"][0]["error"] == "missing_objects"
    assert (await ask(server, "HEAD", target_of(url))).headers["upload-offset"] == "150000"
    rest = await put(server, url, content[150_000:], **{"content-range": "bytes 150000-399999/400000"})
    assert rest.status == 204
    assert (await confirm(server, [object_id])).value["confirmed"] == [object_id]


async def test_an_interrupted_push_goes_on_with_what_is_missing(server):
    """What it has brought is told to the one who sent it, and need not be sent again."""
    repository = await server.make_repository()
    await server.services.index.set_collaborator(repository.number, "bob", Right.ADMIN)
    history = two_commits()
    push_id, index, environment = uuid.uuid4(), server.services.index, server.services.environment
    ticket = await index.begin_push(repository.number, push_id, "alice", "main", environment.now(), 60)
    assert isinstance(ticket, PushTicket)
    brought = dict(list(history.blobs.items())[:2])
    contents = {bytes.fromhex(i[7:]): content for i, content in brought.items()}
    await server.services.store.put_batch([(loose_key(i, Scheme.TYPED), c) for i, c in contents.items()])
    await index.record_blobs(ticket, Scheme.TYPED, [StoredBlob(i, len(c)) for i, c in contents.items()])
    assert (await presign(server, history.blobs)).value["already_stored"] == []
    named = str(push_id)
    assert (await presign(server, history.blobs, token="bob", push_id=named)).value["already_stored"] == []
    assert (await presign(server, history.blobs, push_id=named)).value["already_stored"] == list(brought)
    rest = Push(blobs={i: c for i, c in history.blobs.items() if i not in brought}, commits=history.commits)
    rest.snapshots = history.snapshots
    assert (await push(server, rest.frames(push_id=named)))["type"] == "R"
    await same_as(server, history)


async def test_a_delta_may_build_on_what_was_confirmed(server):
    await server.make_repository()
    base, result = b"hello\n" * 20, b"hello\n" * 20 + b"!"
    await hold(server, {blob_id(base): base})
    history = Push()
    history.commit({"a": base})
    history.commit({"a": result})
    delta = containers.delta(120, 121, containers.copy(0, 120), containers.insert(b"!"))
    content = containers.stored_zlib(delta)
    brought = frame("O", object_id=blob_id(result), encoding="delta+zlib", base=blob_id(base), content=content)
    frames = [history.header(), brought, history.commit_frame(), history.end(n_objects=1)]
    said = await push(server, b"".join(frames))
    assert said["type"] == "R", said
    assert said["blobs_written"] == 2
    await same_as(server, history)


async def test_what_nobody_came_back_for_is_forgotten(database, tmp_path):
    """T28: a holding that expired gives no push anything, and its object is uploaded anew."""
    environment = SeededEnvironment(5)
    async with deployed(database, tmp_path, environment) as server:
        await server.make_repository()
        history = two_commits()
        await hold(server, history.blobs)
        environment.move(HELD_S + 1)
        refused = await push(server, records_only(history))
        assert (refused["error"], refused["missing_count"]) == ("missing_objects", len(history.blobs))
        assert sorted((await presign(server, history.blobs)).value["presigned_urls"]) == sorted(history.blobs)
        await hold(server, history.blobs)
        environment.move(HELD_S - 1)
        assert (await push(server, records_only(history)))["type"] == "R"
        await same_as(server, history)


async def test_asking_again_keeps_what_is_held(tmp_path):
    """A push that takes its time after a presign finds what it was told is there."""
    environment = SeededEnvironment(6)
    async with deployed(None, tmp_path, environment) as server:
        await server.make_repository()
        history = two_commits()
        await hold(server, history.blobs)
        environment.move(HELD_S - 1)
        assert (await presign(server, history.blobs)).value["already_stored"] == list(history.blobs)
        environment.move(HELD_S / 2)
        assert (await push(server, records_only(history)))["type"] == "R"


async def test_many_ids_are_answered_at_once(database_url, tmp_path):
    async with deployed(database_url, tmp_path) as server:
        await many(server)


async def many(server) -> None:
    repository = await server.make_repository()
    ids = [hashlib.sha256(b"%d" % number).digest() for number in range(MANY)]
    texts = [f"sha256:{i.hex()}" for i in ids]
    expires = server.services.environment.now() + dt.timedelta(days=1)
    held = [StoredBlob(i, 1) for i in ids[: MANY - 2_000]]
    for at in range(0, len(held), 8_000):
        await server.services.index.hold_blobs(repository.number, Scheme.TYPED, held[at : at + 8_000], expires)
    body = {"object_ids": texts, "sizes": dict.fromkeys(texts, 1)}
    answer = await ask(server, "POST", "/alice/x/push/presign", token="alice", msgpack=body)
    assert answer.value["already_stored"] == texts[: len(held)]
    assert list(answer.value["presigned_urls"]) == texts[len(held) :]
    answer = await ask(server, "POST", "/alice/x/push/confirm", token="alice", msgpack=body)
    assert answer.value["confirmed"] == texts[: len(held)]
    assert [r["object_id"] for r in answer.value["rejected"]] == texts[len(held) :]
    body["object_ids"] = [*texts, "sha256:" + "0" * 64]
    for route in ROUTES:
        answer = await ask(server, "POST", f"/alice/x/{route}", token="alice", msgpack=body)
        assert (answer.status, answer.error) == (413, "too_large")


@pytest.mark.parametrize("route", ROUTES)
async def test_R14_a_body_that_means_nothing_is_refused(twin, route):
    await with_history(twin)
    target = f"/alice/x/{route}"
    for kind, bodies in [("application/x-msgpack", BAD_MSGPACK), ("application/json", BAD_JSON)]:
        for what, body in {**bodies, "nothing": b""}.items():
            answer = await ask(twin, "POST", target, token="alice", body=body, headers={"content-type": kind})
            assert (answer.status, answer.error) == (422, "malformed"), (kind, what)
    text = await ask(twin, "POST", target, token="alice", body=b"x", headers={"content-type": "text/plain"})
    assert (text.status, text.error) == (415, "unsupported_media")
    large = await ask(twin, "POST", target, token="alice", headers={"content-length": str(2**26)})
    assert (large.status, large.error) == (413, "too_large")


GOOD = blob_id(b"good")
BAD_LISTS = {
    "none": None, "text": GOOD, "map": {GOOD: 1}, "number in it": [GOOD, 1], "list in it": [GOOD, [GOOD]],
    "short": [GOOD[:-1]], "long": [GOOD + "0"], "upper case": [GOOD.upper()], "upper digits": [GOOD[:-2] + "AB"],
    "space": [GOOD[:-1] + " "], "two spaces": [GOOD[:-2] + "  "], "the other scheme": [GOOD[7:]],
    "both schemes": [GOOD, GOOD[7:]], "shifted": [GOOD[:-1], GOOD + "0"], "prefix twice": ["sha256:" * 2 + GOOD[14:]],
    "not ASCII": [GOOD[:-1] + "é"],
}  # fmt: skip


@pytest.mark.parametrize("route", ROUTES)
async def test_T13_only_ids_of_the_repositorys_scheme_are_ids(twin, route):
    await with_history(twin)
    await twin.make_repository(slug="empty")
    for what, listed in BAD_LISTS.items():
        body = {"object_ids": listed, "sizes": {}}
        for form in ("json", "msgpack"):
            answer = await ask(twin, "POST", f"/alice/x/{route}", token="alice", **{form: body})
            assert (answer.status, answer.error) == (422, "malformed"), what
    mixed = {"object_ids": [GOOD[7:], GOOD], "sizes": {GOOD: 4, GOOD[7:]: 4}}
    assert (await ask(twin, "POST", f"/alice/empty/{route}", token="alice", json=mixed)).error == "malformed"
    mixed["object_ids"].pop()
    assert (await ask(twin, "POST", f"/alice/empty/{route}", token="alice", json=mixed)).status == 200


async def test_a_size_that_is_none_is_refused_before_a_byte_is_sent(twin):
    await twin.make_repository()
    most = twin.services.limits.object_bytes
    for sizes, error in [
        (None, "malformed"), ({}, "malformed"), ([4], "malformed"), ({GOOD: -1}, "malformed"),
        ({GOOD: True}, "malformed"), ({GOOD: 4.0}, "malformed"), ({GOOD: "4"}, "malformed"),
        ({GOOD: most + 1}, "too_large"), ({GOOD: 2**63}, "too_large"),
    ]:  # fmt: skip
        body = {"object_ids": [GOOD], "sizes": sizes}
        answer = await ask(twin, "POST", "/alice/x/push/presign", token="alice", json=body)
        assert answer.error == error, sizes
    for push_id in ("x", 5, [], b"short"):
        body = {"object_ids": [GOOD], "sizes": {GOOD: 4}, "push_id": push_id}
        answer = await ask(twin, "POST", "/alice/x/push/presign", token="alice", msgpack=body)
        assert answer.error == "malformed", push_id


class Overtaken(WrappedStore):
    """A store in which somebody else has always been faster."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.first: Callable[[], Awaitable[object]] | None = None

    async def get(self, key: str, most: int) -> bytes:
        first, self.first = self.first, None
        if first is not None:
            await first()
        return await self.inner.get(key, most)


async def test_F31_of_two_confirmations_at_once_both_succeed(tmp_path):
    """The one that comes later finds no upload any more, and what the other has confirmed."""
    store = Overtaken(MemoryStore())
    async with serving(MemoryIndex(), store, tmp_path) as server:
        await server.make_repository()
        ids = list(await upload(server, of_sizes(3, 40_000, 300_000).blobs))
        answers = []

        async def confirm_all() -> None:
            answers.append((await confirm(server, ids)).value)

        store.first = confirm_all
        await confirm_all()
        assert answers == [{"confirmed": ids, "rejected": []}] * 2


async def test_F1_a_store_that_does_not_answer_is_not_an_object_that_is_missing(tmp_path, expected_errors):
    """R8: every call of a confirmation fails once; the request is refused as a whole, and succeeds when repeated."""
    del expected_errors
    history = of_sizes(5, 6, 50_000, 300_000)
    failing: list[int] = []
    store = FaultyStore(MemoryStore(), lambda call: Fault(fail_before=True) if call.number in failing else None)
    async with serving(MemoryIndex(), store, tmp_path) as server:
        await server.make_repository()
        urls = await upload(server, history.blobs)
        refused = 0
        while True:
            failing[:] = [store.calls + 1 + refused]
            answer = await confirm(server, urls)
            if answer.status == 200:
                break
            assert (answer.status, answer.error, answer.value["retryable"]) == (503, "store_unavailable", True)
            refused += 1
        assert refused >= 7  # four are read, two put, one copied
        failing.clear()
        assert answer.value == {"confirmed": list(history.blobs), "rejected": []}
        assert (await push(server, records_only(history)))["type"] == "R"
        await same_as(server, history)


async def test_F1_a_store_that_does_not_answer_keeps_nobody_from_asking(tmp_path):
    """A presign asks the index alone."""
    broken: list[bool] = []
    store = FaultyStore(MemoryStore(), lambda _: Fault(fail_before=True) if broken else None)
    async with serving(MemoryIndex(), store, tmp_path) as server:
        await server.make_repository()
        blobs = of_sizes(5, 6).blobs
        broken.append(True)
        answer = await presign(server, blobs)
        assert answer.status == 200
        for object_id, url in answer.value["presigned_urls"].items():
            assert (await put(server, url, blobs[object_id])).error == "store_unavailable"
        broken.clear()
        await hold(server, blobs)
