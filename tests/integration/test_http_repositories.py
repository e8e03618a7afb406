"""Administration of repositories, and the health of the server, over real HTTP.

Most tests run twice: over the memory twins, and over PostgreSQL and a directory.
"""

from __future__ import annotations

import pytest

from museworkd.http import health_routes
from storage.memory.index import MemoryIndex
from storage.objects.faulty import Fault, FaultyStore
from storage.objects.memory import MemoryStore
from storage.rows import Right
from tests.clones import fetch
from tests.deployments import DownIndex, bearer, deployed, readings, two_commits, with_history
from tests.http_client import ask, push, without_id
from tests.muse import frame
from tests.servers import Server, serving

JSON = "application/json"
ZEROS = "sha256:" + "0" * 64
MIB = 1024 * 1024

pytestmark = pytest.mark.usefixtures("expected_errors")


async def test_a_repository_is_made_with_defaults(server):
    answer = await ask(server, "POST", "/api/repos", token="alice", json={"slug": "new"})
    made = answer.value
    assert answer.status == 201
    assert {key: made[key] for key in made if key not in {"repo_id", "created_at"}} == {
        "owner": "alice", "slug": "new", "visibility": "private", "scheme": None, "default_branch": "main",
        "domain": "code",
        "settings": {
            "relaxed_paths": False, "require_signed_commits": False, "protected_branches": [], "verify": "strict",
        },
    }  # fmt: skip
    got = await ask(server, "GET", "/api/repos/alice/new", token="alice")
    assert got.value == {**made, "right": "admin"}


async def test_a_repository_is_made_as_it_is_wanted(server):
    settings = {"relaxed_paths": True, "require_signed_commits": True, "protected_branches": ["main", "release/1"],
                "verify": "plain-lenient"}  # fmt: skip
    wanted = {
        "slug": "New.repo_1-x", "owner": "alice", "visibility": "public", "default_branch": "trunk", "domain": "music",
        "settings": settings,
    }  # fmt: skip
    answer = await ask(server, "POST", "/api/repos", token="alice", msgpack=wanted)
    assert answer.status == 201
    assert wanted.items() <= answer.value.items()


async def test_a_name_is_taken_once(server):
    for status in (201, 409):
        answer = await ask(server, "POST", "/api/repos", token="alice", json={"slug": "new"})
        assert answer.status == status
    assert answer.error == "already_exists"


BAD_REPOSITORIES = [
    {},
    {"slug": None},
    {"slug": ""},
    {"slug": "a/b"},
    {"slug": ".."},
    {"slug": "a..b"},
    {"slug": "-a"},
    {"slug": "a" * 101},
    {"slug": "a b"},
    {"slug": "a\0b"},
    {"slug": "ä"},
    {"slug": ["x"]},
    {"slug": 1},
    {"slug": "x", "visibility": "secret"},
    {"slug": "x", "visibility": None},
    {"slug": "x", "visibility": []},
    {"slug": "x", "visibility": {}},
    {"slug": "x", "default_branch": ""},
    {"slug": "x", "default_branch": "a..b"},
    {"slug": "x", "default_branch": 1},
    {"slug": "x", "default_branch": "a\0"},
    {"slug": "x", "domain": ""},
    {"slug": "x", "domain": "A"},
    {"slug": "x", "domain": "a" * 64},
    {"slug": "x", "domain": 1},
    {"slug": "x", "domain": "a\0"},
    {"slug": "x", "settings": []},
    {"slug": "x", "settings": "x"},
    {"slug": "x", "settings": {"unknown": True}},
    {"slug": "x", "settings": {"relaxed_paths": 1}},
    {"slug": "x", "settings": {"require_signed_commits": "yes"}},
    {"slug": "x", "settings": {"protected_branches": "main"}},
    {"slug": "x", "settings": {"protected_branches": [1]}},
    {"slug": "x", "settings": {"protected_branches": ["a b"]}},
]


@pytest.mark.parametrize("body", BAD_REPOSITORIES, ids=repr)
async def test_a_repository_is_not_made_from_wrong_values(twin, body):
    answer = await ask(twin, "POST", "/api/repos", token="alice", msgpack=body)
    assert (answer.status, answer.error) == (422, "malformed")
    assert (await ask(twin, "GET", "/api/repos", token="alice")).value == {"repositories": []}


async def test_a_repository_is_made_by_an_admin_token_of_its_owner_only(server):
    for scope in (Right.READ, Right.WRITE):
        _, headers = await bearer(server, "alice", scope)
        answer = await ask(server, "POST", "/api/repos", headers=headers, json={"slug": "new"})
        assert (answer.status, answer.error) == (403, "forbidden")
    for owner in ("bob", "Alice", None, 1, ["alice"]):
        answer = await ask(server, "POST", "/api/repos", token="alice", json={"slug": "new", "owner": owner})
        assert (answer.status, answer.error) == (403, "forbidden")
    answer = await ask(server, "POST", "/api/repos", json={"slug": "new"})
    assert (answer.status, answer.error) == (401, "unauthenticated")


