"""The control endpoints over real HTTP: formats, errors, refs, negotiation, and who may read.

Most tests run twice: over the memory twins, and over PostgreSQL and a directory.
"""

from __future__ import annotations

import pytest

from storage.environment import SeededEnvironment
from storage.memory.index import MemoryIndex
from storage.objects.faulty import Fault, FaultyStore
from storage.objects.memory import MemoryStore
from storage.rows import Right
from tests.clones import clone, fetch
from tests.deployments import DownIndex, bearer, deployed, readings, with_history
from tests.http_client import MSGPACK, ask, push, without_id
from tests.muse import Push, frame, plain, random_history
from tests.servers import Server, serving

JSON = "application/json"
ZEROS = "sha256:" + "0" * 64
MIB = 1024 * 1024

pytestmark = pytest.mark.usefixtures("expected_errors")


@pytest.mark.parametrize("accept", [JSON, MSGPACK])
@pytest.mark.parametrize("sent", ["json", "msgpack"])
async def test_every_control_endpoint_takes_and_gives_json_and_msgpack(server, sent, accept):
    head = (await with_history(server)).head

    async def check(method: str, target: str, body: object, status: int, keys: set[str]) -> dict:
        options = {} if body is None else {sent: body}
        answer = await ask(server, method, target, token="alice", headers={"accept": accept}, **options)
        assert (answer.status, answer.headers["content-type"]) == (status, accept), answer
        assert answer.value.keys() == keys
        return answer.value

    repository = {
        "repo_id", "owner", "slug", "visibility", "scheme", "default_branch", "domain", "created_at", "settings",
    }  # fmt: skip
    fetched = {"mpack_id", "mpack_url", "commit_count", "object_count", "size_bytes"}
    await check("GET", "/livez", None, 200, {"status"})
    await check("GET", "/readyz", None, 200, {"status", "checks"})
    await check("GET", "/alice/x/refs", None, 200, {"repo_id", "domain", "default_branch", "branch_heads"})
    await check("POST", "/alice/x/negotiate", {"want": [head], "have": []}, 200, {"ack", "common_base", "ready"})
    await check("POST", "/alice/x/fetch", {"want": [head], "have": []}, 200, fetched)
    await check("POST", "/alice/x/fetch/mpack", {"want": [head], "depth": 1}, 200, fetched | {"shallow"})
    made = await check("POST", "/api/repos", {"slug": "made", "visibility": "public"}, 201, repository)
    assert made["visibility"] == "public"
    await check("GET", "/api/repos", None, 200, {"repositories"})
    await check("GET", "/api/repos/alice/made", None, 200, repository | {"right"})
    await check("PATCH", "/api/repos/alice/made", {"visibility": "private"}, 200, repository)
    await check("PUT", "/api/repos/alice/made/collaborators/bob", {"right": "read"}, 200, {"handle", "right"})
    await check("DELETE", "/api/repos/alice/made", None, 200, {"deleted"})
    await check("GET", "/api/repos/alice/made", None, 404, {"error", "detail", "request_id", "retryable"})


@pytest.mark.parametrize(("accept", "kind"), [
    ("application/x-msgpack, application/json", MSGPACK),
    ("text/html, application/x-msgpack;q=0.9", MSGPACK),
    ("application/vnd.msgpack", MSGPACK),
    ("APPLICATION/X-MSGPACK", MSGPACK),
    ("*/*", JSON),
    ("text/html", JSON),
    ("", JSON),
    (None, JSON),
])  # fmt: skip
async def test_answers_are_msgpack_when_accept_names_it_and_json_otherwise(twin, accept, kind):
    headers = {} if accept is None else {"accept": accept}
    for target in ("/livez", "/alice/nothing/refs", f"/alice/nothing/o/{ZEROS}"):
        assert (await ask(twin, "GET", target, headers=headers)).headers["content-type"] == kind


async def test_a_body_without_a_type_is_json(twin):
    await twin.make_repository()
    answer = await ask(twin, "POST", "/alice/x/negotiate", token="alice", body=b'{"want": []}')
    assert answer.status == 200


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "text/json", "APPLICATION/JSON"])
async def test_a_type_may_have_parameters_and_any_case(twin, kind):
    await twin.make_repository()
    headers = {"content-type": kind}
    answer = await ask(twin, "POST", "/alice/x/negotiate", token="alice", headers=headers, body=b'{"want": []}')
    assert answer.status == 200


@pytest.mark.parametrize("kind", ["text/plain", "multipart/form-data; boundary=x", "application/x-muse-pack", "?"])
async def test_a_body_of_another_type_is_unsupported_media(twin, kind):
    await twin.make_repository()
    headers = {"content-type": kind}
    answer = await ask(twin, "POST", "/alice/x/negotiate", token="alice", headers=headers, body=b'{"want": []}')
    assert (answer.status, answer.error) == (415, "unsupported_media")


