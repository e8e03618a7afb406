"""Names that lead elsewhere: paths in manifests, names of branches and repositories, and what reaches SQL."""

from __future__ import annotations

from pathlib import Path

import pytest

import wire.paths
from museworkd.client.checkout import checkout
from museworkd.client.errors import ClientError
from museworkd.client.fetch import clone as client_clone
from museworkd.client.progress import Quiet
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Remote
from storage.rows import Right
from tests.clones import clone
from tests.deployments import with_history
from tests.http_client import ask, push
from tests.muse import Push, blob_id, frame, make_commit, make_snapshot
from tests.refused_pushes import X, refused
from tests.servers import TOKENS, Server

pytestmark = pytest.mark.usefixtures("expected_errors")

NOTHING = frame("E", n_objects=0, n_commits=0)
ESCAPES = [
    "../outside", "/outside", "a/../../outside", ".muse/HEAD", ".muse/refs/heads/main", ".git/hooks/post-checkout",
]  # fmt: skip


def of_snapshot(manifest: dict[str, str], directories: list[str] | None = None) -> Push:
    snapshot = make_snapshot(manifest, directories or [])
    return Push(blobs={X: b"x"}, snapshots=[snapshot], commits=[make_commit(snapshot["snapshot_id"])])


def everything(root: Path) -> set[Path]:
    return set(root.rglob("*"))


@pytest.mark.parametrize("path", ESCAPES)
async def test_T10_T11_a_client_refuses_an_unsafe_path_that_its_server_has_taken(twin, tmp_path, monkeypatch, path):
    await twin.make_repository()
    history = of_snapshot({path: X})
    with monkeypatch.context() as careless:
        careless.setattr(wire.paths, "_path_problem", lambda *_: None)
        assert (await push(twin, history.frames()))["type"] == "R"
    target = tmp_path / "work" / "deep" / "clone"
    target.parent.mkdir(parents=True)
    before = everything(tmp_path / "work")
    with pytest.raises(ClientError):
        await client_clone(Remote(f"{twin.url}/alice/x", TOKENS["alice"]), target, Quiet())
    assert everything(tmp_path / "work") == before


async def test_T10_a_checkout_writes_through_no_symbolic_link_and_over_nothing(twin, tmp_path):
    await twin.make_repository()
    history = Push()
    history.commit({"dir/file": b"new", "other": b"new"})
    assert (await push(twin, history.frames()))["type"] == "R"
    outside = tmp_path / "outside"
    outside.mkdir()
    for number, prepare in enumerate((
        lambda root: (root / "dir").symlink_to(outside),
        lambda root: (root / "dir").mkdir() or (root / "dir/file").symlink_to(outside / "file"),
        lambda root: (root / "dir").mkdir() or (root / "dir/file").write_text("old"),
        lambda root: (root / "other").symlink_to(outside / "other"),
    )):  # fmt: skip
        target = tmp_path / f"clone{number}"
        await client_clone(Remote(f"{twin.url}/alice/x", TOKENS["alice"]), target, Quiet())
        prepare(target)
        with LocalRepository(target) as repository, pytest.raises(ClientError, match="in the way"):
            await checkout(repository, Quiet())
        assert everything(outside) == set()
    assert (tmp_path / "clone2/dir/file").read_text() == "old"


DISGUISES = [
    ".g\u200dit/x", "\ufeff.git/x", ".gi\u2060t", ".git\u200b", ".git.", ".git ", ".git. . /x", ".GiT:x", ".git::$DATA",
    "git~1", "GIT~12/x", "gi1a2b~1", "mu00ff~3/x", "MUSE~1", "\uff0egit/x", ".\uff47\uff49\uff54/x",
    "a/b/.Mu\u017fe", "a/.muse\u00ad/x", "\u2024muse/x", "git~1.", "git~1::$INDEX_ALLOCATION/x",
]  # fmt: skip
HARMLESS = [".gitignore", ".museum", "git", "muse", "git~", "x.git", "agit~1", "gitea~1x", ".github/x"]


@pytest.mark.parametrize("path", DISGUISES, ids=ascii)
@pytest.mark.parametrize("relaxed", [False, True], ids=["portable", "relaxed"])
async def test_T11_a_disguised_metadata_name_is_refused_under_every_policy(twin, path, relaxed):
    await twin.make_repository(relaxed_paths=relaxed)
    await refused(twin, of_snapshot({path: X}).frames(), "unsafe_path", X)
    await refused(twin, of_snapshot({"f": X}, [path]).frames(), "unsafe_path", X)


