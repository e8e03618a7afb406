"""Bodies and heads that mean nothing (threat T9, regression R14): never a 500, never a trace."""

from __future__ import annotations

import pytest

from tests.clones import fetch
from tests.deployments import with_history
from tests.http_client import MSGPACK, ask, connected, head_bytes
from tests.servers import Server

JSON = "application/json"
ZEROS = "sha256:" + "0" * 64
MIB = 1024 * 1024

pytestmark = pytest.mark.usefixtures("expected_errors")


POSTS = ["/alice/x/negotiate", "/alice/x/fetch", "/alice/x/fetch/mpack", "/api/repos"]
OTHERS = [("PATCH", "/api/repos/alice/x"), ("PUT", "/api/repos/alice/x/collaborators/bob")]
ENDPOINTS = [*(("POST", target) for target in POSTS), *OTHERS]

BAD_MSGPACK = {
    "reserved byte": b"\xc1",
    "cut map": b"\x82\xa4want",
    "cut string": b"\xa9abc",
    "no map": b"\x93\x01\x02\x03",
    "nil": b"\xc0",
    "text": b"\xa3abc",
    "map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "array of 4 billion": b"\xdd\xff\xff\xff\xff",
    "str of 4 GB": b"\x81\xa4want\xdb\xff\xff\xff\xff",
    "bin of 4 GB": b"\x81\xa4want\xc6\xff\xff\xff\xff",
    "ext": b"\x81\xa4want\xd4\x05\x00",
    "timestamp": b"\x81\xa4want\xd6\xff\x00\x00\x00\x01",
    "deep arrays": b"\x81\xa4want" + b"\x91" * 100_000,
    "deep maps": b"\x81\xa1a" * 100_000,
    "key twice": b"\x82\xa4want\x90\xa4want\x90",
    "key that is a number": b"\x81\x01\x02",
    "key that is a list": b"\x81\x90\x02",
    "key that is nil": b"\x81\xc0\x02",
    "text that is not UTF-8": b"\x81\xa2\xff\xfe\x01",
    "bytes after it": b"\x80\x80",
    "json": b'{"want": []}',
}
BAD_JSON = {
    "nothing but a brace": b"{",
    "no map": b"[1]",
    "null": b"null",
    "text": b'"abc"',
    "number": b"1",
    "not UTF-8": b'{"want": "\xff\xfe"}',
    "key twice": b'{"want": [], "want": []}',
    "NaN": b'{"want": NaN}',
    "infinity": b'{"depth": Infinity, "want": []}',
    "half a surrogate": b'{"want": ["\\ud800"]}',
    "half a surrogate as key": b'{"\\udfff": 1}',
    "deep lists": b'{"want":' + b"[" * 100_000,
    "deep maps": b'{"want":' * 100_000,
    "number of 5000 digits": b'{"depth": ' + b"9" * 5000 + b"}",
    "bytes after it": b"{} {}",
    "UTF-16": '{"want": 1'.encode("utf-16"),
    "msgpack": b"\x81\xa4want\x90",
    "NUL": b"\0",
    "trailing comma": b'{"want": [],}',
}


@pytest.mark.parametrize("body", BAD_MSGPACK.values(), ids=BAD_MSGPACK.keys())
async def test_R14_garbage_msgpack_is_422(twin, body):
    await garbage_is_422(twin, MSGPACK, body)


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON.keys())
async def test_R14_garbage_json_is_422(twin, body):
    await garbage_is_422(twin, JSON, body)


async def garbage_is_422(server: Server, kind: str, body: bytes) -> None:
    await server.make_repository()
    async with connected(server) as connection:
        for method, target in ENDPOINTS:
            headers = {"content-type": kind}
            answer = await connection.ask(method, target, token="alice", headers=headers, body=body)
            assert (answer.status, answer.error) == (422, "malformed"), (method, target)
            assert len(answer.body) < 1000  # what was sent is not sent back


VALUES = [
    None,
    True,
    0,
    -1,
    2**63,
    1.5,
    "",
    "x",
    "x" * 5000,
    "\0",
    [],
    [None],
    [[]],
    {},
    {"a": {"b": []}},
    b"",
    b"bytes",
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:20])
async def test_R14_any_type_in_any_field_is_never_a_500(server, database, value):
    history = await with_history(server)
    fields = {
        "/alice/x/negotiate": {"want": [history.head], "have": [history.head]},
        "/alice/x/fetch": {"want": [history.head], "have": [], "depth": 1},
        "/api/repos": {
            "slug": "new", "owner": "alice", "visibility": "private", "default_branch": "main", "domain": "code",
            "settings": {},
        },
        "/api/repos/alice/x": {"visibility": "private", "default_branch": "main", "settings": {}},
        "/api/repos/alice/x/collaborators/bob": {"right": "read"},
    }  # fmt: skip
    methods = {"/api/repos/alice/x": "PATCH", "/api/repos/alice/x/collaborators/bob": "PUT"}
    async with connected(server) as connection:
        for target, body in fields.items():
            for name in body:
                for wrong in (value, [value], {"x": value}) if database is None else (value,):
                    changed = {**body, name: wrong}
                    answer = await connection.ask(methods.get(target, "POST"), target, token="alice", msgpack=changed)
                    assert answer.status in {200, 201, 403, 404, 409, 422}, (target, changed, answer)
                    if answer.status >= 400:
                        assert answer.error in {"malformed", "forbidden", "not_found", "already_exists"}