@pytest.mark.parametrize("accept", [JSON, MSGPACK])
@pytest.mark.parametrize(("method", "target", "token", "status", "code"), [
    ("POST", "/alice/x/push/stream", None, 401, "unauthenticated"),
    ("GET", "/api/repos/alice/nothing", "alice", 404, "not_found"),
    ("DELETE", "/api/repos/alice/public", "bob", 403, "forbidden"),
    ("POST", "/alice/public/push/stream", "bob", 403, "forbidden"),
    ("GET", "/alice/x/nonsense", "alice", 404, "not_found"),
    ("GET", "/", "alice", 404, "not_found"),
    ("DELETE", "/alice/x/refs", "alice", 405, "method_not_allowed"),
    ("GET", "/alice/x/push/stream", "alice", 405, "method_not_allowed"),
    ("POST", f"/alice/x/o/{ZEROS}", "alice", 405, "method_not_allowed"),
    ("GET", f"/alice/x/o/{ZEROS}", "alice", 404, "not_found"),
    ("GET", "/alice/x/o/nonsense", "alice", 422, "malformed"),
    ("POST", "/alice/x/fetch", "alice", 422, "malformed"),
])  # fmt: skip
async def test_a_refusal_is_the_envelope_with_a_stable_code(twin, method, target, token, status, code, accept):
    await twin.make_repository()
    await twin.make_repository(slug="public", public=True)
    answer = await ask(twin, method, target, token=token, headers={"accept": accept})
    assert answer.headers["content-type"] == accept
    assert (answer.status, answer.error, answer.value["retryable"]) == (status, code, False)
    assert answer.headers.get("cache-control") == "no-store"


@pytest.mark.parametrize(("method", "target", "allowed"), [
    ("DELETE", "/alice/x/refs", {"GET", "HEAD", "POST"}), ("DELETE", "/livez", {"GET", "HEAD", "OPTIONS"}),
    ("GET", "/alice/x/push/stream", {"POST"}), ("POST", f"/alice/x/o/{ZEROS}", {"GET", "HEAD"}),
])  # fmt: skip
async def test_what_is_not_offered_names_what_is(twin, method, target, allowed):
    await twin.make_repository()
    answer = await ask(twin, method, target, token="alice")
    assert (answer.status, set(answer.headers["allow"].split(", "))) == (405, allowed)


async def test_every_answer_has_a_request_id_of_its_own(twin):
    await with_history(twin)
    targets = ["/livez", "/alice/x/refs", "/alice/x/o/bad", "/alice/nothing/refs", "/%ff", "/nonsense", "/livez"]
    ids = [(await ask(twin, "GET", target, token="alice")).headers["x-request-id"] for target in targets]
    assert len(set(ids)) == len(targets)


@pytest.mark.parametrize("authorization", [
    "Bearer nobody-knows-this", "Bearer", "Bearer ", "Basic YWxpY2U6eA==", "nonsense", "", "Bearer \xff\xfe",
    'MSign handle="alice" alg="ed25519" ts=1 sig="AAAA"',
])  # fmt: skip
@pytest.mark.parametrize("target", ["/alice/public/refs", f"/alice/public/o/{ZEROS}", "/api/repos"])
async def test_a_token_that_is_not_valid_is_401_even_where_none_is_needed(twin, target, authorization):
    await twin.make_repository(slug="public", public=True)
    answer = await ask(twin, "GET", target, headers={"authorization": authorization})
    assert (answer.status, answer.error) == (401, "unauthenticated")
    assert 'realm="museworkd"' in answer.headers["www-authenticate"]


async def test_an_expired_or_revoked_token_is_401(database, tmp_path):
    environment = SeededEnvironment(1)
    async with deployed(database, tmp_path, environment) as server:
        await server.make_repository()
        _, lasting = await bearer(server, "alice", Right.ADMIN, lifetime_s=60)
        token, revoked = await bearer(server, "alice", Right.ADMIN)
        for headers in (lasting, revoked):
            assert (await ask(server, "GET", "/alice/x/refs", headers=headers)).status == 200
        environment.move(60)
        await server.services.index.revoke_token(token.token_id, environment.now())
        for headers in (lasting, revoked):
            answer = await ask(server, "GET", "/alice/x/refs", headers=headers)
            assert (answer.status, answer.error) == (401, "unauthenticated")


async def test_an_index_that_does_not_answer_is_503_with_retry_after(tmp_path):
    index = DownIndex()
    async with serving(index, MemoryStore(), tmp_path) as server:
        history = await with_history(server)
        index.down = True
        for method, target in [
            ("GET", "/alice/x/refs"), ("POST", "/alice/x/fetch"), ("POST", "/alice/x/push/stream"),
            ("GET", f"/alice/x/o/{next(iter(history.blobs))}"), ("GET", "/api/repos/alice/x"),
        ]:  # fmt: skip
            answer = await ask(server, method, target, token="alice")
            assert (answer.status, answer.error, answer.value["retryable"]) == (503, "index_unavailable", True)
            assert int(answer.headers["retry-after"]) > 0
        index.down = False
        assert (await ask(server, "GET", "/alice/x/refs", token="alice")).status == 200