async def test_a_list_shows_what_one_may_read(server):
    made = {slug: await server.make_repository(slug=slug, public=slug == "open") for slug in ("mine", "open", "shared")}
    await server.services.index.set_collaborator(made["shared"].number, "bob", Right.READ)

    async def listed(token: str | None) -> list[str]:
        answer = await ask(server, "GET", "/api/repos", token=token)
        return [r["slug"] for r in answer.value["repositories"]]

    assert await listed("alice") == ["mine", "open", "shared"]
    assert await listed("bob") == ["open", "shared"]
    assert await listed("reader") == await listed(None) == ["open"]


async def test_a_repository_is_changed_field_by_field(server):
    await server.make_repository(protected_branches=("main",))
    first = await ask(server, "PATCH", "/api/repos/alice/x", token="alice", json={"visibility": "public"})
    assert first.value["visibility"] == "public"
    assert first.value["settings"]["protected_branches"] == ["main"]
    body = {"default_branch": "trunk", "settings": {"relaxed_paths": True}}
    second = await ask(server, "PATCH", "/api/repos/alice/x", token="alice", json=body)
    assert (second.value["visibility"], second.value["default_branch"]) == ("public", "trunk")
    assert second.value["settings"] == {
        "relaxed_paths": True, "require_signed_commits": False, "protected_branches": ["main"],
        "verify": "strict",
    }  # fmt: skip
    assert (await ask(server, "PATCH", "/api/repos/alice/x", token="alice", json={})).value == second.value


@pytest.mark.parametrize("body", [
    {"visibility": "secret"}, {"visibility": 1}, {"default_branch": None}, {"default_branch": "a b"},
    {"settings": None}, {"settings": {"unknown": 1}}, {"settings": {"relaxed_paths": None}},
], ids=repr)  # fmt: skip
async def test_a_repository_is_not_changed_to_wrong_values(twin, body):
    await twin.make_repository()
    before = (await ask(twin, "GET", "/api/repos/alice/x", token="alice")).value
    answer = await ask(twin, "PATCH", "/api/repos/alice/x", token="alice", msgpack=body)
    assert (answer.status, answer.error) == (422, "malformed")
    assert (await ask(twin, "GET", "/api/repos/alice/x", token="alice")).value == before


async def test_a_collaborator_gets_exactly_the_right_that_was_given(server):
    history = await with_history(server)
    allowed = {
        "none": (404, 404, 404), "read": (200, 403, 403), "write": (200, 200, 403), "admin": (200, 200, 200),
    }  # fmt: skip
    for right, (reading, writing, administrating) in allowed.items():
        target = "/api/repos/alice/x/collaborators/bob"
        answer = await ask(server, "PUT", target, token="alice", json={"right": right})
        assert answer.value == {"handle": "bob", "right": right}
        assert (await ask(server, "GET", "/alice/x/refs", token="bob")).status == reading
        assert (await ask(server, "PATCH", "/api/repos/alice/x", token="bob", json={})).status == administrating
        frames = frame("H", version=2, branch=f"by-{right}", head=history.head, force=False)
        said = await push(server, frames + frame("E", n_objects=0, n_commits=0), token="bob")
        assert said.get("status", 200) == writing
        if reading == 200:
            assert (await ask(server, "GET", "/api/repos/alice/x", token="bob")).value["right"] == right


@pytest.mark.parametrize(
    "body", [{}, {"right": None}, {"right": "owner"}, {"right": 2}, {"right": ["read"]}, {"right": {}}]
)
async def test_a_right_that_is_none_of_the_four_is_422(twin, body):
    await twin.make_repository()
    answer = await ask(twin, "PUT", "/api/repos/alice/x/collaborators/bob", token="alice", msgpack=body)
    assert (answer.status, answer.error) == (422, "malformed")


@pytest.mark.parametrize("handle", ["%20", "a%20b", "%C3%A4", "..", "a%0A", "a" * 101, "api"])
async def test_a_collaborator_has_a_handle(server, handle):
    await server.make_repository()
    target = f"/api/repos/alice/x/collaborators/{handle}"
    answer = await ask(server, "PUT", target, token="alice", json={"right": "read"})
    assert (answer.status, answer.error) == (422, "malformed")


async def test_the_scope_of_a_token_caps_the_right_of_its_owner(server):
    await with_history(server)
    for scope in (Right.READ, Right.WRITE, Right.ADMIN):
        _, headers = await bearer(server, "alice", scope)
        assert (await ask(server, "GET", "/alice/x/refs", headers=headers)).status == 200
        shown = await ask(server, "GET", "/api/repos/alice/x", headers=headers)
        assert shown.value["right"] == scope.name.lower()
        changed = await ask(server, "PATCH", "/api/repos/alice/x", headers=headers, json={})
        assert changed.status == (200 if scope is Right.ADMIN else 403)
        said = await push(server, two_commits().frames(), token=None, headers=headers)
        assert said.get("status") == (403 if scope is Right.READ else None)


