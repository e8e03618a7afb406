"""Pushes that mean something and must be refused: each with its code, and without a trace (protocol §5, §11)."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import pytest
import zstandard

from actors.push.finish import _ordered
from actors.push.record_pack import Position
from actors.push.records import BATCH_BYTES, PendingCommit, RecordStage
from tests.clones import clone
from tests.containers import copy, delta, insert, zstd_frame
from tests.deployments import deployed, with_history
from tests.http_client import push
from tests.muse import (
    Push,
    blob_id,
    commit_id,
    frame,
    make_commit,
    make_snapshot,
    plain,
    snapshot_id,
)
from tests.refused_pushes import MIB, ZEROS, X, around, member, one_commit, refused, with_record
from wire.errors import Code, Refusal
from wire.ids import Scheme

pytestmark = pytest.mark.usefixtures("expected_errors")


@pytest.mark.parametrize("encoding", ["raw", "zlib", "zstd"])
@pytest.mark.parametrize("size", [0, 10, 400_000, 2 * MIB])
async def test_R1_an_object_that_does_not_hash_to_its_id_is_refused(server, encoding, size):
    await server.make_repository()
    pack = {"raw": bytes, "zlib": zlib.compress, "zstd": zstandard.compress}[encoding]
    content = b"y" * size
    frames = frame("O", object_id=X, encoding=encoding, content=pack(content))
    said = await refused(server, around([frames], 1), "bad_object_hash", X, blob_id(content))
    assert said["id"] == X
    chunks = frame("OC", object_id=X, encoding=encoding, seq=0, last=True, content=pack(content)[:MIB])
    if len(pack(content)) <= MIB:
        await refused(server, around([chunks], 1), "bad_object_hash", X, blob_id(content))


async def test_a_delta_whose_result_does_not_hash_to_its_id_is_refused(twin):
    await twin.make_repository()
    wrong = zlib.compress(delta(1, 2, insert(b"zz")))
    frames = [member(), frame("O", object_id=blob_id(b"yy"), encoding="delta+zlib", base=X, content=wrong)]
    await refused(twin, around(frames, 2), "bad_object_hash", X, blob_id(b"yy"), blob_id(b"zz"))


async def test_T13_a_plain_id_is_no_typed_id_of_the_same_bytes(twin):
    await twin.make_repository()
    frames = frame("O", object_id="sha256:" + blob_id(b"x", plain), encoding="raw", content=b"x")
    await refused(twin, around([frames], 1), "bad_object_hash", X)


COVERED = ["snapshot_id", "message", "committed_at", "author", "signer_public_key", "parent_commit_id"]


@pytest.mark.parametrize("key", COVERED)
async def test_R11_a_commit_that_does_not_hash_to_its_id_is_refused(twin, key):
    await twin.make_repository()
    changed = ZEROS if key.endswith("_id") else "changed"
    said = await refused(twin, with_record("commits", **{key: changed}), "bad_record_id", X)
    assert said["id"].startswith("sha256:")


@pytest.mark.parametrize("changes", [
    {"manifest": {"g": X}}, {"manifest": {}}, {"manifest": {"f": X, "g": X}}, {"directories": ["d"]},
    {"snapshot_id": ZEROS}, {"snapshot_id": snapshot_id({"f": X}, name=plain).join(["sha256:", ""])},
], ids=repr)  # fmt: skip
async def test_a_snapshot_that_does_not_hash_to_its_id_is_refused(twin, changes):
    await twin.make_repository()
    await refused(twin, with_record("snapshots", **changes), "bad_record_id", X)


@pytest.mark.parametrize("changes", [
    {"delta_upsert": {"g": X}}, {"delta_upsert": {}}, {"delta_remove": ["f"], "delta_upsert": {}},
    {"directories": ["d"]}, {"snapshot_id": ZEROS},
], ids=repr)  # fmt: skip
async def test_a_snapshot_delta_that_does_not_hash_to_its_id_is_refused(twin, changes):
    await twin.make_repository()
    await refused(twin, with_record("snapshot_deltas", **changes), "bad_record_id", X)


async def test_R11_a_parent_that_is_nowhere_is_named(server):
    await with_history(server)
    history = Push()
    history.commit({"f": b"x"}, [ZEROS, "sha256:" + "1" * 64])
    said = await refused(server, history.frames(branch="new"), "missing_parents", X)
    assert said["missing"] == [ZEROS, "sha256:" + "1" * 64]
    assert said["missing_count"] == 2
    assert ZEROS in said["detail"]


async def test_a_head_that_is_nowhere_is_named(server):
    await with_history(server)
    said = await refused(server, one_commit().frames(head=ZEROS, branch="new"), "missing_parents", X)
    assert said["missing"] == [ZEROS]


async def test_blobs_that_are_nowhere_are_listed_up_to_a_hundred(server):
    await server.make_repository()
    history = Push()
    history.commit({f"f{number}": b"%d" % number for number in range(150)})
    kept = dict(list(history.blobs.items())[:20])
    missing = history.blobs.keys() - kept.keys()
    history.blobs = kept
    said = await refused(server, history.frames(), "missing_objects", *kept)
    assert said["missing_count"] == 130
    assert len(said["missing"]) == 100
    assert set(said["missing"]) <= missing


async def test_a_blob_of_a_snapshot_delta_that_is_nowhere_is_named(twin):
    first = await with_history(twin)
    base = first.snapshots[-1]
    target = make_snapshot({**base["manifest"], "new": ZEROS})
    record = {
        "snapshot_id": target["snapshot_id"], "parent_snapshot_id": base["snapshot_id"], "delta_upsert": {"new": ZEROS},
        "delta_remove": [],
    }  # fmt: skip
    commit = make_commit(target["snapshot_id"], [first.head])
    said = await refused(twin, Push(commits=[commit], deltas=[record]).frames(), "missing_objects")
    assert said["missing"] == [ZEROS]


async def test_a_snapshot_that_is_nowhere_is_named(server):
    await with_history(server)
    history = one_commit()
    absent = history.snapshots.pop()["snapshot_id"]
    said = await refused(server, history.frames(branch="new"), "missing_objects", X)
    assert said["missing"] == [absent]


async def test_the_base_of_a_snapshot_delta_that_is_nowhere_is_named(server):
    await server.make_repository()
    said = await refused(server, with_record("snapshot_deltas", parent_snapshot_id=ZEROS), "missing_objects", X)
    assert said["missing"] == [ZEROS]


async def test_the_base_of_a_snapshot_delta_must_come_first(twin):
    await twin.make_repository()
    first, second = make_snapshot({"f": X}), make_snapshot({"g": X})
    record = {
        "snapshot_id": second["snapshot_id"], "parent_snapshot_id": first["snapshot_id"], "delta_upsert": {"g": X},
        "delta_remove": ["f"],
    }  # fmt: skip
    frames = [member(), frame("C", snapshot_deltas=[record]), frame("C", snapshots=[first])]
    await refused(twin, around(frames, 1), "missing_objects", X)


async def test_a_snapshot_cannot_be_its_own_base(twin):
    await twin.make_repository()
    own = make_snapshot({"f": X})["snapshot_id"]
    await refused(twin, with_record("snapshot_deltas", parent_snapshot_id=own), "malformed", X)


async def test_the_base_of_an_object_that_is_nowhere_is_named(server):
    await server.make_repository()
    content = zlib.compress(delta(1, 2, copy(0, 1), insert(b"y")))
    frames = frame("O", object_id=blob_id(b"xy"), encoding="delta+zlib", base=X, content=content)
    said = await refused(server, around([frames], 1), "missing_objects", blob_id(b"xy"))
    assert said["missing"] == [X]
    await refused(server, around([frames, member()], 2), "missing_objects", X)  # it must come first


async def test_T1_what_another_repository_holds_is_missing_here(server):
    theirs = await with_history(server, slug="theirs")
    await server.make_repository()
    mine = Push(commits=theirs.commits, snapshots=theirs.snapshots)
    await refused(server, mine.frames(), "missing_objects", *theirs.blobs)
    mine = Push(commits=theirs.commits, blobs=theirs.blobs)
    await refused(server, mine.frames(), "missing_objects", *theirs.blobs)
    mine = Push()
    mine.commit({"f": b"x"}, [theirs.head])
    await refused(server, mine.frames(), "missing_parents", *theirs.blobs)


DELTAS: dict[str, bytes] = {
    "nothing": b"",
    "another base size": delta(2, 2, insert(b"xy")),
    "copy beyond the base": delta(1, 2, copy(0, 2)),
    "copy far beyond the base": delta(1, 10, copy(2**31, 10)),
    "cut insert": delta(1, 5, insert(b"abcde"))[:-2],
    "cut copy": delta(1, 1, copy(0, 1))[:-3],
    "reserved instruction": delta(1, 1, b"\0"),
    "more than it states": delta(1, 1, insert(b"xy")),
    "less than it states": delta(1, 3, insert(b"xy")),
    "endless size": b"\xff" * 40,
}


@pytest.mark.parametrize("instructions", DELTAS.values(), ids=DELTAS.keys())
async def test_a_delta_that_does_not_fit_its_base_is_malformed(twin, instructions):
    await twin.make_repository()
    content = zlib.compress(instructions)
    frames = [member(), frame("O", object_id=blob_id(b"xy"), encoding="delta+zlib", base=X, content=content)]
    await refused(twin, around(frames, 2), "malformed", X, blob_id(b"xy"))


ZEROES_50MB = 52 * MIB


def bombs() -> dict[str, tuple[str, bytes]]:
    zeros = bytes(ZEROES_50MB)
    run = [(b"\0", 128 * 1024)] * (ZEROES_50MB // (128 * 1024))
    return {
        "zlib": ("zlib", zlib.compress(zeros)),
        "zstd": ("zstd", zstandard.compress(zeros)),
        "zstd that does not state its size": ("zstd", zstd_frame(run)),
        "zstd that states a small size": ("zstd", zstd_frame(run, stated=5)),
        "zstd that states a huge size": ("zstd", zstd_frame([b"x"], stated=2**40)),
        "zstd with a huge window": ("zstd", zstd_frame([b"x"], window_log=30)),
        "zlib delta": ("delta+zlib", zlib.compress(zeros)),
        "zstd delta": ("delta+zstd", zstandard.compress(zeros)),
        "delta that states a huge result": ("delta+zlib", zlib.compress(delta(1, 2**40, insert(b"x")))),
    }


BOMBS = bombs()


@pytest.mark.parametrize("name", BOMBS)
async def test_T8_a_content_that_inflates_beyond_the_limit_is_a_bomb(twin, name):
    await twin.make_repository()
    encoding, content = BOMBS[name]
    base = {"base": X} if encoding.startswith("delta+") else {}
    bomb = frame("O", object_id=ZEROS, encoding=encoding, content=content, **base)
    lies = name in {"zstd that states a small size", "zstd that states a huge size"}
    await refused(twin, around([member(), bomb], 2), "malformed" if lies else "bomb", X, ZEROS)


@pytest.mark.parametrize("encoding", ["raw", "zlib", "zstd"])
async def test_T8_all_contents_of_a_push_together_have_a_budget(tmp_path, encoding):
    async with deployed(None, tmp_path, limits__inflated_push_bytes=MIB) as server:
        await server.make_repository()
        pack = {"raw": bytes, "zlib": zlib.compress, "zstd": zstandard.compress}[encoding]
        contents = [bytes([number]) * 300_000 for number in range(5)]
        frames = [frame("O", object_id=blob_id(c), encoding=encoding, content=pack(c)) for c in contents]
        await refused(server, around(frames, 5), "bomb", *map(blob_id, contents))
        assert (await push(server, one_commit().frames()))["type"] == "R"


async def test_more_than_the_limits_allow_is_too_large(tmp_path):
    limits = {
        "limits__objects_per_push": 3, "limits__commits_per_push": 3, "limits__manifest_entries": 3,
        "limits__object_frame_bytes": 2 * MIB, "limits__object_bytes": 3 * MIB, "limits__record_bytes": 10_000,
        "limits__path_bytes": 100,
    }  # fmt: skip
    async with deployed(None, tmp_path, **limits) as server:
        await server.make_repository()
        objects = [frame("O", object_id=blob_id(b"%d" % n), encoding="raw", content=b"%d" % n) for n in range(4)]
        await refused(server, around(objects, 4), "too_large", *(blob_id(b"%d" % n) for n in range(4)))
        commits = Push()
        for number in range(4):
            commits.commit({"f": b"x"}, message=f"{number}")
        await refused(server, commits.frames(), "too_large", X)
        split = [frame("C", commits=[record]) for record in commits.commits]
        await refused(server, around([member(), *split], 1, 4), "too_large", X)
        wide = Push()
        wide.commit({f"f{number}": b"x" for number in range(4)})
        await refused(server, wide.frames(), "too_large", X)
        large = frame("O", object_id=ZEROS, encoding="raw", content=bytes(2 * MIB + 1))
        await refused(server, around([large], 1), "too_large")
        chunk = frame("OC", object_id=ZEROS, encoding="raw", seq=0, last=True, content=bytes(MIB + 1))
        await refused(server, around([chunk], 1), "too_large")
        chunks = [frame("OC", object_id=ZEROS, encoding="raw", seq=n, last=False, content=bytes(MIB)) for n in range(4)]
        await refused(server, around(chunks, 1), "too_large")
        await refused(server, with_record("commits", unknown="x" * 500_000), "too_large", X)
        assert (await push(server, one_commit().frames()))["type"] == "R"


async def test_snapshots_of_a_push_are_counted_and_so_is_what_they_make_the_server_write(tmp_path):
    deltas = [
        {"snapshot_id": snapshot_id({f"f{n}": X}), "parent_snapshot_id": None, "delta_upsert": {f"f{n}": X}}
        for n in range(4)
    ]
    frames = [member(), frame("C", snapshot_deltas=deltas)]
    async with deployed(None, tmp_path, limits__snapshots_per_push=3) as server:
        await server.make_repository()
        await refused(server, around(frames, 1), "too_large", X)
        assert (await push(server, one_commit().frames()))["type"] == "R"
    async with deployed(None, tmp_path, limits__snapshot_push_bytes=1_000) as server:
        await server.make_repository()
        await refused(server, around(frames, 1), "too_large", X)
        assert (await push(server, one_commit().frames()))["type"] == "R"


async def test_a_batch_of_records_is_as_large_as_its_bytes_allow(tmp_path, monkeypatch):
    sizes: list[int] = []
    add = RecordStage.add

    async def counting(self: RecordStage, records: list) -> None:
        sizes.append(sum(len(record.record.get("message", "")) for record in records))
        await add(self, records)

    monkeypatch.setattr(RecordStage, "add", counting)
    history = Push()
    for number in range(12):
        history.commit({"f": b"x"}, message=f"{number}" + "m" * 900_000)
    async with deployed(None, tmp_path) as server:
        await server.make_repository()
        frames = [history.header(), *history.object_frames()]
        frames += [frame("C", commits=[c], snapshots=history.snapshots[:1]) for c in history.commits]
        assert (await push(server, b"".join([*frames, history.end()])))["type"] == "R"
        copy_of = await clone(server, history.head)
    assert copy_of.commits == {commit["commit_id"]: commit for commit in history.commits}
    assert max(sizes) <= BATCH_BYTES + MIB


COUNTS = [(0, 1), (2, 1), (1, 0), (1, 2), (10**6, 1), (1, 2**63)]


@pytest.mark.parametrize(("objects", "commits"), COUNTS)
async def test_counts_that_do_not_match_refuse_the_push(twin, objects, commits):
    await twin.make_repository()
    history = one_commit()
    frames = [history.header(), *history.object_frames(), history.commit_frame()]
    frames.append(frame("E", n_objects=objects, n_commits=commits))
    await refused(twin, b"".join(frames), "count_mismatch", X)


TRAVERSAL = [
    "/a", "../a", "a/../b", "..", ".", "./a", "a/.", "a//b", "a/", "", "a\\b", "..\\a", "C:/a", "c:a", "a\0b", "a\nb",
    "a\x7fb", "a\x9fb", ".muse/x", ".git/config", "a/.git", ".GIT/x", ".Muse", ".g\u200cit/x", ".git ./x",
    ".git::$INDEX_ALLOCATION/x", "GIT~1/x", "git~2", "muse~1/x", "x" * 256, "a/" * 2048 + "aa",
]  # fmt: skip
PORTABILITY = [
    "ab:c", "a/b:c", "trailing.", "trailing ", "dir./a", "dir /a", "CON", "con.txt", "a/nul", "COM1", "lpt9.log",
    "aux .x", "cafe\u0301",
]  # fmt: skip


def pushes_of_path(path: str) -> Iterator[bytes]:
    """A push with a path in a manifest, one with it in a delta, one with it among the directories."""
    oid = X
    full, listed = make_snapshot({path: oid}), make_snapshot({"f": oid}, [path])
    for kind, snapshot in (("snapshots", full), ("snapshot_deltas", full), ("snapshots", listed)):
        record = make_commit(snapshot["snapshot_id"])
        as_delta = {
            "snapshot_id": snapshot["snapshot_id"], "parent_snapshot_id": None, "delta_upsert": {path: oid},
            "delta_remove": [],
        }  # fmt: skip
        lists = {"commits": [record], kind: [as_delta if kind == "snapshot_deltas" else snapshot]}
        header = frame("H", version=2, branch="main", head=record["commit_id"], force=False)
        yield header + member() + frame("C", **lists) + frame("E", n_objects=1, n_commits=1)


@pytest.mark.parametrize("path", [*TRAVERSAL, *PORTABILITY], ids=lambda path: repr(path)[:40])
async def test_T10_T11_an_unsafe_path_refuses_the_push(twin, path):
    await twin.make_repository()
    for frames in pushes_of_path(path):
        await refused(twin, frames, "unsafe_path", X)


@pytest.mark.parametrize("path", TRAVERSAL, ids=lambda path: repr(path)[:40])
async def test_T10_T11_no_setting_makes_a_traversal_safe(twin, path):
    await twin.make_repository(relaxed_paths=True)
    for frames in pushes_of_path(path):
        await refused(twin, frames, "unsafe_path", X)


@pytest.mark.parametrize("path", PORTABILITY, ids=lambda path: repr(path)[:40])
async def test_a_repository_may_relax_portability(twin, path):
    await twin.make_repository(relaxed_paths=True)
    frames = next(iter(pushes_of_path(path)))
    said = await push(twin, frames)
    assert said["type"] == "R", said
    copy_ = await clone(twin, said["head"])
    assert copy_.files(said["head"]) == {path: b"x"}


COLLISIONS = [
    {"a", "A"}, {"dir/a", "DIR/a"}, {"\u00e4", "\u00c4"}, {"stra\u00dfe", "STRASSE"}, {"a", "a/b"}, {"a/b", "A"},
    {"a/b/c", "a/B"}, {"\u212a", "k"},
]  # fmt: skip


@pytest.mark.parametrize("paths", COLLISIONS, ids=lambda paths: "+".join(sorted(paths)))
async def test_T12_paths_that_are_one_path_on_some_system_refuse_the_push(twin, paths):
    await twin.make_repository()
    history = Push()
    history.commit(dict.fromkeys(paths, b"x"))
    await refused(twin, history.frames(), "unsafe_path", X)


async def test_T12_a_path_that_collides_with_one_of_the_base_refuses_the_push(twin):
    first = await with_history(twin)
    base = first.snapshots[-1]
    for path in ("A.TXT", "a.txt/below", "DIR"):
        target = make_snapshot({**base["manifest"], path: X})
        record = {
            "snapshot_id": target["snapshot_id"], "parent_snapshot_id": base["snapshot_id"], "delta_upsert": {path: X},
            "delta_remove": [],
        }  # fmt: skip
        commit = make_commit(target["snapshot_id"], [first.head])
        history = Push(commits=[commit], deltas=[record], blobs={X: b"x"})
        await refused(twin, history.frames(), "unsafe_path", X)


def pending(commit: int, *parents: int) -> PendingCommit:
    return PendingCommit(bytes([commit] * 32), tuple(bytes([p] * 32) for p in parents), bytes(32), Position(0, 0))


@pytest.mark.parametrize("graph", [
    [pending(1, 1)], [pending(1, 2), pending(2, 1)], [pending(1, 2), pending(2, 3), pending(3, 1)],
    [pending(1), pending(2, 1, 3), pending(3, 2)],
], ids=["itself", "two", "three", "beside a root"])  # fmt: skip
def test_R11_a_cycle_of_commits_is_malformed(graph):
    # a hash that closes a cycle cannot be made, so this asks the stage itself
    with pytest.raises(Refusal) as caught:
        _ordered({commit.commit_id: commit for commit in graph}, {}, Scheme.TYPED)
    assert caught.value.code is Code.MALFORMED


async def test_a_commit_with_the_same_parent_twice_is_a_commit(twin):
    await twin.make_repository()
    history = Push()
    first = history.commit({"f": b"x"})
    history.commit({"f": b"x"}, [first, first], message="twice")
    assert (await push(twin, history.frames()))["type"] == "R"
    assert len((await clone(twin, history.head)).commits) == 2


async def test_a_third_parent_is_not_known_to_anybody(twin):
    await twin.make_repository()
    history = one_commit()
    first = history.head
    record = {**make_commit(history.snapshots[0]["snapshot_id"], [first], message="m"), "parent3_commit_id": ZEROS}
    history.commits.append(record)
    assert commit_id(record) == record["commit_id"]
    assert (await push(twin, history.frames()))["type"] == "R"  # an unknown field, kept and returned
    assert (await clone(twin, history.head)).commits[history.head] == record