async def test_T11_names_that_only_look_alike_are_accepted(twin):
    await twin.make_repository()
    history = of_snapshot(dict.fromkeys(HARMLESS, X))
    assert (await push(twin, history.frames()))["type"] == "R"
    assert set((await clone(twin, history.head)).files(history.head)) == set(HARMLESS)


COLLISIONS: list[tuple[list[str], list[str]]] = [
    (["a"], ["A"]), (["a"], ["a"]), (["a"], ["a/b"]), (["a"], ["A/b"]), (["\u00e9"], ["\u00c9/x"]), ([], ["a", "A"]),
    (["dir/a"], ["DIR/A/b"]), (["stra\u00dfe"], ["STRASSE"]), (["a", "b/c"], ["B/C"]),
]  # fmt: skip


@pytest.mark.parametrize(("files", "directories"), COLLISIONS, ids=ascii)
async def test_T12_a_directory_that_is_a_file_on_some_system_refuses_the_push(twin, files, directories):
    await twin.make_repository()
    await refused(twin, of_snapshot(dict.fromkeys(files, X), directories).frames(), "unsafe_path", X)


async def test_T12_a_file_may_not_grow_under_a_directory_of_its_name_by_way_of_a_delta(twin):
    await twin.make_repository()
    first = of_snapshot({"f": X}, ["Dir/sub"])
    assert (await push(twin, first.frames()))["type"] == "R"
    for path in ("Dir", "dir", "Dir/sub", "DIR/SUB"):
        target = make_snapshot({"f": X, path: X}, ["Dir/sub"])
        record = {
            "snapshot_id": target["snapshot_id"], "parent_snapshot_id": first.snapshots[0]["snapshot_id"],
            "delta_upsert": {path: X}, "delta_remove": [], "directories": ["Dir/sub"],
        }  # fmt: skip
        commit = make_commit(target["snapshot_id"], [first.head])
        await refused(twin, Push(commits=[commit], deltas=[record]).frames(), "unsafe_path")


BAD_BRANCHES = [
    "", "../main", "a/../main", "/main", "main/", "-main", "--force", ".hidden", "main.", "main.lock", "a//b",
    "main@{0}", "a b", "a\tb", "a\nb", "a\0b", "a\x1b[2Jb", "a\x7fb", "a\x9bb", "a\\b", "a~1", "a^", "a:b", "a?",
    "a*", "a[b", "b" * 256, "\u00e9" * 128,
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_BRANCHES, ids=lambda name: ascii(name)[:30])
async def test_T29_a_branch_name_that_is_none_is_refused_wherever_one_is_given(twin, name):
    history = await with_history(twin)
    said = await push(twin, frame("H", version=2, branch=name, head=history.head, force=True) + NOTHING)
    assert (said["type"], said["error"]) == ("X", "malformed")
    for method, target, body in [
        ("PATCH", "/api/repos/alice/x", {"default_branch": name}),
        ("PATCH", "/api/repos/alice/x", {"settings": {"protected_branches": ["main", name]}}),
        ("POST", "/api/repos", {"slug": "new", "default_branch": name}),
    ]:
        answer = await ask(twin, method, target, token="alice", msgpack=body)
        assert (answer.status, answer.error) == (422, "malformed")
    assert (await ask(twin, "GET", "/alice/x/refs", token="alice")).value["branch_heads"] == {"main": history.head}


LOOKALIKES = [
    "Main", "MAIN", "refs/heads/main", "heads/main", "main/x", "main\u200b", "m\u0430in", "origin/main", "HEAD", "con",
    "sha256", "5e" * 32, "\u00e9", "e\u0301", "%6dain", "main%2Fx", "a" * 255, "__proto__",
]  # fmt: skip