async def test_R14_unknown_fields_of_a_control_body_are_ignored(twin):
    history = await with_history(twin)
    assert (await fetch(twin, [history.head], unknown={"a": [1, b"2"]})).status == 200


@pytest.mark.parametrize("path", [
    "/%ff/x/refs", "/alice/%c3%28/refs", "/alice/x/o/%f0%28%8c%28", "/api/repos/%ff/x", "/alice/x%00/refs",
    "/alice/%00/o/" + ZEROS, "/api/repos/alice/x%00",
])  # fmt: skip
async def test_R14_a_path_that_is_not_text_is_422(server, path):
    for method in ("GET", "POST", "DELETE"):
        answer = await ask(server, method, path, token="alice")
        assert (answer.status, answer.error) == (422, "malformed")


@pytest.mark.parametrize("path", [
    "/" * 100, "/a" * 1000, "/alice/x/refs/", "/alice//x/refs", "/alice/x/../x/refs",
    "/%2e%2e/x/refs", "/alice/x/o/", "/alice/x/o/a/b", "/" + "a" * 8000, "/alice/%E2%80%AE/refs",
    "/%F0%9F%8E%B5/x/refs",
    "/alice/x;y/refs", "/alice/x%20/refs", "/alice/x%0a/refs", "/ALICE/x/refs", "/alice/X/refs", "/alice/x/REFS",
])  # fmt: skip
async def test_R14_an_odd_path_is_404(server, path):
    await server.make_repository()
    answer = await ask(server, "GET", path, token="alice")
    assert (answer.status, answer.error) == (404, "not_found")


async def test_R14_odd_queries_and_headers_change_nothing(twin):
    await twin.make_repository()
    for query in ("?", "?%ff", "?a=1&a=2", "?" + "a=b&" * 1000, "?=", "?%00=%00"):
        assert (await ask(twin, "GET", f"/alice/x/refs{query}", token="alice")).status == 200
    odd = [
        ("accept", "\xff"), ("accept", "," * 1000), ("range", "bytes=\xb2-"), ("cookie", "\xff=\xfe; a"),
        ("if-none-match", "\xff"), ("host", "a b/c?d"),
        ("host", "["), ("host", ""), ("x-forwarded-for", "\xff"), ("content-length", "0"),
        ("content-type", "\xff"), ("referer", "\t"), ("x" * 5000, "y"),
    ]  # fmt: skip
    for name, value in odd:
        assert (await ask(twin, "GET", "/alice/x/refs", token="alice", headers={name: value})).status == 200


@pytest.mark.parametrize("target", ["/api/repos/alice/x", "/livez", "/nonsense"])
async def test_R14_a_host_that_cannot_be_one_is_422(twin, target):
    answer = await ask(twin, "GET", target, token="alice", headers={"host": "x" * 500})
    assert (answer.status, answer.error) == (422, "malformed")


async def test_R14_a_body_above_the_limit_is_413_whether_or_not_its_length_is_told(twin):
    await twin.make_repository()
    body = b'{"want": [], "x": "' + b"x" * MIB + b'"}'
    for method, target in ENDPOINTS:
        if target == "/alice/x/fetch":  # an old client's list of 100,000 ids is allowed
            continue
        answer = await ask(twin, method, target, token="alice", body=body, headers={"content-type": JSON})
        assert (answer.status, answer.error) == (413, "too_large")
    async with connected(twin) as connection:
        headers = {"transfer-encoding": "chunked", "content-type": JSON}
        await connection.send(head_bytes("POST", "/alice/x/fetch/mpack", token="alice", headers=headers))
        for at in range(0, len(body), 65536):
            await connection.send_chunk(body[at : at + 65536])
        answer = await connection.answer("POST")
        assert (answer.status, answer.error) == (413, "too_large")


async def test_R14_a_body_that_is_never_sent_is_413_at_once_when_its_length_is_too_large(twin):
    await twin.make_repository()
    async with connected(twin) as connection:
        headers = {"content-length": str(10**15)}
        await connection.send(head_bytes("POST", "/alice/x/fetch/mpack", token="alice", headers=headers))
        assert (await connection.answer("POST")).error == "too_large"


async def test_R14_a_body_that_is_cut_leaves_no_trace(twin):
    await twin.make_repository()
    for at in (0, 5, 11):
        async with connected(twin) as connection:
            headers = {"content-length": "15", "content-type": JSON}
            await connection.send(head_bytes("POST", "/api/repos", token="alice", headers=headers))
            await connection.send(b'{"slug": "cut"}'[:at])
    assert len((await ask(twin, "GET", "/api/repos", token="alice")).value["repositories"]) == 1