async def test_R8_a_store_that_does_not_answer_is_503_with_retry_after(tmp_path):
    broken: list[bool] = []
    store = FaultyStore(MemoryStore(), lambda _: Fault(fail_before=True) if broken else None)
    async with serving(MemoryIndex(), store, tmp_path, limits__content_cache_object_bytes=0) as server:
        history = await with_history(server)
        broken.append(True)
        for answer in [
            await fetch(server, [history.head]),
            await ask(server, "GET", f"/alice/x/o/{next(iter(history.blobs))}", token="alice"),
        ]:
            assert (answer.status, answer.error, answer.value["retryable"]) == (503, "store_unavailable", True)
            assert int(answer.headers["retry-after"]) > 0


async def test_refs_of_an_empty_repository_has_no_heads(server):
    made = await server.make_repository()
    answer = await ask(server, "GET", "/alice/x/refs", token="alice")
    assert answer.value == {
        "repo_id": str(made.repo_id), "domain": "code", "default_branch": "main", "branch_heads": {},
    }  # fmt: skip
    assert answer.headers["cache-control"] == "no-store"


async def test_refs_names_every_branch_with_its_head(server):
    history = await with_history(server)
    first = history.commits[0]["commit_id"]
    header = frame("H", version=2, branch="feature/ü", head=first, force=False)
    assert (await push(server, header + frame("E", n_objects=0, n_commits=0)))["type"] == "R"
    answer = await ask(server, "GET", "/alice/x/refs", token="alice")
    assert answer.value["branch_heads"] == {"main": history.head, "feature/ü": first}


async def test_refs_of_a_plain_repository_has_bare_ids(server):
    history = Push(name=plain)
    history.commit({"a.txt": b"hello\n", "empty": b""})
    await with_history(server, history)
    answer = await ask(server, "GET", "/alice/x/refs", token="alice")
    assert answer.value["branch_heads"] == {"main": history.head}
    assert ":" not in history.head


async def negotiate(server: Server, want: list[str], have: list[str]) -> dict:
    answer = await ask(server, "POST", "/alice/x/negotiate", token="alice", json={"want": want, "have": have})
    assert answer.status == 200, answer
    return answer.value


async def test_negotiate_acknowledges_what_the_repository_holds_in_order_and_names_a_common_base(server):
    history = await with_history(server, random_history(3, commits=8))
    ids = [commit["commit_id"] for commit in history.commits]
    foreign = "sha256:" + "ab" * 32
    answer = await negotiate(server, [history.head], [ids[2], foreign, ids[0], ids[2]])
    assert answer["ack"] == [ids[2], ids[0]]
    assert answer["common_base"] in {ids[2], ids[0]}
    assert answer["ready"] is True


async def test_negotiate_without_anything_in_common_is_ready_only_for_an_empty_have(server):
    history = await with_history(server)
    foreign = "sha256:" + "ab" * 32
    assert await negotiate(server, [history.head], [foreign]) == {"ack": [], "common_base": None, "ready": False}
    assert await negotiate(server, [history.head], []) == {"ack": [], "common_base": None, "ready": True}


async def test_negotiate_takes_a_thousand_ids_and_not_one_more(twin):
    history = await with_history(twin)
    ids = [f"sha256:{number:064x}" for number in range(1001)]
    assert (await negotiate(twin, [history.head], ids[:1000]))["ack"] == []
    for body in ({"want": [], "have": ids}, {"want": ids, "have": []}):
        answer = await ask(twin, "POST", "/alice/x/negotiate", token="alice", json=body)
        assert (answer.status, answer.error) == (413, "too_large")


@pytest.mark.parametrize("token", [None, "bob"])
async def test_R4_T22_a_repository_one_may_not_read_is_404_exactly_like_a_missing_one(server, token):
    history = await with_history(server, slug="private")
    blob = next(iter(history.blobs))
    hidden, missing = readings("private", history.head, blob), readings("missing", history.head, blob)
    for (method, target, options), (_, other, _) in zip(hidden, missing, strict=True):
        answers = [await ask(server, method, path, token=token, **options) for path in (target, other)]
        assert answers[0].status == 404
        if method != "HEAD":
            assert without_id(answers[0]) == without_id(answers[1])
        assert answers[0].headers.keys() == answers[1].headers.keys()
    for method, target, options in hidden:
        assert (await ask(server, method, target, token="alice", **options)).status == 200


async def test_a_public_repository_is_read_without_a_token(server):
    history = await with_history(server, slug="public", public=True)
    for token in (None, "bob"):
        for method, target, options in readings("public", history.head, next(iter(history.blobs))):
            assert (await ask(server, method, target, token=token, **options)).status == 200
    assert (await clone(server, history.head, repository="alice/public", token=None)).blobs == history.blobs


async def test_R4_T3_a_reader_reads_until_the_right_is_taken_away(server):
    history = await with_history(server)
    number = (await server.services.index.find_repository("alice", "x")).number
    for right, status in ((Right.READ, 200), (Right.NONE, 404), (Right.WRITE, 200)):
        await server.services.index.set_collaborator(number, "reader", right)
        for method, target, options in readings("x", history.head, next(iter(history.blobs))):
            assert (await ask(server, method, target, token="reader", **options)).status == status
