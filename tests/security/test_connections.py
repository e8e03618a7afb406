"""Requests that a proxy reads otherwise, work before rights are known, and one client at the expense of the others."""

from __future__ import annotations

import re
import socket

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from actors.fetch import assemble
from storage.memory.index import MemoryIndex
from storage.objects.memory import MemoryStore
from storage.objects.wrapped import WrappedStore
from tests.clones import clone, fetch
from tests.deployments import CountingIndex, two_commits, with_history
from tests.http_client import PATIENCE_S, ask, connected, head_bytes, push, request_bytes
from tests.muse import Push, blob_id, frame
from tests.servers import serving
from tests.surviving import MIB, PUSH, GatedStore

pytestmark = pytest.mark.usefixtures("expected_errors")

POST = b"POST /alice/x/negotiate HTTP/1.1\r\nHost: a\r\n"
HIDDEN = b"GET /livez?smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"2\r\n{}\r\n0\r\n\r\n"

AMBIGUOUS: dict[str, bytes] = {
    "length and chunks": POST + b"Content-Length: 12\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "chunks and length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n" + CHUNKED,
    "length of nothing and chunks": POST + b"content-length: 0\r\ntransfer-encoding: CHUNKED\r\n\r\n" + CHUNKED,
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
    "two lengths in one": POST + b"Content-Length: 2, 3\r\n\r\n{}",
    "length with a sign": POST + b"Content-Length: +2\r\n\r\n{}",
    "negative length": POST + b"Content-Length: -2\r\n\r\n{}",
    "hexadecimal length": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "length with a space inside": POST + b"Content-Length: 2 2\r\n\r\n{}",
    "no length": POST + b"Content-Length:\r\n\r\n",
    "unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKED,
    "coding twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKED,
    "coding and identity": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKED,
    "space before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKED,
    "coding after a bare CR": POST + b"X: a\rTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
    "coding after a control character": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + CHUNKED,
    "NUL in a header": POST + b"X: a\0b\r\nContent-Length: 2\r\n\r\n{}",
    "folded first header": b"POST /alice/x/negotiate HTTP/1.1\r\n Host: a\r\nContent-Length: 2\r\n\r\n{}",
    "chunks in HTTP/1.0": (POST + b"Transfer-Encoding: chunked\r\n\r\n" + CHUNKED).replace(b"1.1", b"1.0"),
    "chunk size with a prefix": POST + b"Transfer-Encoding: chunked\r\n\r\n0x2\r\n{}\r\n0\r\n\r\n",
    "negative chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\n-2\r\n{}\r\n0\r\n\r\n",
    "chunk size too long": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 40 + b"2\r\n{}\r\n0\r\n\r\n",
    "chunk that does not end": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}XX0\r\n\r\n",
    "chunk extension with a bare LF": POST + b"Transfer-Encoding: chunked\r\n\r\n2;\nxx\r\n{}\r\n0\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /livez HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
}


