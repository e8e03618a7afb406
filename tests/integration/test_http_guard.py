"""Inputs that end or clog a stock server, each a test of its own.

After each one the server must answer a new connection, have logged no error, and hold no connection, task or
descriptor of the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio
from h2.config import H2Configuration
from h2.connection import H2Connection

from museworkd.http import guard
from storage.memory.index import MemoryIndex
from storage.rows import Repository
from tests.http_client import PATIENCE_S, ask, connected, head_bytes, request_bytes
from tests.muse import last_frame
from tests.surviving import MIB, PUSH, StreamingStore, closed_with, logged, push_blob, settled, small_push, surviving

pytestmark = pytest.mark.usefixtures("expected_errors")


HTTP2_BASE = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a")]
HTTP2_POST = [(b":method", b"POST"), *HTTP2_BASE[1:]]


def http2(*steps: Callable[[H2Connection], object] | bytes) -> bytes:
    """Write what a client with prior knowledge of HTTP/2 sends, however odd."""
    config = H2Configuration(
        client_side=True, header_encoding=None, validate_outbound_headers=False, normalize_outbound_headers=False
    )
    client = H2Connection(config)
    client.initiate_connection()
    sent = client.data_to_send()
    for step in steps:
        if isinstance(step, bytes):
            sent += step
        else:
            step(client)
            sent += client.data_to_send()
    return sent


def http2_request(headers: list[tuple[bytes, bytes]], stream: int = 1, ends: bool = True) -> Callable:
    return lambda client: client.send_headers(stream, headers, end_stream=ends)


async def refused_as_http2(tmp_path: Path, sent: bytes) -> None:
    async with surviving(tmp_path) as server, connected(server) as connection:
        with suppress(trio.BrokenResourceError):  # it may be closed before everything is sent
            await connection.send(sent)
        said = await connection.until_end()
        assert said.startswith(b"HTTP/1.1 505 ")
        assert said.count(b"HTTP/1.1") == 1


async def test_http2_with_a_path_that_is_not_ascii_is_refused(tmp_path):
    await refused_as_http2(tmp_path, http2(http2_request([*HTTP2_BASE, (b":path", b"/\xff")])))


async def test_http2_with_a_method_that_is_not_ascii_is_refused(tmp_path):
    headers = [(b":method", b"G\xffT"), *HTTP2_BASE[1:], (b":path", b"/livez")]
    await refused_as_http2(tmp_path, http2(http2_request(headers)))


async def test_http2_without_a_path_is_refused(tmp_path):
    await refused_as_http2(tmp_path, http2(http2_request(HTTP2_BASE)))


async def test_http2_with_an_empty_path_is_refused(tmp_path):
    await refused_as_http2(tmp_path, http2(http2_request([*HTTP2_BASE, (b":path", b"")])))


async def test_http2_with_a_header_that_is_not_latin_is_refused(tmp_path):
    headers = [*HTTP2_BASE, (b":path", b"/livez"), (b"x-a", b"\xff\xfe")]
    await refused_as_http2(tmp_path, http2(http2_request(headers)))


async def test_http2_connect_without_protocol_is_refused(tmp_path):
    headers = [(b":method", b"CONNECT"), (b":authority", b"a")]
    await refused_as_http2(tmp_path, http2(http2_request(headers)))


async def test_http2_connect_for_a_websocket_is_refused(tmp_path):
    headers = [
        (b":method", b"CONNECT"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/"),
        (b":protocol", b"websocket"),
    ]  # fmt: skip
    await refused_as_http2(tmp_path, http2(http2_request(headers)))


async def test_http2_rapid_reset_is_refused(tmp_path):
    def reset(stream: int) -> Callable:
        def step(client: H2Connection) -> None:
            client.send_headers(stream, [*HTTP2_BASE, (b":path", b"/livez")], end_stream=True)
            client.reset_stream(stream, 8)

        return step

    await refused_as_http2(tmp_path, http2(*(reset(1 + 2 * number) for number in range(300))))


async def test_http2_data_after_a_reset_of_the_clients_own_is_refused(tmp_path):
    def upload_and_reset(client: H2Connection) -> None:
        client.send_headers(1, [*HTTP2_POST, (b":path", PUSH.encode())])
        client.send_data(1, b"abc")
        client.reset_stream(1, 8)

    await refused_as_http2(tmp_path, http2(upload_and_reset, b"\x00\x00\x03\x00\x00\x00\x00\x00\x01abc"))


async def test_http2_window_update_on_a_closed_stream_is_refused(tmp_path):
    update = b"\x00\x00\x04\x08\x00\x00\x00\x00\x01\x00\x00\x10\x00"
    await refused_as_http2(tmp_path, http2(http2_request([*HTTP2_BASE, (b":path", b"/livez")]), update))


async def test_http2_request_trailers_are_refused(tmp_path):
    def with_trailers(client: H2Connection) -> None:
        client.send_headers(1, [*HTTP2_POST, (b":path", PUSH.encode())])
        client.send_data(1, b"abc")
        client.send_headers(1, [(b"x-trailer", b"1")], end_stream=True)

    await refused_as_http2(tmp_path, http2(with_trailers))


async def test_http2_priority_is_refused(tmp_path):
    def with_priority(client: H2Connection) -> None:
        client.prioritize(5, depends_on=1, weight=3)
        headers = [*HTTP2_BASE, (b":path", b"/livez")]
        client.send_headers(1, headers, end_stream=True, priority_weight=5, priority_depends_on=0)

    await refused_as_http2(tmp_path, http2(with_priority))


async def test_http2_priority_on_an_unknown_parent_is_refused(tmp_path):
    first = b"\x00\x00\x05\x02\x00\x00\x00\x00\x03\x00\x00\x00\x07\x10"
    second = b"\x00\x00\x05\x02\x00\x00\x00\x00\x03\x00\x00\x00\x09\x10"
    await refused_as_http2(tmp_path, http2(first, second))


async def test_http2_preface_followed_by_garbage_is_refused(tmp_path):
    await refused_as_http2(tmp_path, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 100)


async def answered_with(tmp_path: Path, status: int, sent: bytes) -> None:
    """Expect one answer, after which the connection goes on."""
    async with surviving(tmp_path) as server, connected(server) as connection:
        await connection.send(sent)
        answer = await connection.answer()
        assert (answer.status, answer.complete) == (status, True)
        assert (await connection.ask("GET", "/livez")).status == 200


async def test_a_target_that_is_not_ascii_is_refused(tmp_path):
    await closed_with(tmp_path, 400, b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n")


async def test_a_percent_encoded_path_that_is_not_utf8_is_refused(tmp_path):
    await answered_with(tmp_path, 422, b"GET /%ff%fe HTTP/1.1\r\nHost: a\r\n\r\n")


async def test_a_path_with_a_nul_is_refused(tmp_path):
    await answered_with(tmp_path, 422, b"GET /alice/x%00/refs HTTP/1.1\r\nHost: a\r\n\r\n")


@pytest.mark.parametrize("target", ["?livez", "*", "livez", "http:/livez", "file:///livez"])
async def test_a_target_that_is_no_path_is_refused(tmp_path, target):
    await closed_with(tmp_path, 400, f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())


@pytest.mark.parametrize("target", ["http://a/livez", "HTTPS://[::1]:80/livez?x", "http://[/livez", "http:///livez"])
async def test_a_target_that_is_a_whole_url_names_its_path(tmp_path, target):
    await answered_with(tmp_path, 200, f"GET {target} HTTP/1.1\r\nHost: a\r\n\r\n".encode())


async def test_connect_is_refused(tmp_path):
    await closed_with(tmp_path, 405, b"CONNECT a:443 HTTP/1.1\r\nHost: a\r\n\r\n")


async def test_a_websocket_upgrade_with_a_trailing_byte_is_an_ordinary_request(tmp_path):
    upgrade = (
        b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: bKdPyn3u98cTfZJSh4TNeQ==\r\n\r\n"
    )
    async with surviving(tmp_path) as server, connected(server) as connection:
        await connection.send(upgrade + b"G")
        assert (await connection.answer()).status == 200
        await connection.send(b"ET /livez HTTP/1.1\r\nHost: a\r\n\r\n")  # the byte begins the next request
        assert (await connection.answer()).status == 200


async def test_an_h2c_upgrade_with_bogus_settings_is_an_ordinary_request(tmp_path):
    await answered_with(
        tmp_path, 200,
        b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: !!!!\r\n\r\n",
    )  # fmt: skip


async def test_an_h2c_upgrade_without_settings_is_an_ordinary_request(tmp_path):
    sent = b"GET /livez HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    await answered_with(tmp_path, 200, sent)


async def test_a_tls_handshake_is_refused(tmp_path):
    await closed_with(tmp_path, 400, b"\x16\x03\x01\x02\x00" + b"\x00" * 200 + b"\r\n\r\n")


async def test_three_pipelined_requests_are_answered_in_order(tmp_path):
    async with surviving(tmp_path) as server, connected(server) as connection:
        targets = ["/livez", "/alice/nothing/refs", "/readyz"]
        await connection.send(b"".join(request_bytes("GET", target) for target in targets))
        assert [(await connection.answer()).status for _ in targets] == [200, 404, 200]
        assert server.http.statistics().accepted == 1


async def test_a_pipelined_post_and_get_are_both_answered(tmp_path):
    async with surviving(tmp_path) as server, connected(server) as connection:
        first = request_bytes("POST", "/alice/x/negotiate", token="alice", json={"want": []})
        await connection.send(first + request_bytes("GET", "/livez"))
        assert (await connection.answer()).value == {"ack": [], "common_base": None, "ready": True}
        assert (await connection.answer()).value == {"status": "live"}


async def test_a_half_close_after_a_whole_post_still_gets_its_answer(tmp_path):
    async with surviving(tmp_path) as server, connected(server) as connection:
        await connection.send(request_bytes("POST", PUSH, token="alice", body=small_push().frames()))
        await connection.send_eof()
        answer = await connection.answer()
        assert answer.complete
        assert last_frame(answer.body)["type"] == "R"
        assert await connection.until_end() == b""


async def test_a_half_close_after_a_get_still_gets_its_answer_and_ends_the_connection_at_once(tmp_path):
    async with surviving(tmp_path, server__idle_s=PATIENCE_S * 2) as server, connected(server) as connection:
        await connection.send(request_bytes("GET", "/livez") * 2)
        await connection.send_eof()
        assert [(await connection.answer()).status for _ in range(2)] == [200, 200]
        assert await connection.until_end() == b""


async def test_a_bad_chunk_is_refused(tmp_path):
    head = head_bytes("POST", "/alice/x/negotiate", token="alice", headers={"transfer-encoding": "chunked"})
    await closed_with(tmp_path, 400, head + b"zz\r\nabc")


async def test_T18_a_length_beside_a_chunked_body_does_not_smuggle_a_request(tmp_path):
    headers = {"transfer-encoding": "chunked", "content-length": "3", "content-type": "application/json"}
    head = head_bytes("POST", "/alice/x/negotiate", token="alice", headers=headers)
    await closed_with(tmp_path, 400, head + b'b\r\n{"want":[]}\r\n0\r\n\r\n' + request_bytes("GET", "/livez"))


async def test_bytes_after_a_request_that_closes_the_connection_are_no_request(tmp_path):
    headers = {"connection": "close"}
    sent = request_bytes("POST", PUSH, token="alice", headers=headers, body=small_push().frames())
    async with surviving(tmp_path) as server, connected(server) as connection:
        await connection.send(sent + request_bytes("GET", "/livez"))
        said = await connection.until_end()
        assert said.count(b"HTTP/1.1") <= 1


async def test_expect_100_continue_is_answered_before_the_body_comes(tmp_path):
    headers = {"expect": "100-continue", "content-length": "11", "content-type": "application/json"}
    async with surviving(tmp_path) as server, connected(server) as connection:
        await connection.send(head_bytes("POST", "/alice/x/negotiate", token="alice", headers=headers))
        assert await connection.interim() == 100
        await connection.send(b'{"want":[]}')
        assert (await connection.answer()).status == 200


class BrokenIndex(MemoryIndex):
    async def find_repository(self, owner: str, slug: str) -> Repository | None:
        if slug == "broken":
            raise RuntimeError("a secret of the server")
        return await super().find_repository(owner, slug)


@pytest.mark.parametrize("target", ["/alice/broken/refs", f"/alice/broken/o/{'0' * 64}"])
async def test_an_exception_in_the_application_ends_only_its_request(tmp_path, logs, expected_errors, target):
    async with surviving(tmp_path, BrokenIndex()) as server, connected(server) as connection:
        answer = await connection.ask("GET", target, token="alice")
        assert (answer.status, answer.error) == (500, "internal")
        assert answer.value["retryable"] is True
        assert b"secret" not in answer.body
        assert (await connection.ask("GET", "/livez")).status == 200  # the same connection goes on
        expected_errors += logged(logs, "request failed")
        assert [entry["request_id"] for entry in expected_errors] == [answer.value["request_id"]]


async def test_an_answer_that_fails_half_way_is_cut_and_not_ended(tmp_path):
    store = StreamingStore()
    async with surviving(tmp_path, store=store) as server:
        target = await push_blob(server, bytes(9 * MIB))
        assert (await ask(server, "GET", target, token="alice")).complete  # proved: it need not be read ahead again
        store.breaks = True
        answer = await ask(server, "GET", target, token="alice")
        assert (answer.status, answer.complete) == (200, False)
        assert len(answer.body) < 9 * MIB


async def test_an_error_inside_a_connection_ends_that_connection_only(tmp_path, logs, expected_errors, monkeypatch):
    create = guard._Http1Protocol._create_stream

    async def create_or_fail(self: guard._Http1Protocol, request: object) -> None:
        if request.target == b"/fail":
            raise RuntimeError("a bug below the application")
        await create(self, request)

    monkeypatch.setattr(guard._Http1Protocol, "_create_stream", create_or_fail)
    async with surviving(tmp_path) as server, connected(server) as other, connected(server) as connection:
        assert (await other.ask("GET", "/livez")).status == 200
        await connection.send(request_bytes("GET", "/fail"))
        assert await connection.until_end() == b""
        assert (await other.ask("GET", "/livez")).status == 200
        expected_errors += logged(logs, "connection ended by an error")
        assert len(expected_errors) == 1


@pytest.mark.parametrize(("target", "status", "code"), [
    (PUSH, 401, "unauthenticated"),
    ("/alice/nothing/push/stream", 404, "not_found"),
])  # fmt: skip
async def test_an_early_answer_reaches_a_client_that_sends_50_mb_before_it_reads(tmp_path, target, status, code):
    token = None if status == 401 else "alice"
    async with surviving(tmp_path) as server, connected(server) as connection:
        await connection.send(head_bytes("POST", target, token=token, headers={"transfer-encoding": "chunked"}))
        piece = bytes(MIB)
        for _ in range(50):
            await connection.send_chunk(piece)
        await connection.send_chunk(b"")
        answer = await connection.answer("POST")
        assert (answer.status, answer.error, answer.complete) == (status, code, True)
        assert await connection.until_end() == b""


@pytest.mark.parametrize(("target", "status", "code"), [
    (PUSH, 401, "unauthenticated"),
    ("/alice/nothing/push/stream", 404, "not_found"),
])  # fmt: skip
async def test_an_early_answer_reaches_a_client_that_reads_at_once(tmp_path, target, status, code):
    token = None if status == 401 else "alice"
    async with surviving(tmp_path) as server, connected(server) as connection:
        await connection.send(head_bytes("POST", target, token=token, headers={"transfer-encoding": "chunked"}))
        await connection.send_chunk(bytes(MIB))
        answer = await connection.answer("POST")  # while most of the body is still to come
        assert (answer.status, answer.error, answer.complete) == (status, code, True)
        for _ in range(49):
            await connection.send_chunk(bytes(MIB))  # taken and dropped, not reset
        await connection.send_eof()
        assert await connection.until_end() == b""


async def test_200_early_answers_leave_nothing_behind(tmp_path):
    body = bytes(2 * MIB)
    async with surviving(tmp_path) as server:
        for number in range(200):
            async with connected(server) as connection:
                token = "alice" if number % 2 else None
                slug = "x" if number % 4 else "nothing"
                length = {"content-length": str(8 * MIB)}
                await connection.send(head_bytes("POST", f"/alice/{slug}/push/stream", token=token, headers=length))
                if number % 3:  # otherwise it goes away without reading the answer
                    await connection.send(body)
                    if token is None or slug == "nothing":
                        assert (await connection.answer("POST")).status in {401, 404}
        assert server.http.statistics().accepted == 200


async def test_reading_on_after_an_early_answer_ends_after_a_while(tmp_path):
    async with surviving(tmp_path, server__linger_s=0.2) as server, connected(server) as connection:
        await connection.send(head_bytes("POST", PUSH, headers={"transfer-encoding": "chunked"}))
        assert (await connection.answer("POST")).status == 401
        await settled(server)  # although this end neither sends nor closes


async def test_reading_on_after_an_early_answer_ends_after_so_many_bytes(tmp_path):
    async with surviving(tmp_path, server__linger_bytes=MIB) as server, connected(server) as connection:
        await connection.send(head_bytes("POST", PUSH, headers={"transfer-encoding": "chunked"}))
        assert (await connection.answer("POST")).status == 401
        with pytest.raises(trio.BrokenResourceError):
            await connection.send(bytes(64 * MIB))