async def test_T3_a_deleted_repository_is_gone_and_its_name_free(server):
    history = await with_history(server)
    blob = next(iter(history.blobs))
    before = (await ask(server, "GET", "/api/repos/alice/x", token="alice")).value["repo_id"]
    assert (await ask(server, "DELETE", "/api/repos/alice/x", token="alice")).value == {"deleted": before}
    for method, target, options in readings("x", history.head, blob):
        assert (await ask(server, method, target, token="alice", **options)).status == 404
    assert (await ask(server, "DELETE", "/api/repos/alice/x", token="alice")).status == 404
    again = await ask(server, "POST", "/api/repos", token="alice", json={"slug": "x"})
    assert again.status == 201
    assert again.value["repo_id"] != before
    assert (await ask(server, "GET", f"/alice/x/o/{blob}", token="alice")).status == 404
    assert (await ask(server, "GET", "/alice/x/refs", token="alice")).value["branch_heads"] == {}
    assert (await fetch(server, [history.head])).status == 404


@pytest.mark.parametrize(("method", "target", "body"), [
    ("PATCH", "/api/repos/alice/{}", {"visibility": "public"}),
    ("DELETE", "/api/repos/alice/{}", None),
    ("PUT", "/api/repos/alice/{}/collaborators/bob", {"right": "admin"}),
])  # fmt: skip
async def test_T22_administration_is_for_admins(server, method, target, body):
    made = await server.make_repository()
    await server.services.index.set_collaborator(made.number, "reader", Right.WRITE)
    options = {} if body is None else {"json": body}
    hidden = await ask(server, method, target.format("x"), token="bob", **options)
    missing = await ask(server, method, target.format("missing"), token="bob", **options)
    assert without_id(hidden) == without_id(missing)
    assert (hidden.status, hidden.error) == (404, "not_found")
    answer = await ask(server, method, target.format("x"), token="reader", **options)
    assert (answer.status, answer.error) == (403, "forbidden")
    nobody = await ask(server, method, target.format("x"), **options)
    assert (nobody.status, nobody.error) == (401, "unauthenticated")
    assert (await ask(server, "GET", "/api/repos/alice/x", token="alice")).value["visibility"] == "private"


async def test_a_server_that_works_is_live_and_ready(server):
    assert (await ask(server, "GET", "/livez")).value == {"status": "live"}
    answer = await ask(server, "GET", "/readyz")
    checks = {"index": "ok", "store": "ok", "supervisor": "ok", "actors": "ok"}
    assert (answer.status, answer.value) == (200, {"status": "ready", "checks": checks})


async def readiness(server: Server) -> dict:
    answer = await ask(server, "GET", "/readyz")
    assert (answer.status, answer.value["status"]) == (503, "not ready")
    assert int(answer.headers["retry-after"]) > 0
    assert (await ask(server, "GET", "/livez")).status == 200
    return answer.value["checks"]


async def test_readyz_tells_that_the_index_is_unavailable(tmp_path):
    index = DownIndex()
    async with serving(index, MemoryStore(), tmp_path) as server:
        index.down = True
        assert await readiness(server) == {"index": "unavailable", "store": "ok", "supervisor": "ok", "actors": "ok"}


async def test_readyz_tells_that_the_store_is_unavailable(tmp_path):
    store = FaultyStore(MemoryStore(), lambda _: Fault(fail_before=True))
    async with serving(MemoryIndex(), store, tmp_path) as server:
        assert await readiness(server) == {"index": "ok", "store": "unavailable", "supervisor": "ok", "actors": "ok"}


async def test_readyz_tells_what_does_not_answer_and_does_not_wait_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr(health_routes, "CHECK_TIMEOUT_S", 0.1)
    store = FaultyStore(MemoryStore(), lambda _: Fault(delay_s=60))
    async with serving(MemoryIndex(), store, tmp_path) as server:
        assert await readiness(server) == {
            "index": "ok",
            "store": "no answer in time",
            "supervisor": "ok",
            "actors": "ok",
        }


async def test_readyz_tells_that_the_server_drains(twin):
    assert await twin.services.supervisor.drain(0)
    assert await readiness(twin) == {"index": "ok", "store": "ok", "supervisor": "draining", "actors": "ok"}


async def test_readyz_of_a_store_whose_directory_is_not_mounted(database_url, tmp_path):
    async with deployed(database_url, tmp_path) as server:
        (tmp_path / "store").rename(tmp_path / "elsewhere")
        (tmp_path / "store").mkdir()
        assert await readiness(server) == {"index": "ok", "store": "unavailable", "supervisor": "ok", "actors": "ok"}
