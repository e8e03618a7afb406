"""What the public 0.1.x client relies on between the lines of protocol §9: forms, limits, connections, exact values."""

from __future__ import annotations

import json
import random

import msgpack
import pytest
import trio

from tests.acceptance.test_plain_client import ACCEPT, TREES, call, check_clone, fetched, history, push
from tests.http_client import ask
from tests.muse import Push, blob_id, make_commit, make_snapshot, plain
from tests.servers import TOKENS, Server

pytestmark = pytest.mark.usefixtures("expected_errors")

ID = "a" * 64
EXCHANGES = [
    ("GET", "refs", None, 200), ("POST", "filter-objects", {"object_ids": [ID]}, 200),
    ("POST", "presign", {"object_ids": [ID], "direction": "get"}, 200), ("POST", "push/objects", {"objects": []}, 200),
    ("POST", "fetch", {"want": [], "have": []}, 200), ("POST", "fetch", {"want": [ID], "have": []}, 404),
    ("POST", "negotiate", {"want": [], "have": []}, 200), ("POST", "tags", {"tags": []}, 200),
    ("GET", "tags", None, 200),
    ("POST", "releases", {"tag": "v"}, 200), ("GET", "releases", None, 200), ("DELETE", "releases/none", None, 404),
    ("POST", "push", {"bundle": {}, "branch": "main"}, 422), ("POST", "presign", {"direction": "up"}, 422),
]  # fmt: skip


async def test_answers_are_msgpack_where_it_is_asked_for_and_json_elsewhere(twin: Server):
    """Errors as well; nothing answers with a redirect, and a body as JSON is understood as one as msgpack is."""
    await twin.make_repository()
    assert (await push(twin, history(TREES[0]))).status == 200
    for method, endpoint, body, status in EXCHANGES:
        for accept, kind, read in (
            (ACCEPT, "application/x-msgpack", msgpack.unpackb), ("*/*", "application/json", json.loads),
            ("application/json", "application/json", json.loads), ("", "application/json", json.loads),
        ):  # fmt: skip
            headers = {"accept": accept} if accept else {}
            sent = {} if body is None else {"msgpack": body}
            answer = await ask(twin, method, f"/alice/x/{endpoint}", token="alice", headers=headers, **sent)
            assert (answer.status, answer.headers["content-type"]) == (status, kind), (endpoint, accept)
            value = read(answer.body)
            assert isinstance(value, dict)
            assert ("error" in value) == (status >= 400), (endpoint, value)


LIMITS = [
    ("filter-objects", "object_ids", 50_000, lambda n: {"object_ids": ids(n)}),
    ("presign", "object_ids", 10_000, lambda n: {"object_ids": ids(n), "direction": "put"}),
    ("push/objects", "objects", 1_000, lambda n: {"objects": [{"object_id": blob_id(b"%d" % i, plain),
                                                               "content": b"%d" % i} for i in range(n)]}),
    ("fetch", "have", 100_000, lambda n: {"want": [], "have": ids(n)}),
    ("tags", "tags", 1_000, lambda n: {"tags": [{"tag": f"v{i}", "commit_id": ID} for i in range(n)]}),
]  # fmt: skip


def ids(count: int) -> list[str]:
    data = random.Random(count).randbytes(32 * count).hex()
    return [data[at : at + 64] for at in range(0, len(data), 64)]


@pytest.mark.parametrize(("endpoint", "what", "most", "make"), LIMITS, ids=[row[0] for row in LIMITS])
async def test_as_many_as_the_protocol_says_and_no_more(twin: Server, endpoint: str, what: str, most: int, make):
    """The most is taken (or refused for another reason than its number), one more is ``too_large``."""
    await twin.make_repository()
    assert (await push(twin, history(TREES[0]))).status == 200
    most_of_it = await call(twin, endpoint, make(most))
    taken = (200, None) if endpoint != "tags" else (422, "missing_parents")  # of commits nobody has
    assert (most_of_it.status, most_of_it.value.get("error")) == taken
    refused = await call(twin, endpoint, make(most + 1))
    assert (refused.status, refused.error) == (413, "too_large")


async def test_have_of_a_hundred_thousand_finds_what_is_common(twin: Server):
    """However many there are, and wherever in them the known ones are, only what is new comes back."""
    await twin.make_repository()
    made = history(*({"f": b"%d" % n} for n in range(12)))
    assert (await push(twin, made)).status == 200
    known = [commit["commit_id"] for commit in made.commits[:10]]
    value = await fetched(twin, [made.head], [*ids(50_000), *known, *ids(49_990)])
    assert [commit["commit_id"] for commit in value["commits"]] == [c["commit_id"] for c in made.commits[10:]]


