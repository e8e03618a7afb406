"""A clone over a bad line, from a server that is started anew, onto a disk that is full: whole, or nothing at all."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio
import zstandard

from museworkd.client.errors import StaleUrlError
from museworkd.client.fetch import FetchReport, clone
from museworkd.client.progress import Quiet
from museworkd.client.repository import LocalRepository
from museworkd.client.transport import Remote
from museworkd.client.verify import verify
from tests.containers import COMMITS, OBJECTS, OBJECTS_ZSTD, SNAPSHOTS, mpack, pack, record_section
from tests.muse import Push
from tests.servers import clean_environment

BLOBS, BLOB_BYTES = 64, 40_000
RANGE = re.compile(rb"(?i)range: bytes=(\d+)-")


@dataclass
class BadLine:
    """Serves one history; each download ends after so many bytes, for as long as there are ``cuts``."""

    head: str
    packs: list[bytes]
    """Each is made for one asking, the last for every one from there on; earlier ones are gone then."""
    cuts: list[int] = field(default_factory=list)
    gone_after: int | None = None
    """Downloads after which the pack is gone."""
    ranges: bool = True
    url: str = ""
    asked: int = 0
    downloads: int = 0
    sent_bytes: int = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await stream.receive_some(65_536)
        target = request.split(b" ", 2)[1].decode()
        async with stream:
            if target.endswith("/refs"):
                await self._say(stream, {"domain": "code", "branch_heads": {"main": self.head}})
            elif target.endswith("/fetch/mpack"):
                await self._say(stream, self._offer())
            else:
                await self._download(stream, target, request)

    def _offer(self) -> dict[str, object]:
        self.asked += 1
        if self.asked > 1:
            self.gone_after = None
        data = self._pack
        name = hashlib.sha256(data).hexdigest()
        return {"mpack_id": f"sha256:{name}", "mpack_url": f"{self.url}/{name}", "size_bytes": len(data)}

    @property
    def _pack(self) -> bytes:
        return self.packs[min(self.asked, len(self.packs)) - 1]

    async def _download(self, stream: trio.SocketStream, target: str, request: bytes) -> None:
        data = self._pack
        self.downloads += 1
        gone = self.gone_after is not None and self.downloads > self.gone_after
        if gone or target != f"/{hashlib.sha256(data).hexdigest()}":
            await self._say(stream, {"error": "not_found", "detail": "there is no such pack"}, 404)
            return
        found = RANGE.search(request) if self.ranges else None
        start = int(found[1]) if found else 0
        cut = self.cuts.pop(0) if self.cuts else len(data)
        body = data[start : start + cut]
        self.sent_bytes += len(body)
        status = "206 Partial Content" if found else "200 OK"
        head = f"HTTP/1.1 {status}\r\ncontent-length: {len(data) - start}\r\nconnection: close\r\n\r\n"
        await stream.send_all(head.encode() + body)

    @staticmethod
    async def _say(stream: trio.SocketStream, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        await stream.send_all(f"{head}connection: close\r\n\r\n".encode() + body)


@asynccontextmanager
async def serving(line: BadLine) -> AsyncIterator[BadLine]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    line.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, line.serve, listeners)
        yield line
        nursery.cancel_scope.cancel()


@pytest.fixture(scope="module")
def history() -> Push:
    """More than is read past the HTTP parser, and nothing that could be compressed."""
    made, rng = Push(), random.Random(3)
    made.commit({f"f{number}": rng.randbytes(BLOB_BYTES) for number in range(BLOBS)})
    return made


def packed(made: Push, *, otherwise: bool = False) -> bytes:
    """Give the history as one file; ``otherwise``: with the same content in other bytes."""
    sections = [(SNAPSHOTS, record_section(made.snapshots)), (COMMITS, record_section(made.commits))]
    return mpack([(OBJECTS, pack(made.blobs.items())), *sections, *([(OBJECTS_ZSTD, pack([]))] if otherwise else [])])


def compressed() -> tuple[Push, bytes]:
    """Give a history whose file is small and whose contents are not."""
    made = Push()
    made.commit({f"f{number}": b"%d" % number * BLOB_BYTES for number in range(BLOBS)})
    frames = [(oid, zstandard.compress(content)) for oid, content in made.blobs.items()]
    sections = [(SNAPSHOTS, record_section(made.snapshots)), (COMMITS, record_section(made.commits))]
    return made, mpack([(OBJECTS_ZSTD, pack(frames)), *sections])


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("museworkd.client.fetch.RESUME_PAUSE_S", 0)


async def cloned(line: BadLine, target: Path) -> FetchReport:
    return await clone(Remote(f"{line.url}/a/b", None), target, Quiet())


async def proved(target: Path, made: Push) -> None:
    with LocalRepository.find(target) as repository:
        report = await verify(repository, Quiet())
        assert (report.problems, report.blobs, report.commits) == ([], len(made.blobs), len(made.commits))


@pytest.mark.parametrize("seed", range(6))
async def test_a_download_cut_at_random_points_resumes_and_verifies(tmp_path, history, seed):
    """Wherever it is cut — in the head of the file, a record header, a content — nothing comes twice, all is proved."""
    data, rng = packed(history), random.Random(seed)
    cuts = [rng.choice((1, 5, 6, 13, 79, rng.randrange(1, len(data) // 4))) for _ in range(rng.randrange(1, 9))]
    async with serving(BadLine(history.head, [data], cuts)) as line:
        report = await cloned(line, tmp_path / "here")
    assert (line.asked, line.sent_bytes, report.received_bytes) == (1, len(data), len(data))
    assert line.cuts == []
    await proved(tmp_path / "here", history)


async def test_a_server_without_ranges_is_read_from_the_beginning(tmp_path, history):
    """What it sends again counts once."""
    data = packed(history)
    third = len(data) // 3
    async with serving(BadLine(history.head, [data], [third, 2 * third], ranges=False)) as line:
        await cloned(line, tmp_path / "here")
    assert line.sent_bytes == 3 * third + len(data)
    await proved(tmp_path / "here", history)


async def test_a_server_started_anew_makes_another_pack_and_the_clone_takes_that(tmp_path, history):
    """The pack is gone in the middle of its download, and the next one has another id and other bytes."""
    first, second = packed(history), packed(history, otherwise=True)
    assert first != second
    async with serving(BadLine(history.head, [first, second], [len(first) // 2], gone_after=1)) as line:
        report = await cloned(line, tmp_path / "here")
    assert line.asked == 2
    assert report.received_bytes == len(second)
    await proved(tmp_path / "here", history)


async def test_a_pack_that_is_gone_whenever_it_is_asked_for_is_given_up(tmp_path, history):
    """After a few askings, with nothing left behind."""
    data = packed(history)

    class Gone(BadLine):
        def _offer(self) -> dict[str, object]:
            return {**super()._offer(), "mpack_url": f"{self.url}/elsewhere"}

    async with serving(Gone(history.head, [data])) as line:
        with pytest.raises(StaleUrlError, match="there is no such pack") as raised:
            await cloned(line, tmp_path / "here")
    assert raised.value.exit_code == 3
    assert line.asked == 3
    assert not (tmp_path / "here").exists()


async def test_another_pack_s_bytes_in_the_second_half_are_found(tmp_path, history):
    """A server whose pack changed under its URL: the whole has to hash to the id that was told."""
    first, second = packed(history), packed(history, otherwise=True)

    class Swapped(BadLine):
        async def _download(self, stream: trio.SocketStream, target: str, request: bytes) -> None:
            if self.downloads:
                self.packs = [second[: len(first)].ljust(len(first), b"\0")]
                target = f"/{hashlib.sha256(self._pack).hexdigest()}"
            await super()._download(stream, target, request)

    async with serving(Swapped(history.head, [first], [len(first) // 2])) as line:
        with pytest.raises(Exception, match=r"does not match its bytes|does not hash|refused") as raised:
            await cloned(line, tmp_path / "here")
    assert raised.value.exit_code == 3
    assert not (tmp_path / "here").exists()


def may_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False, timeout=20).returncode == 0
    except FileNotFoundError:
        return False


FULL = {
    "nothing is begun": (1_000, ["here is missing"]),
    "in the middle of the pack's copy": (4_000, ["here is missing"]),
    "in the middle of the checkout": (6_500, ["whole", "its files could not all be written"]),
}


@pytest.mark.parametrize("when", FULL)
async def test_a_disk_that_is_full_ends_a_clone_with_3_and_leaves_nothing_that_looks_whole(tmp_path, history, when):
    """A small file system, full at different moments: no repository, or one that says what is missing of its files."""
    if not await trio.to_thread.run_sync(may_mount):
        pytest.skip("this system lets nobody mount a file system of their own")
    kib, said = FULL[when]
    disk = tmp_path / "disk"
    disk.mkdir()
    script = """
        mount -t tmpfs -o size="$1"k none "$2" && cd "$2" || exit 99
        "$3" -m museworkd.cli.main clone "$4" here --quiet --json; echo "exit $?"
        [ -e here ] && ls -A here | head -1 || echo here is missing
        [ -e here ] && "$3" -m museworkd.cli.main verify here --quiet --json > verified 2>&1; echo "verified $?"
    """
    made, data = compressed() if "checkout" in when else (history, packed(history))
    async with serving(BadLine(made.head, [data])) as line:
        arguments = ["sh", "-c", script, "sh", str(kib), str(disk), sys.executable, f"{line.url}/a/b"]
        with trio.fail_after(120):
            done = await trio.run_process(
                ["unshare", "-rm", *arguments], capture_stdout=True, capture_stderr=True, check=False,
                env=clean_environment(PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
            )  # fmt: skip
    out = (done.stdout + done.stderr).decode()
    assert "exit 3" in out, out
    assert all(words in out for words in said), out
    if "whole" in said:
        assert "verified 1" in out, out