async def test_T29_a_name_like_a_protected_branchs_is_another_branch_here_and_in_a_clone(server, tmp_path):
    made = await server.make_repository(protected_branches=("main",))
    await server.services.index.set_collaborator(made.number, "bob", Right.WRITE)
    history = Push()
    history.commit({"f": b"x"})
    history.commit({"f": b"y"})
    assert (await push(server, history.frames()))["type"] == "R"
    aside = Push()
    aside.commit({"f": b"aside"})
    said = await push(server, aside.frames(force=True), token="bob")
    assert said["error"] == "protected_branch"
    other = Push()
    other.commit({"f": b"other"})
    for name in LOOKALIKES:
        for pushed in (other, aside):
            said = await push(server, pushed.frames(force=True, branch=name), token="bob")
            assert (said["type"], said["branch"]) == ("R", name)
    expected = {"main": history.head, **dict.fromkeys(LOOKALIKES, aside.head)}
    assert (await ask(server, "GET", "/alice/x/refs", token="alice")).value["branch_heads"] == expected
    target = tmp_path / "clone"
    await client_clone(Remote(f"{server.url}/alice/x", TOKENS["alice"]), target, Quiet())
    with LocalRepository(target) as repository:
        assert repository.branches().keys() == expected.keys()
        assert repository.head_branch == "main"


HOSTILE = [
    "x'--", "x';DROP/**/TABLE/**/repositories;--", 'x" OR 1=1', "%s", "%(a)s", "{0}", "$1", "x\\'", "*", "_", "%",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
async def test_T23_a_name_from_a_url_is_a_value_and_never_sql_nor_a_pattern(server, name):
    await with_history(server, public=True)
    quoted = "".join(f"%{byte:02x}" for byte in name.encode() if name != "/")
    for target in (f"/{quoted}/x/refs", f"/alice/{quoted}/refs", f"/api/repos/alice/{quoted}"):
        answer = await ask(server, "GET", target, token="alice")
        assert (answer.status, answer.error) == (404, "not_found")
    answer = await ask(
        server, "PUT", f"/api/repos/alice/x/collaborators/{quoted}", token="alice", json={"right": "read"}
    )
    assert answer.status in {404, 422}
    assert (await ask(server, "GET", "/alice/x/refs")).status == 200


async def test_T23_branches_and_records_may_hold_sql_and_stay_what_they_are(server):
    await server.make_repository()
    names = ["x');DELETE/FROM/pushes;--", "$1", "%s", "%(a)s", "E'\"", "NULL"]
    history = Push()
    history.commit(
        {"'; DROP TABLE blobs; --": b"x", "%s %(x)s {0}": b"y"}, message="'); DROP TABLE commits; --",
        author="%s\\x00'", metadata={"'": "\\'; SELECT pg_sleep(60); --"},
    )  # fmt: skip
    for branch in names:
        assert (await push(server, history.frames(branch=branch)))["branch"] == branch
    heads = (await ask(server, "GET", "/alice/x/refs", token="alice")).value["branch_heads"]
    assert heads == dict.fromkeys(names, history.head)
    got = await clone(server, history.head)
    assert got.commits[history.head] == history.commits[0]
    assert got.files(history.head)["'; DROP TABLE blobs; --"] == b"x"


@pytest.mark.parametrize("target", [
    "/alice/x/../../api/repos", "/alice/%2e%2e/x/refs", "/alice/x/%2e%2e/%2e%2e/livez", "/../etc/passwd",
    "/alice/x/o/..%2f..%2fx", "/alice/x/mpack/..%2f..%2f..%2fetc%2fpasswd", "//alice/x/refs", "/alice//refs",
    "/alice/x/refs/", "/alice/x/mpack/%2e%2e",
])  # fmt: skip
async def test_T10_a_url_path_is_not_resolved_and_leads_nowhere_else(twin, target):
    await with_history(twin, public=True)
    answer = await ask(twin, "GET", target, token="alice")
    assert (answer.status, answer.error) in {(404, "not_found"), (422, "malformed")}


async def refs(server: Server) -> dict:
    return (await ask(server, "GET", "/alice/x/refs", token="alice")).value


async def test_T10_a_blob_is_named_by_its_id_and_by_nothing_like_a_key_of_the_store(twin):
    history = await with_history(twin)
    digest = blob_id(b"hello\n").removeprefix("sha256:")
    for name in (
        f"objects%2ftyped%2f{digest[:2]}%2f{digest[2:]}", f"{digest[:2]}%2f{digest[2:]}", "objects", "fetch%2fprobe",
    ):  # fmt: skip
        assert (await ask(twin, "GET", f"/alice/x/o/{name}", token="alice")).status in {404, 422}
    assert (await refs(twin))["branch_heads"] == {"main": history.head}