@pytest.mark.parametrize("status", [200, 404, 413])
async def test_a_connection_is_closed_after_the_answer_when_that_was_asked(server: Server, status: int):
    """``Connection: close``: the answer is whole, says so, and then the connection ends; bodies may be large."""
    await server.make_repository()
    made = history({"big": random.Random(1).randbytes(700_000), "empty": b""})
    body = {
        200: {"bundle": {"commits": made.commits, "snapshots": made.snapshots, "objects": [
            {"object_id": oid, "content": content} for oid, content in made.blobs.items()]}, "branch": "main"},
        404: {}, 413: {"bundle": {"commits": [1] * 100_000}, "branch": "main"},
    }[status]  # fmt: skip
    data = msgpack.packb(body)
    head = (
        f"POST /alice/{'x' if status != 404 else 'nothing'}/push HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Accept: {ACCEPT}\r\nContent-Type: application/x-msgpack\r\nAuthorization: Bearer {TOKENS['alice']}\r\n"
        f"Content-Length: {len(data)}\r\n\r\n"
    ).encode()
    stream = await trio.open_tcp_stream(*server.address)
    heard = bytearray()
    with trio.fail_after(20):
        async with stream:
            await stream.send_all(head + data)
            async for piece in stream:
                heard += piece
    top, _, content = bytes(heard).partition(b"\r\n\r\n")
    lines = top.decode().lower().split("\r\n")
    assert lines[0].startswith(f"http/1.1 {status}")
    assert "connection: close" in lines
    assert len(content) == int(next(line for line in lines if line.startswith("content-length")).split(":")[1])
    assert isinstance(msgpack.unpackb(content), dict)


async def test_the_same_small_file_in_every_repository(server: Server):
    """Who has pushed a file to one repository sends it to the next as well, and each has it (R2)."""
    ignored = {".museignore": b"*.pyc\n", "empty": b""}
    for slug in ("x", "y", "z"):
        await server.make_repository(slug=slug)
        made = history({**ignored, "own": slug.encode()}, message=slug)
        asked = await call(server, "filter-objects", {"object_ids": list(made.blobs)}, slug=slug)
        assert asked.value["missing"] == list(made.blobs)
        lacking = await push(server, made, slug=slug, without=frozenset(made.blobs))
        assert (lacking.status, lacking.error) == (422, "missing_objects")
        objects = [{"object_id": oid, "content": content, "path": "p"} for oid, content in made.blobs.items()]
        assert (await call(server, "push/objects", {"objects": objects}, slug=slug)).value["stored"] == len(objects)
        assert (await push(server, made, slug=slug, without=frozenset(made.blobs))).status == 200
        again = await call(server, "filter-objects", {"object_ids": list(made.blobs)}, slug=slug)
        assert again.value["missing"] == []
        check_clone(await fetched(server, [made.head], slug=slug), made)


async def test_the_same_objects_at_once_by_four_connections(server: Server):
    """Each is told of all it sent, and the push that names them finds every one."""
    await server.make_repository()
    made = history({f"f{n}": b"%d" % n * n for n in range(300)})
    objects = [{"object_id": oid, "content": content} for oid, content in made.blobs.items()]
    answers = []

    async def send() -> None:
        answers.append((await call(server, "push/objects", {"objects": objects})).value)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(send)
    assert [answer["stored"] + answer["skipped"] for answer in answers] == [len(objects)] * 4
    assert (await push(server, made, without=frozenset(made.blobs))).status == 200
    check_clone(await fetched(server, [made.head]), made)


EXACTLY = {
    "empty": {}, "nested": {"a": [{"b": [None, True, False, [], {}]}], "é\u0000": "\U0001f600\r\n\t"}, "one": 1,
    "integral float": 1.0, "small": 5e-324, "large": 1.7976931348623157e308, "negative": -(2**63), "most": 2**64 - 1,
    "bytes": b"\x00\xff", "a map like ours": {"$bytes": "AA=="}, "and": {"$$x": {"$y": 1}}, "date": "2026-1-2",
}  # fmt: skip


async def test_structured_deltas_and_unknown_fields_come_back_as_they_were(server: Server):
    """Every value of every type, in commits and in snapshots; a true is no 1, and 1.0 no 1."""
    await server.make_repository()
    made = Push(name=plain, blobs={blob_id(b"x", plain): b"x"})
    snapshot = make_snapshot({"x": blob_id(b"x", plain)}, name=plain, unknown=EXACTLY, schema_version=3)
    made.snapshots = [snapshot]
    for number, value in enumerate([EXACTLY, list(EXACTLY.values()), None, "text", 3, True, 2.0]):
        parents = [made.head] if made.commits else []
        made.commits.append(
            make_commit(
                snapshot["snapshot_id"],
                parents,
                plain,
                structured_delta=value,
                message=f"{number}\n",
                novel=EXACTLY,
                committed_at="2026-01-02T03:04:05Z",
                repo_id="elsewhere",
            )
        )
    assert (await push(server, made)).status == 200
    value = await fetched(server, [made.head])
    got = {commit["commit_id"]: commit for commit in value["commits"]}
    for commit in made.commits:
        assert ordered(got[commit["commit_id"]]) == ordered(commit)
    (returned,) = value["snapshots"]
    assert ordered({"directories": [], **returned}) == ordered(snapshot)


def ordered(value: object) -> bytes:
    """Give the bytes of a value, its maps in one order: what is equal and of another type differs."""

    def sort(item: object) -> object:
        if isinstance(item, dict):
            return {key: sort(item[key]) for key in sorted(item)}
        return [sort(each) for each in item] if isinstance(item, list) else item

    return msgpack.packb(sort(value))
