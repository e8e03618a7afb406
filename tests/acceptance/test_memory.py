"""The server's memory stays flat: while half a gigabyte is pushed and cloned, and under everything that bombs."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import zstandard

from museworkd.client.fetch import clone
from museworkd.client.progress import Quiet
from museworkd.client.transport import Remote
from tests import muse
from tests.acceptance.pushing import push_pieces
from tests.containers import varint
from tests.servers import Daemon, daemon, museworkd

MIB = 1024 * 1024
ABOVE_IDLE_MOST = 64 * MIB
CHUNK = 1024 * 1024


@pytest.fixture
def running(tmp_path: Path, database_url: str) -> Iterator[tuple[Daemon, Remote]]:
    options = ["--data-dir", str(tmp_path / "data"), "--database-url", database_url]
    # the work behind one push would be counted with the next one
    with daemon(tmp_path / "data", database_url, "server.role=web") as server:
        museworkd("repo", "create", "ada/x", *options)
        token = museworkd("token", "create", "ada", *options).stdout.strip()
        yield server, Remote(f"{server.url}/ada/x", token)


class LargeHistory:
    """A seeded history of given size, generated while it is sent."""

    def __init__(self, sizes: list[int], commits: int, seed: int) -> None:
        self.noise = random.Random(seed).randbytes(max(sizes))
        self.sizes = sizes
        self.ids = [muse.blob_id(self.content(i)) for i in range(len(sizes))]
        self.commits: list[dict] = []
        self.deltas: list[dict] = []
        manifest: dict[str, str] = {}
        base = parent = None
        step = -(-len(sizes) // commits)
        for start in range(0, len(sizes), step):
            upsert = {
                f"dir{i % 40}/file{i % 3000}.bin": self.ids[i] for i in range(start, min(start + step, len(sizes)))
            }
            manifest.update(upsert)
            snapshot = muse.snapshot_id(manifest)
            self.deltas.append(
                {"snapshot_id": snapshot, "parent_snapshot_id": base, "delta_upsert": upsert, "delta_remove": []}
            )
            commit = muse.make_commit(snapshot, [parent] if parent else [], message=f"commit {start}")
            self.commits.append(commit)
            base, parent = snapshot, commit["commit_id"]

    def content(self, number: int) -> bytes:
        return number.to_bytes(8, "big") + self.noise[8 : self.sizes[number]]

    def frames(self) -> Iterator[bytes]:
        yield muse.frame("H", version=2, branch="main", head=self.commits[-1]["commit_id"], force=False)
        for number, object_id in enumerate(self.ids):
            content = self.content(number)
            if len(content) <= 4 * MIB:
                yield muse.frame("O", object_id=object_id, encoding="raw", content=content)
                continue
            parts = [content[at : at + CHUNK] for at in range(0, len(content), CHUNK)]
            for seq, part in enumerate(parts):
                yield muse.frame(
                    "OC", object_id=object_id, encoding="raw", seq=seq, last=seq == len(parts) - 1, content=part
                )
        for at in range(0, len(self.deltas), 20):
            yield muse.frame("C", commits=[], snapshots=[], snapshot_deltas=self.deltas[at : at + 20])
        for at in range(0, len(self.commits), 50):
            yield muse.frame("C", commits=self.commits[at : at + 50], snapshots=[], snapshot_deltas=[])
        yield muse.frame("E", n_objects=len(self.ids), n_commits=len(self.commits))


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_R10_half_a_gigabyte_goes_through_in_64_MiB(running: tuple[Daemon, Remote], tmp_path: Path) -> None:
    server, remote = running
    sizes = [4_096] * 8_000 + [90_000] * 3_000 + [1_100_000] * 100 + [9_000_000] * 10
    history = LargeHistory(sizes, commits=500, seed=11)
    assert sum(sizes) > 500_000_000
    idle = server.memory()
    server.reset_peak()

    answer = await push_pieces(remote, history.frames())

    assert answer["type"] == "R", answer
    pushed = server.memory("VmHWM") - idle
    server.reset_peak()
    report = await clone(remote, tmp_path / "clone", Quiet())
    cloned = server.memory("VmHWM") - idle
    assert report.commits == len(history.commits)
    assert report.blobs == len(sizes)
    assert pushed <= ABOVE_IDLE_MOST, f"{pushed / MIB:.1f} MiB above idle for the push"
    assert cloned <= ABOVE_IDLE_MOST, f"{cloned / MIB:.1f} MiB above idle for the clone"


def bombs() -> dict[str, tuple[list[bytes], str]]:
    """Name → frames after the header, code."""
    zeros = b"\0" * (200 * MIB)
    object_id = muse.blob_id(zeros)
    stated = zstandard.ZstdCompressor().compress(zeros)
    unstated = zstandard.ZstdCompressor(write_content_size=False).compress(zeros)
    window = zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    ).compress(b"\0" * (150 * MIB))

    def sent(encoding: str, content: bytes) -> list[bytes]:
        return [muse.frame("O", object_id=object_id, encoding=encoding, content=content)]

    head = msgpack.packb({"type": "O", "object_id": object_id, "encoding": "raw"})[1:]
    return {
        "zstd with its size stated": (sent("zstd", stated), "bomb"),
        "zstd without a size": (sent("zstd", unstated), "bomb"),
        "zstd with a huge window": (sent("zstd", window), "bomb"),
        "zlib": (sent("zlib", zlib.compress(zeros)), "bomb"),
        "a frame announcing 4 GiB": ([b"\x84" + head + b"\xa7content\xc6\xff\xff\xff\xff"], "too_large"),
        "a list of 4 billion commits": ([b"\x82\xa4type\xa1C\xa7commits\xdd\xff\xff\xff\xff"], "too_large"),
        "a map of 4 billion paths": (
            [b"\x82\xa4type\xa1C\xa9snapshots\x91\x81\xa8manifest\xdf\xff\xff\xff\xff"], "too_large",
        ),
        "nested lists": ([b"\x82\xa4type\xa1C\xa7commits\x91" + b"\x91" * 3_000_000], "malformed"),
        "one endless value": (
            [b"\x82\xa4type\xa1C\xa7commits\x91\xdb\x7f\xff\xff\xff", b"x" * (64 * MIB)], "too_large",
        ),
        "many small lists": ([b"\x82\xa4type\xa1C\xa7commits\x91\xdd\x00\x10\x00\x00" + b"\x90" * MIB], "too_large"),
        "many short strings": (
            [b"\x82\xa4type\xa1C\xa7commits\x91\xdd\x00\x10\x00\x00" + b"\xa2ab" * MIB], "too_large",
        ),
    }  # fmt: skip


@pytest.mark.timeout(200)
async def test_T8_T9_bombs_are_refused_in_flat_memory(running: tuple[Daemon, Remote]) -> None:
    server, remote = running
    idle = server.memory()
    server.reset_peak()
    header = muse.frame("H", version=2, branch="main", head=muse.blob_id(b"any"), force=False)
    for name, (frames, code) in bombs().items():
        answer = await push_pieces(remote, [header, *frames])
        assert answer.get("error") == code, (name, answer)
        above = server.memory("VmHWM") - idle
        assert above <= ABOVE_IDLE_MOST, f"{name}: {above / MIB:.1f} MiB above idle"
    assert server.process.poll() is None


BLOB = muse.blob_id(b"x")


def opening(head: str = BLOB) -> list[bytes]:
    header = muse.frame("H", version=2, branch="main", head=head, force=False)
    return [header, muse.frame("O", object_id=BLOB, encoding="raw", content=b"x")]


def whole_push(manifest: dict[str, str], *more: bytes) -> list[bytes]:
    """One commit of a tree whose files are all the same, with more frames before the end."""
    snapshot = muse.make_snapshot(manifest)
    commit = muse.make_commit(snapshot["snapshot_id"])
    records = muse.frame("C", commits=[commit], snapshots=[snapshot], snapshot_deltas=[])
    return [*opening(commit["commit_id"]), records, *more, muse.frame("E", n_objects=1, n_commits=1)]


def commits_of(count: int, **fields: object) -> list[bytes]:
    snapshot = muse.make_snapshot({"a": BLOB})
    commits = [muse.make_commit(snapshot["snapshot_id"])]
    frames = [muse.frame("C", commits=commits, snapshots=[snapshot], snapshot_deltas=[])]
    for number in range(count):
        parents = [commits[-1]["commit_id"]]
        more = {**fields, "message": f"{number}{fields.get('message', '')}"}
        commits.append(muse.make_commit(snapshot["snapshot_id"], parents, **more))
        frames.append(muse.frame("C", commits=commits[-1:], snapshots=[], snapshot_deltas=[]))
    frames = [*opening(commits[-1]["commit_id"]), *frames]
    return [*frames, muse.frame("E", n_objects=1, n_commits=len(commits))]


def siblings(files: int, depth: int, count: int) -> tuple[dict[str, str], list[bytes]]:
    """Many snapshots that differ in one file each, on one whose chain is as long as it may be."""
    manifest = {f"a/{number:040}": BLOB for number in range(files)}
    deltas: list[dict] = []
    base, tree = muse.snapshot_id(manifest), dict(manifest)
    for number in range(depth):
        tree[f"z{number:04}"] = BLOB
        deltas.append(delta := _delta(base, tree, f"z{number:04}"))
        base = delta["snapshot_id"]
    deltas += [_delta(base, {**tree, f"zz{number:04}": BLOB}, f"zz{number:04}") for number in range(count)]
    parts = [deltas[at : at + 100] for at in range(0, len(deltas), 100)]
    return manifest, [muse.frame("C", commits=[], snapshots=[], snapshot_deltas=part) for part in parts]


def _delta(base: str, tree: dict[str, str], added: str) -> dict:
    return {
        "snapshot_id": muse.snapshot_id(tree), "parent_snapshot_id": base, "delta_upsert": {added: BLOB},
        "delta_remove": [],
    }  # fmt: skip


def delta_frames(count: int) -> list[bytes]:
    """Deltas of a few bytes whose results have nearly 16 MiB."""
    base = bytes(16 * MIB)
    frames = [muse.frame("O", object_id=muse.blob_id(base), encoding="zstd", content=zstandard.compress(base))]
    for number in range(count):
        content = base[:0xFFFFF8] + number.to_bytes(8, "big")
        delta = varint(len(base)) + varint(len(content)) + b"\xf0\xf8\xff\xff" + b"\x08" + content[-8:]
        encoded = zlib.compress(delta)
        members = {"object_id": muse.blob_id(content), "encoding": "delta+zlib", "base": muse.blob_id(base)}
        frames.append(muse.frame("O", **members, content=encoded))
    return [*opening(), *frames, muse.frame("E", n_objects=count + 2, n_commits=0)]


def heavy_pushes() -> Iterator[tuple[str, list[bytes], str | None, int]]:
    """Name, frames, code of the refusal, and how many MiB it may take."""
    lists = b"\xdd\x00\x00\xfd\xe8" + b"\x90" * 65_000
    head = b"\x84\xa4type\xa1O\xa9object_id" + lists + b"\xa8encoding\xa3raw\xa7content\xc4\x01x"
    yield "ids that are lists", [opening()[0], *[head] * 63], "malformed", 32
    deep = {f"{number:06}/" + "a/" * 2044 + "b": BLOB for number in range(100)}
    yield "paths of 2,047 components", whole_push(deep), None, 32
    yield "messages of 1 MiB", commits_of(60, message="m" * 1_040_000), None, 48
    yield "commits of 65,000 lists", commits_of(15, structured_delta=[[]] * 65_000), None, 48
    manifest, deltas = siblings(3_000, 48, 400)
    yield "siblings of a deep snapshot", whole_push(manifest, *deltas), None, 32
    for files in (100_000, 250_000):  # the larger one is kept compressed
        yield f"a tree of {files} files", whole_push({f"d{i % 997}/file{i:08}": BLOB for i in range(files)}), None, 64
    yield "deltas that make 16 MiB each", delta_frames(6), "missing_parents", 64


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(200)
async def test_small_pushes_that_stand_for_much_take_little_memory(running: tuple[Daemon, Remote]) -> None:
    server, remote = running
    assert (await push_pieces(remote, whole_push({"warm": BLOB})))["type"] == "R"
    for name, frames, code, most in heavy_pushes():
        idle = server.memory()
        server.reset_peak()
        frames[0] = frames[0].replace(b"\xa5force\xc2", b"\xa5force\xc3")
        answer = await push_pieces(remote, frames)
        assert answer.get("error") == code, (name, answer)
        above = (server.memory("VmHWM") - idle) / MIB
        assert above <= most, f"{name}: {above:.1f} MiB above idle"