@pytest.mark.parametrize("sent", AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
async def test_T18_a_request_that_can_be_read_in_two_ways_is_refused_and_ends_its_connection(twin, sent):
    async with connected(twin) as connection:
        await connection.send(sent + HIDDEN)
        said = await connection.until_end()
        assert re.findall(rb"HTTP/1\.1 (\d+)", said) in ([b"400"], [b"501"])
        assert b"live" not in said


async def test_T18_what_follows_a_refused_body_is_not_taken_for_a_request(twin):
    """An answer that comes before its request has been read ends the connection, whatever the rest looks like."""
    headers = {"content-length": str(len(HIDDEN) + 5)}
    async with connected(twin) as connection:
        await connection.send(head_bytes("POST", PUSH, headers=headers) + HIDDEN)
        said = await connection.until_end()
        assert re.findall(rb"HTTP/1\.1 (\d+)", said) == [b"401"]


async def test_T18_the_body_of_a_get_is_not_a_request(twin):
    async with connected(twin) as connection:
        headers = {"content-length": str(len(HIDDEN))}
        await connection.send(head_bytes("GET", "/livez", headers=headers) + HIDDEN)
        assert (await connection.answer()).value == {"status": "live"}
        await connection.send(request_bytes("GET", "/nowhere"))
        assert (await connection.answer()).status == 404


KEEPING = {"forget_held"}
"""What the daemon asks on its own account."""


async def test_T17_nothing_is_looked_up_for_a_push_of_nobody_and_nothing_written_for_one_without_right(tmp_path):
    index = CountingIndex()
    async with serving(index, MemoryStore(), tmp_path) as server:
        await server.make_repository()
        body = two_commits().frames()
        for token, expected in ((None, set()), ("bob", {"find_access"})):
            index.asked.clear()
            assert (await push(server, body, token=token))["type"] == "status"
            assert index.asked.keys() - KEEPING == expected
        index.asked.clear()
        answer = await ask(server, "POST", PUSH, headers={"authorization": "Bearer unknown"}, body=body)
        assert (answer.status, index.asked["find_access"], index.asked.keys() - KEEPING) == (401, 1, {"find_access"})
        assert server.services.store.statistics().puts == 0
        assert not (tmp_path / "data" / "spool").exists()


GARBAGE = {"body": b"\xc1" * 1000, "headers": {"content-type": "application/x-msgpack"}}


@pytest.mark.parametrize(("method", "target"), [
    ("POST", "/alice/x/fetch"), ("POST", "/alice/x/fetch/mpack"), ("POST", "/alice/x/negotiate"),
    ("PATCH", "/api/repos/alice/x"), ("PUT", "/api/repos/alice/x/collaborators/%20"), ("POST", "/api/repos"),
    ("POST", PUSH),
])  # fmt: skip
async def test_T17_a_body_means_nothing_before_the_right_is_known(twin, method, target):
    await twin.make_repository()
    for token, statuses in ((None, {401, 404}), ("bob", {404, 422} if target == "/api/repos" else {404})):
        answer = await ask(twin, method, target, token=token, **GARBAGE)
        assert answer.status in statuses, answer
    assert (await ask(twin, method, target, token="alice", **GARBAGE)).status in {415, 422}


async def test_T16_a_store_that_hangs_stops_its_clients_instead_of_filling_memory(tmp_path):
    store = GatedStore()
    async with serving(MemoryIndex(), store, tmp_path) as server:
        await server.make_repository()
        content = bytes(MIB)
        sent = 0

        async def flood() -> None:
            nonlocal sent
            async with await server.connect() as stream:
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
                headers = {"transfer-encoding": "chunked"}
                await stream.send_all(head_bytes("POST", PUSH, token="alice", headers=headers))
                header = frame("H", version=2, branch="main", head=blob_id(b"any"), force=False)
                await stream.send_all(b"%x\r\n%b\r\n" % (len(header), header))
                for number in range(64):
                    piece = frame(
                        "O", object_id=blob_id(content[8:] + b"%08d" % number), encoding="raw",
                        content=content[8:] + b"%08d" % number,
                    )  # fmt: skip
                    await stream.send_all(b"%x\r\n%b\r\n" % (len(piece), piece))
                    sent += len(piece)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            with trio.fail_after(PATIENCE_S):
                await store.waiting.wait()
                before = -1
                while sent != before:
                    before = sent
                    await wait_all_tasks_blocked(0.05)
            assert sent < 24 * MIB
            assert (await ask(server, "GET", "/alice/x/refs", token="alice")).status == 200  # others are served
            nursery.cancel_scope.cancel()
        store.gate.set()


async def test_T16_pushes_that_stall_in_the_middle_hold_up_nobody_else(tmp_path):
    async with serving(MemoryIndex(), MemoryStore(), tmp_path) as server:
        await server.make_repository(slug="stalled")
        stalled = two_commits()
        started = stalled.header() + next(iter(stalled.object_frames()))
        async with trio.open_nursery() as nursery:
            ready: list[int] = []

            async def stall() -> None:
                async with connected(server) as connection:
                    headers = {"transfer-encoding": "chunked"}
                    target = "/alice/stalled/push/stream"
                    await connection.send(head_bytes("POST", target, token="alice", headers=headers))
                    await connection.send_chunk(started + b"\x84\xa4type")
                    await connection.begin_answer("POST")
                    ready.append(1)
                    await trio.sleep_forever()

            for _ in range(48):
                nursery.start_soon(stall)
            with trio.fail_after(PATIENCE_S):
                while len(ready) < 48:
                    await wait_all_tasks_blocked(0.005)
            history = await with_history(server)
            assert (await clone(server, history.head)).blobs == history.blobs
            nursery.cancel_scope.cancel()
        assert await server.services.supervisor.drain(PATIENCE_S)


class StuckReads(WrappedStore):
    """A store whose reads hang while it is told to."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.stuck = False
        self.waiting = 0
        self.most = 0

    async def get_ranges(self, ranges):
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        try:
            while self.stuck:
                await wait_all_tasks_blocked(0.005)
            return await super().get_ranges(ranges)
        finally:
            self.waiting -= 1


async def test_T16_only_so_many_fetches_are_assembled_at_once_and_small_requests_pass_them_by(tmp_path):
    store = StuckReads()
    async with serving(MemoryIndex(), store, tmp_path, limits__content_cache_object_bytes=0) as server:
        history = await with_history(server)
        answers = []

        async def one(number: int) -> None:  # the same request would be made once for all
            answers.append((await fetch(server, [history.head], [f"sha256:{number:064x}"])).status)

        store.stuck = True
        async with trio.open_nursery() as nursery:
            for number in range(assemble.FETCHES_AT_ONCE * 3):
                nursery.start_soon(one, number)
            with trio.fail_after(PATIENCE_S):
                while store.waiting < assemble.FETCHES_AT_ONCE:
                    await trio.lowlevel.checkpoint()
            for target in ("/livez", "/alice/x/refs"):
                assert (await ask(server, "GET", target, token="alice")).status == 200
            store.stuck = False
        assert answers == [200] * assemble.FETCHES_AT_ONCE * 3
        assert store.most == assemble.FETCHES_AT_ONCE


async def test_T15_chunks_of_a_byte_do_not_keep_a_slow_push_alive(tmp_path):
    """Not the bytes on the line count but those of the body, whatever the framing around each costs."""
    settings = {"server__body_grace_s": 0.3, "server__body_bytes_per_s": 64 * 1024, "server__body_idle_s": 60.0}
    async with serving(MemoryIndex(), MemoryStore(), tmp_path, **settings) as server:
        await server.make_repository()
        history = Push()
        history.commit({"f": b"x" * 100_000})
        body = history.frames()
        async with connected(server) as connection:
            headers = {"transfer-encoding": "chunked"}
            await connection.send(head_bytes("POST", PUSH, token="alice", headers=headers))
            await connection.send_chunk(history.header())
            said = bytearray()
            ended = trio.Event()

            async def read() -> None:
                said.extend(await connection.until_end())
                ended.set()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                with trio.fail_after(PATIENCE_S):
                    for byte in body[len(history.header()) :]:
                        if ended.is_set():
                            break
                        piece = b"1;%s\r\n%c\r\n" % (b"x" * 200, byte)  # two hundred bytes of framing for one
                        try:
                            await connection.stream.send_all(piece)
                        except trio.BrokenResourceError:
                            break
                        with trio.move_on_after(0.002):
                            await ended.wait()
                    await ended.wait()
            assert b"request_timeout" in said
