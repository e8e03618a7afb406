"""The body of an old client's push, written anew as frames: in any order, in any pieces, over little memory."""

from __future__ import annotations

import itertools
from pathlib import Path

import msgpack
import pytest
import trio

from actors.push.plain_body import PlainBody
from actors.spool import SpoolDirectory
from tests.muse import Push, plain
from wire.errors import Refusal
from wire.limits import Limits


def history(count: int = 3) -> Push:
    made = Push(name=plain)
    for number in range(count):
        made.commit({"a": b"%d" % number, "same": b"same"}, message=str(number))
    return made


def body_of(made: Push, order: tuple[str, ...] = ("bundle", "branch", "force"), **more: object) -> bytes:
    inner = {
        "commits": made.commits, "snapshots": made.snapshots,
        "objects": [{"object_id": oid, "content": content} for oid, content in made.blobs.items()], **more,
    }  # fmt: skip
    members = {"bundle": inner, "branch": "main", "force": False}
    return msgpack.packb({key: members[key] for key in order})


async def frames_of(body: bytes, tmp_path: Path, piece: int = 10**9, limits: Limits | None = None) -> list[dict]:
    async with SpoolDirectory(tmp_path, "x") as spools:
        plain_body = PlainBody(spools, limits or Limits())
        for at in range(0, len(body), piece):
            plain_body.take(body[at : at + piece])
        plain_body.take(b"")
        unpacker = msgpack.Unpacker(raw=False)
        for part in plain_body.frames():
            unpacker.feed(part)
        return list(unpacker)


@pytest.mark.parametrize("order", list(itertools.permutations(("bundle", "branch", "force"))))
async def test_members_come_in_any_order_and_pieces_of_any_size(tmp_path: Path, order: tuple[str, ...]):
    """``H O* C* E`` with true counts, commits with parents first though they came last."""
    made = history()
    made.commits.reverse()
    for piece in (1, 7, 10**9):
        frames = await frames_of(body_of(made, order), tmp_path, piece)
        assert [frame["type"] for frame in frames] == ["H", *"O" * len(made.blobs), "C", "C", "E"]
        assert (frames[0]["branch"], frames[0]["head"], frames[0]["force"]) == (
            "main",
            made.commits[0]["commit_id"],
            False,
        )
        assert frames[-1] == {"type": "E", "n_objects": len(made.blobs), "n_commits": 3}
        commits = [record for frame in frames for record in frame.get("commits", ())]
        assert [c["commit_id"] for c in commits] == [c["commit_id"] for c in reversed(made.commits)]
        assert [record for frame in frames for record in frame.get("snapshots", ())] == made.snapshots


async def test_large_contents_become_chunks_and_large_snapshots_frames_of_their_own(tmp_path: Path):
    """Nothing is held whole: an object above 1 MiB is cut, a snapshot above 200 KB is streamed."""
    made = Push(name=plain)
    made.commit({f"{'d' * 90}/{n:05}": b"%d" % (n % 3) for n in range(2_000)} | {"big": b"b" * 2_500_000})
    made.commit({"small": b"s"})
    frames = await frames_of(body_of(made), tmp_path, 50_000)
    chunks = [frame for frame in frames if frame["type"] == "OC"]
    assert [(c["seq"], c["last"], len(c["content"])) for c in chunks] == [
        (0, False, 1_048_576), (1, False, 1_048_576), (2, True, 2_500_000 - 2 * 1_048_576)
    ]  # fmt: skip
    assert [frame["snapshots"][0]["snapshot_id"] for frame in frames if "snapshots" in frame] == [
        snapshot["snapshot_id"] for snapshot in made.snapshots
    ]


def circle(made: Push) -> None:
    made.commits[0]["parent_commit_id"] = made.commits[-1]["commit_id"]


def two_tips(made: Push) -> None:
    del made.commits[1]


REFUSED = {
    "a circle": (circle, {"branch_heads": {"main": "0" * 64}}, "circle"),
    "two newest commits": (two_tips, {}, "2 newest commits"),
    "a delta": (lambda made: None, {"objects": [{"object_id": "0" * 64, "base": "1" * 64, "content": b"",
                                                "encoding": "delta+zlib"}]}, "not deltas"),
    "tags": (lambda made: None, {"tags": [{"tag": "x"}]}, "has no tags"),
    "a snapshot that is none": (lambda made: None, {"snapshots": [3]}, "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
async def test_what_makes_no_push_is_refused(tmp_path: Path, what: str):
    """Each in a sentence, before anything is written anywhere."""
    made = history()
    change, more, says = REFUSED[what]
    change(made)
    with pytest.raises(Refusal, match=says) as refused:
        await frames_of(body_of(made, **more), tmp_path)
    assert refused.value.code.status == 422


async def test_a_deep_history_given_newest_first_is_ordered(tmp_path: Path):
    """Ten thousand commits in the worst order: no recursion, no square."""
    made = Push(name=plain)
    made.commit({"a": b"1"})
    for number in range(10_000):
        made.commit({"a": b"1"}, message=str(number))
    made.commits.reverse()
    with trio.fail_after(30):
        frames = await frames_of(body_of(made), tmp_path)
    commits = [record["commit_id"] for frame in frames for record in frame.get("commits", ())]
    assert commits == [c["commit_id"] for c in reversed(made.commits)]
