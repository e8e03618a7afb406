"""The life of a connection: kept, counted, waited for, dropped when its client is too slow, and ended by a stop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from storage.memory.index import MemoryIndex
from storage.object_store import ObjectStore
from storage.objects.faulty import Fault, FaultyStore
from storage.objects.memory import MemoryStore
from tests.http_client import PATIENCE_S, AnswerCutError, Connection, ask, connected, head_bytes, request_bytes
from tests.muse import Push, last_frame
from tests.servers import Server, serving
from tests.surviving import (
    MIB,
    PUSH,
    GatedStore,
    StreamingStore,
    closed_with,
    push_blob,
    settled,
    small_push,
    surviving,
)

pytestmark = pytest.mark.usefixtures("expected_errors")


async def test_a_connection_is_kept_for_many_requests(tmp_path):
    async with surviving(tmp_path) as server, connected(server) as connection:
        for _ in range(20):
            assert (await connection.ask("GET", "/livez")).status == 200
        assert (await connection.ask("HEAD", "/livez")).body == b""
        assert (await connection.ask("GET", "/alice/x/refs", token="alice")).status == 200
        assert server.http.statistics().accepted == 1


async def test_a_connection_that_the_client_closes_is_given_up_at_once(tmp_path):
    async with surviving(tmp_path, server__idle_s=PATIENCE_S * 2) as server:
        for _ in range(50):  # a client with one connection for each request
            assert (await ask(server, "GET", "/livez")).status == 200
        await settled(server)


async def test_a_request_of_http_1_0_is_answered_and_the_connection_closed(tmp_path):
    await closed_with(tmp_path, 200, b"GET /livez HTTP/1.0\r\n\r\n")


async def test_connection_close_is_obeyed(tmp_path):
    await closed_with(tmp_path, 200, request_bytes("GET", "/livez", headers={"connection": "close"}))


async def test_a_head_above_the_limit_is_refused_and_one_below_it_is_not(tmp_path):
    async with surviving(tmp_path, server__head_bytes=4096) as server:
        below, above = {"x-filler": "a" * 3500}, {"x-filler": "a" * 500_000}
        assert (await ask(server, "GET", "/livez", headers=below)).status == 200
        async with connected(server) as connection:
            with suppress(trio.BrokenResourceError):
                await connection.send(request_bytes("GET", "/livez", headers=above))
            assert (await connection.answer()).status == 431
            assert await connection.until_end() == b""


async def test_a_head_that_never_ends_is_refused(tmp_path):
    async with surviving(tmp_path, server__head_bytes=4096) as server, connected(server) as connection:
        await connection.send(b"GET /livez HTTP/1.1\r\n" + b"x: y\r\n" * 2000)
        assert (await connection.answer()).status == 431


async def test_T16_above_the_connection_limit_a_client_is_told_busy_until_there_is_room(tmp_path):
    async with surviving(tmp_path, server__max_connections=2) as server:
        async with connected(server) as first, connected(server) as second:
            assert (await first.ask("GET", "/livez")).status == 200
            assert (await second.ask("GET", "/livez")).status == 200
            async with connected(server) as third:
                answer = await third.ask("GET", "/livez")
                assert (answer.status, answer.value["error"], answer.value["retryable"]) == (503, "busy", True)
                assert int(answer.headers["retry-after"]) > 0
                assert await third.until_end() == b""
            assert server.http.statistics().refused == 1
            assert (await first.ask("GET", "/livez")).status == 200  # the others did not notice
        await settled(server)
        assert (await ask(server, "GET", "/livez")).status == 200
        assert server.http.statistics().refused == 1


async def test_a_refused_connection_that_stays_open_is_closed(tmp_path):
    async with surviving(tmp_path, server__max_connections=1) as server, connected(server) as first:
        assert (await first.ask("GET", "/livez")).status == 200
        async with connected(server) as second:
            assert b'"busy"' in await second.until_end()  # it never said a word


async def trickle(connection: Connection, piece: bytes, every_s: float = 0.05) -> bytes:
    """Send a piece again and again until the server hangs up; gives what it said."""
    said: list[bytes] = []
    ended = trio.Event()

    async def read() -> None:
        said.append(await connection.until_end())
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        while not ended.is_set():
            with suppress(trio.BrokenResourceError):
                await connection.stream.send_all(piece)
            with trio.move_on_after(every_s):
                await ended.wait()
    return said[0]


async def test_T15_a_connection_that_says_nothing_is_closed(tmp_path):
    async with surviving(tmp_path, server__idle_s=0.2) as server, connected(server) as connection:
        assert await connection.until_end() == b""


async def test_a_kept_connection_is_closed_when_it_idles(tmp_path):
    async with surviving(tmp_path, server__idle_s=0.2) as server, connected(server) as connection:
        assert (await connection.ask("GET", "/livez")).status == 200
        assert await connection.until_end() == b""


async def test_T15_a_head_that_arrives_byte_by_byte_is_not_waited_for(tmp_path):
    async with surviving(tmp_path, server__idle_s=0.4) as server, connected(server) as connection:
        await connection.send(b"GET /livez HTTP/1.1\r\nHost: a\r\nX-Slow: ")
        began = trio.current_time()
        assert await trickle(connection, b"a") == b""
        assert 0.3 < trio.current_time() - began < 10


CHUNKED_JSON = {"transfer-encoding": "chunked", "content-type": "application/json"}


async def test_a_body_of_which_nothing_comes_is_not_waited_for(tmp_path):
    async with surviving(tmp_path, server__body_idle_s=0.2) as server, connected(server) as connection:
        await connection.send(head_bytes("POST", "/alice/x/negotiate", token="alice", headers=CHUNKED_JSON))
        answer = await connection.answer("POST")
        assert (answer.status, answer.error, answer.value["retryable"]) == (408, "request_timeout", True)


async def test_T15_a_body_below_the_minimum_rate_is_not_waited_for_although_it_never_idles(tmp_path):
    settings = {"server__body_grace_s": 0.4, "server__body_bytes_per_s": MIB}
    async with surviving(tmp_path, **settings) as server, connected(server) as connection:
        await connection.send(head_bytes("POST", "/alice/x/negotiate", token="alice", headers=CHUNKED_JSON))
        began = trio.current_time()
        said = await trickle(connection, b"10\r\n                \r\n")
        assert said.startswith(b"HTTP/1.1 408 ")
        assert b"request_timeout" in said
        assert 0.3 < trio.current_time() - began < 10


async def test_a_body_above_the_minimum_rate_is_waited_for_beyond_the_grace(tmp_path):
    settings = {"server__body_grace_s": 0.3, "server__body_bytes_per_s": 100}
    async with surviving(tmp_path, **settings) as server, connected(server) as connection:
        await connection.send(head_bytes("POST", "/alice/x/negotiate", token="alice", headers=CHUNKED_JSON))
        for _ in range(8):
            await connection.send_chunk(b" " * 100)
            assert not await connection.ended_within(0.1)
        await connection.send_chunk(b'{"want": []}')
        await connection.send_chunk(b"")
        assert (await connection.answer("POST")).status == 200


async def test_T15_a_push_whose_body_stalls_is_told_so_in_a_frame(tmp_path):
    push = small_push()
    async with surviving(tmp_path, server__body_idle_s=0.3) as server, connected(server) as connection:
        await connection.send(head_bytes("POST", PUSH, token="alice", headers={"transfer-encoding": "chunked"}))
        await connection.send_chunk(push.header())
        answer = await connection.answer("POST")
        said = last_frame(answer.body)
        assert (answer.status, said["type"], said["error"]) == (200, "X", "request_timeout")


async def test_a_push_of_which_nothing_comes_is_refused_with_a_status(tmp_path):
    async with surviving(tmp_path, server__body_idle_s=0.2) as server, connected(server) as connection:
        await connection.send(head_bytes("POST", PUSH, token="alice", headers={"transfer-encoding": "chunked"}))
        assert (await connection.answer("POST")).error == "request_timeout"


async def test_time_that_the_server_takes_does_not_count_against_a_client(tmp_path):
    store = FaultyStore(MemoryStore(), lambda call: Fault(delay_s=0.3) if call.operation == "put_batch" else None)
    push = Push()
    push.commit({f"file{number}": number.to_bytes(4, "big") * (64 * 1024) for number in range(64)})  # 16 MiB
    settings = {"server__body_idle_s": 0.25, "server__body_grace_s": 0.25, "server__body_bytes_per_s": 1024 * MIB}
    async with surviving(tmp_path, store=store, **settings) as server:
        began = trio.current_time()
        answer = await ask(server, "POST", PUSH, token="alice", body=push.frames())
        assert last_frame(answer.body)["type"] == "R"
        assert trio.current_time() - began > 0.5  # it did wait for its store, longer than for any client


async def test_T15_a_reader_that_does_not_take_a_large_answer_is_dropped(tmp_path):
    async with surviving(tmp_path, store=StreamingStore(), server__send_s=0.3) as server:
        target = await push_blob(server, bytes(32 * MIB))
        await settled(server)
        async with connected(server) as connection:
            await connection.send(request_bytes("GET", target, token="alice"))
            await settled(server, 1)
            await settled(server)  # dropped, without a byte being read here
            answer = await connection.answer()
            assert (answer.status, answer.complete) == (200, False)


async def test_F35_a_slow_reader_that_takes_pieces_in_time_gets_everything(tmp_path):
    content = bytes(range(256)) * (32 * 1024)
    async with surviving(tmp_path, server__send_s=1.0) as server:
        target = await push_blob(server, content)
        async with connected(server) as connection:
            await connection.send(request_bytes("GET", target, token="alice"))
            await connection.begin_answer()
            got = b""
            while piece := await connection.piece():
                got += piece
                await wait_all_tasks_blocked(0.005)
            assert got == content


async def test_an_answer_that_nobody_takes_any_more_is_not_read_from_the_store_to_its_end(tmp_path):
    store = StreamingStore()
    async with surviving(tmp_path, store=store) as server:
        target = await push_blob(server, bytes(64 * MIB))
        assert (await ask(server, "GET", target, token="alice")).complete  # proved: it need not be read ahead again
        streams, store.streamed = store.streams, 0
        async with connected(server) as connection:
            await connection.send(request_bytes("GET", target, token="alice"))
            await connection.begin_answer()
        await settled(server)
        assert store.streams == streams + 1
        assert store.streamed < 32 * MIB


@asynccontextmanager
async def stoppable(tmp_path: Path, store: ObjectStore, **settings: object) -> AsyncIterator[Server]:
    async with serving(MemoryIndex(), store, tmp_path, **settings) as server:
        await server.make_repository()
        yield server


async def gone(server: Server) -> None:
    """Wait until nobody listens any more."""
    with trio.fail_after(PATIENCE_S):
        while True:
            try:
                stream = await server.connect()
            except OSError:
                return
            await stream.aclose()
            await wait_all_tasks_blocked(0.005)


async def test_stopping_takes_no_new_connection_and_closes_idle_ones_at_once(tmp_path):
    async with stoppable(tmp_path, MemoryStore()) as server, connected(server) as idle, connected(server) as silent:
        assert (await idle.ask("GET", "/livez")).status == 200
        await settled(server, 2)
        server.stop.set()
        assert await idle.until_end() == b""
        assert await silent.until_end() == b""
        await gone(server)
        assert server.http.statistics().connections == 0


async def test_stopping_lets_a_running_request_finish(tmp_path):
    store = GatedStore()
    async with stoppable(tmp_path, store) as server, connected(server) as connection:
        await connection.send(request_bytes("POST", PUSH, token="alice", body=small_push().frames()))
        await store.waiting.wait()
        server.stop.set()
        await gone(server)
        store.gate.set()
        answer = await connection.answer("POST")
        assert answer.complete
        assert last_frame(answer.body)["type"] == "R"
        assert await connection.until_end() == b""  # and the connection is not kept


async def test_the_deadline_of_a_stop_cuts_what_still_runs(tmp_path):
    store = GatedStore()
    async with stoppable(tmp_path, store, server__drain_s=0.2) as server, connected(server) as connection:
        await connection.send(request_bytes("POST", PUSH, token="alice", body=small_push().frames()))
        await store.waiting.wait()
        server.stop.set()
        try:
            answer = await connection.answer("POST")
        except AnswerCutError:
            pass
        else:
            assert not answer.complete
        await settled(server)


async def test_a_push_cut_by_the_deadline_of_a_stop_does_not_wait_for_its_client_for_ever(tmp_path):
    async with stoppable(tmp_path, MemoryStore(), server__drain_s=0.2) as server, connected(server) as connection:
        await connection.send(head_bytes("POST", PUSH, token="alice", headers={"transfer-encoding": "chunked"}))
        await connection.send_chunk(small_push().header())
        await connection.begin_answer("POST")
        server.stop.set()
        await connection.until_end()
        assert await server.services.supervisor.drain(PATIENCE_S)
