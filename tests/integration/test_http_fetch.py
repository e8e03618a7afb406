"""What a fetch sends, and what cannot be fetched.

Most tests run twice: over the memory twins, and over PostgreSQL and a directory.
"""

from __future__ import annotations

import pytest

from tests.clones import Clone, clone, download, fetch
from tests.deployments import with_history
from tests.http_client import ask, push
from tests.muse import Push, plain, random_history

JSON = "application/json"
ZEROS = "sha256:" + "0" * 64
MIB = 1024 * 1024

pytestmark = pytest.mark.usefixtures("expected_errors")


@pytest.mark.parametrize("endpoint", ["fetch", "fetch/mpack"])
async def test_a_fetch_of_everything_is_a_clone(server, endpoint):
    history = await with_history(server, random_history(1))
    answer = await ask(server, "POST", f"/alice/x/{endpoint}", token="alice", json={"want": [history.head]})
    assert (answer.value["commit_count"], answer.value["object_count"]) == (len(history.commits), len(history.blobs))
    copy = Clone()
    copy.apply(await download(server, answer.value))
    assert copy.blobs == history.blobs
    assert copy.commits == {commit["commit_id"]: commit for commit in history.commits}
    assert copy.manifests == {s["snapshot_id"]: s["manifest"] for s in history.snapshots}


async def test_a_fetch_sends_only_what_differs_from_have(server):
    history = await with_history(server, random_history(2, commits=10))
    middle = history.commits[5]["commit_id"]
    copy = await clone(server, middle)
    had = len(copy.commits)
    answer = await fetch(server, [history.head], [middle])
    assert answer.value["commit_count"] == len(history.commits) - had
    assert answer.value["object_count"] < len(history.blobs)
    copy.apply(await download(server, answer.value))
    assert copy.blobs == history.blobs
    assert len(copy.commits) == len(history.commits)


async def test_a_fetch_sends_a_blob_that_have_holds_already_never_again(server):
    history = Push()
    history.commit({"large": b"l" * 100_000, "small": b"1"})
    history.commit({"large": b"l" * 100_000, "small": b"2"})
    await with_history(server, history)
    answer = await fetch(server, [history.head], [history.commits[0]["commit_id"]])
    assert (answer.value["commit_count"], answer.value["object_count"]) == (1, 1)
    assert answer.value["size_bytes"] < 10_000


async def test_a_fetch_of_what_the_client_has_is_empty_and_has_no_url(server):
    history = await with_history(server)
    for have in ([history.head], [history.head, ZEROS]):
        answer = await fetch(server, [history.head, history.commits[0]["commit_id"]], have)
        assert (answer.status, answer.value) == (200, {
            "mpack_id": None, "mpack_url": None, "commit_count": 0, "object_count": 0, "size_bytes": 0,
        })  # fmt: skip


async def test_unknown_ids_in_have_are_ignored(server):
    history = await with_history(server)
    answer = await fetch(server, [history.head], [ZEROS, "sha256:" + "ab" * 32])
    assert answer.value["commit_count"] == 2


BAD_WANTS = [
    [], None, "nonsense", {}, 1, True, [1], [None], [[]], [{}], [""], ["sha256:"], ["0" * 64], ["sha256:" + "0" * 63],
    ["sha256:" + "A" * 64], ["SHA256:" + "0" * 64], ["sha256:" + "0" * 65], ["sha256: " + "0" * 63],
    ["sha256:" + "0" * 64 + "\n"], ["sha512:" + "0" * 64],
]  # fmt: skip


@pytest.mark.parametrize("want", BAD_WANTS, ids=repr)
async def test_T13_an_empty_or_malformed_want_is_422(twin, want):
    history = await with_history(twin)
    for body in ({"want": want, "have": []}, {"want": [history.head], "have": want} if want else {}):
        for endpoint in ("fetch", "fetch/mpack"):
            answer = await ask(twin, "POST", f"/alice/x/{endpoint}", token="alice", msgpack=body)
            assert (answer.status, answer.error) == (422, "malformed")


async def test_an_unknown_want_is_404(server):
    history = await with_history(server)
    for want in ([ZEROS], [history.head, ZEROS]):
        answer = await fetch(server, want)
        assert (answer.status, answer.error) == (404, "not_found")


async def test_a_want_of_an_empty_repository_is_404(server):
    await server.make_repository()
    answer = await fetch(server, [ZEROS])
    assert (answer.status, answer.error) == (404, "not_found")


async def test_T3_a_commit_no_branch_leads_to_cannot_be_fetched_by_naming_it(server):
    old = await with_history(server)
    new = Push()
    new.commit({"other": b"other"}, message="another root")
    assert (await push(server, new.frames(force=True)))["type"] == "R"
    for want in ([old.head], [new.head, old.head], [old.commits[0]["commit_id"]]):
        answer = await fetch(server, want)
        assert (answer.status, answer.error) == (404, "not_found")
    assert (await clone(server, new.head)).blobs == new.blobs


async def test_an_ancestor_of_a_branch_can_be_fetched(server):
    history = await with_history(server)
    first = history.commits[0]["commit_id"]
    copy = await clone(server, first)
    assert list(copy.commits) == [first]


async def test_a_depth_cuts_history_and_says_where(server):
    history = Push()
    for number in range(5):
        history.commit({"n": b"%d" % number, "same": b"same"}, message=f"{number}")
    await with_history(server, history)
    ids = [commit["commit_id"] for commit in history.commits]
    for depth in (1, 3):
        answer = await fetch(server, [history.head], depth=depth)
        assert answer.value["commit_count"] == depth
        assert answer.value["shallow"] == [ids[5 - depth]]
        copy = Clone()
        copy.apply(await download(server, answer.value))
        assert set(copy.commits) == set(ids[5 - depth :])
        assert copy.files(history.head) == {"n": b"4", "same": b"same"}
    whole = await fetch(server, [history.head], depth=99)
    assert (whole.value["commit_count"], whole.value["shallow"]) == (5, [])


async def test_a_depth_counts_from_what_the_client_has(server):
    history = Push()
    for number in range(5):
        history.commit({"n": b"%d" % number}, message=f"{number}")
    await with_history(server, history)
    ids = [commit["commit_id"] for commit in history.commits]
    answer = await fetch(server, [history.head], [ids[2]], depth=4)
    assert (answer.value["commit_count"], answer.value["shallow"]) == (2, [])


@pytest.mark.parametrize("depth", [0, -1, 1.0, "1", True, [], 10**7, 2**63])
async def test_a_depth_that_is_no_count_is_422(twin, depth):
    history = await with_history(twin)
    answer = await fetch(twin, [history.head], depth=depth)
    assert (answer.status, answer.error) == (422, "malformed")


async def test_what_is_sent_twice_is_the_same_mpack(server):
    history = await with_history(server, random_history(4))
    first, second = [(await fetch(server, [history.head])).value for _ in range(2)]
    assert first["mpack_id"] == second["mpack_id"]


async def test_a_plain_repository_is_cloned_by_its_bare_ids(server):
    history = Push(name=plain)
    history.commit({"a.txt": b"hello\n", "empty": b""})
    history.commit({"a.txt": b"more\n", "empty": b"", "new": b"\0"})
    await with_history(server, history)
    copy = await clone(server, history.head)
    assert copy.blobs == history.blobs
    assert copy.files(history.head) == {"a.txt": b"more\n", "empty": b"", "new": b"\0"}
