"""The client's own HTTP: connections that are kept, closed, secured, answered early or not at all; URLs; start-up."""

from __future__ import annotations

import datetime as dt
import ipaddress
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from museworkd.client import connection as module
from museworkd.client import uploading
from museworkd.client.connection import Connection, Target
from museworkd.client.errors import ClientError, IntegrityError, TransferError
from museworkd.client.progress import Quiet
from museworkd.client.transport import Api, Remote
from museworkd.client.uploading import FileSource, Uploader
from tests.scripted import scripted
from tests.servers import clean_environment

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"
Answerer = Callable[[trio.abc.Stream, int], Awaitable[None]]


@asynccontextmanager
async def answering(answer: Answerer, context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[int]]]:
    """Serve connections with a function that gets a stream and its number; gives the URL and the numbers so far."""
    seen: list[int] = []

    async def serve(stream: trio.abc.Stream) -> None:
        seen.append(len(seen))
        if context is not None:
            stream = trio.SSLStream(stream, context, server_side=True)
        try:
            await answer(stream, seen[-1])
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        scheme = "http" if context is None else "https"
        yield f"{scheme}://127.0.0.1:{listeners[0].socket.getsockname()[1]}", seen
        nursery.cancel_scope.cancel()


async def head_of(stream: trio.abc.Stream) -> bytes:
    """Read one request that has no body."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        piece = await stream.receive_some()
        if not piece:
            return data
        data += piece
    return data


async def got(url: str, times: int = 1) -> list[object]:
    async with Api(Remote(f"{url}/a/b", None)) as api:
        return [await api.get("refs") for _ in range(times)]


async def upload(url: str, path: Path) -> None:
    async with Uploader("a/b", resuming=False) as uploader:
        with Quiet().phase("x") as phase:
            await uploader.upload(url, FileSource(path, path.stat().st_size), phase)


async def test_requests_share_a_connection():
    async def answer(stream: trio.abc.Stream, _: int) -> None:
        while await head_of(stream):
            await stream.send_all(OK)

    async with answering(answer) as (url, seen):
        assert await got(url, 3) == [{}, {}, {}]
    assert seen == [0]


@pytest.mark.parametrize("waits", [True, False])
async def test_a_connection_the_server_has_closed_is_opened_anew(monkeypatch, waits):
    """Whether the end was seen before the next request, or came while that was on its way."""
    monkeypatch.setattr(module, "_LOOKED_AT_S", 0 if waits else 60)

    async def answer(stream: trio.abc.Stream, _: int) -> None:
        await head_of(stream)
        await stream.send_all(OK)

    async with answering(answer) as (url, seen), Api(Remote(f"{url}/a/b", None)) as api:
        assert await api.get("refs") == {}
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert await api.get("refs") == {}
    assert seen == [0, 1]


async def test_a_post_whose_answer_is_lost_is_not_sent_twice():
    async def answer(stream: trio.abc.Stream, _: int) -> None:
        await head_of(stream)
        await stream.send_all(OK)
        await stream.receive_some()  # and it is gone

    async with answering(answer) as (url, seen), Api(Remote(f"{url}/a/b", None)) as api:
        await api.get("refs")
        with pytest.raises(TransferError, match="without an answer"):
            await api.post("push/unpack-mpack", {})
        assert seen == [0]


async def test_a_silent_server_is_given_up(monkeypatch):
    monkeypatch.setattr(module, "QUIET_S", 0.05)

    async def answer(stream: trio.abc.Stream, _: int) -> None:
        await head_of(stream)
        await head_of(stream)

    async with answering(answer) as (url, seen):
        with pytest.raises(TransferError, match="nothing was heard"):
            await got(url)
    assert seen == [0]


@pytest.mark.parametrize("data", [b"", OK[:-1], b"nonsense\r\n\r\n", b"HTTP/1.1 2"])
async def test_half_an_answer_is_none(data):
    async def answer(stream: trio.abc.Stream, _: int) -> None:
        await head_of(stream)
        await stream.send_all(data)

    async with answering(answer) as (url, _):
        with pytest.raises(TransferError):
            await got(url)


async def test_interim_answers_are_passed_over():
    async def answer(stream: trio.abc.Stream, _: int) -> None:
        await head_of(stream)
        await stream.send_all(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)

    async with answering(answer) as (url, _):
        assert await got(url) == [{}]


async def test_an_upload_that_is_not_wanted_hears_why(tmp_path):
    (tmp_path / "file").write_bytes(bytes(8_000_000))
    body = b'{"error": "quota_exceeded", "detail": "no room", "retryable": false}'

    async def answer(stream: trio.abc.Stream, _: int) -> None:
        await stream.receive_some()
        head = b"HTTP/1.1 413 No\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        await stream.send_all(head % len(body) + body)
        await stream.send_eof()
        while await stream.receive_some(65536):
            pass

    async with answering(answer) as (url, _):
        with pytest.raises(ClientError) as refused:
            await upload(f"{url}/x", tmp_path / "file")
    assert refused.value.code == "quota_exceeded"


async def test_what_is_sent_after_an_early_answer_is_lost_in_order():
    async def answer(stream: trio.abc.Stream, _: int) -> None:
        await stream.receive_some()
        await stream.send_all(OK)
        while await stream.receive_some(65536):
            pass

    async with answering(answer) as (url, _), Connection(Target.of(url)) as connection:
        await connection.begin("POST", "/", {"transfer-encoding": "chunked"})
        await connection.send(b"some")
        await connection.response()
        assert await connection.receive_all() == b"{}"
        with pytest.raises(TransferError, match="closed while sending"):
            await connection.send(b"more")


@pytest.mark.parametrize("status", [429, 502, 503, 504])
async def test_an_upload_that_has_to_wait_waits_as_long_as_it_is_told(tmp_path, monkeypatch, status):
    paused: list[float] = []

    async def pause(seconds: float) -> None:
        paused.append(seconds)

    monkeypatch.setattr(uploading.trio, "sleep", pause)
    (tmp_path / "file").write_bytes(b"content")
    async with scripted() as server:
        server.say(b"<Error>SlowDown</Error>", status, retry_after="3")
        server.say(b"", status, retry_after="Sat, 21 Nov 2026 15:04:26 GMT")
        server.say(b"", status, retry_after="86400")
        server.say(b"", 204)
        await upload(f"{server.url}/x", tmp_path / "file")
    assert paused == [3, 1, 60]
    assert len(server.heads) == 4


def certificate(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A certificate of a server at 127.0.0.1 that nobody else trusts."""
    key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a test")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(1).not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    path = tmp_path / "certificate.pem"
    path.write_bytes(made.public_bytes(pem))
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (tmp_path / "key.pem").write_bytes(private)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path, tmp_path / "key.pem")
    return context, path


@pytest.fixture
def _fresh_trust():
    module._tls.cache_clear()
    yield
    module._tls.cache_clear()


@pytest.mark.usefixtures("_fresh_trust")
@pytest.mark.parametrize("trusted", [True, False])
async def test_a_secured_connection_is_to_a_server_that_is_trusted(tmp_path, monkeypatch, trusted):
    context, path = certificate(tmp_path)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(path))

    async def answer(stream: trio.abc.Stream, _: int) -> None:
        while await head_of(stream):
            await stream.send_all(OK)

    async with answering(answer, context) as (url, seen):
        if trusted:
            assert await got(url, 2) == [{}, {}]
        else:
            with pytest.raises(TransferError, match=r"cannot reach .*certificate"):
                await got(url)
    assert seen == [0]


@pytest.mark.parametrize(
    ("url", "host", "port", "authority", "path"),
    [
        ("http://h/a/b", "h", 80, "h", "/a/b"),
        ("https://h:8443/a?x=1&y=%20", "h", 8443, "h:8443", "/a?x=1&y=%20"),
        ("https://H.example/a b/ü", "h.example", 443, "h.example", "/a%20b/%C3%BC"),
        ("http://[::1]:80/a", "::1", 80, "[::1]:80", "/a"),
        ("http://bücher.example", "xn--bcher-kva.example", 80, "xn--bcher-kva.example", "/"),
        ("http://h/a?q='\"<>", "h", 80, "h", "/a?q='%22%3C%3E"),
    ],
)
def test_a_url_is_taken_apart(url, host, port, authority, path):
    target = Target.of(url)
    assert (target.host, target.port, target.authority, target.path) == (host, port, authority, path)


@pytest.mark.parametrize(
    "url", ["", "/a", "ftp://h/a", "http://", "http://h:0/", "http://h:99999/", "http://[::1/", "h"]
)
def test_what_a_server_calls_a_url_and_is_none_is_told(url):
    with pytest.raises(IntegrityError, match="URL that is none"):
        Target.named_by_server(url)


async def test_a_closed_connection_can_be_used_again():
    async def answer(stream: trio.abc.Stream, _: int) -> None:
        await head_of(stream)
        await stream.send_all(OK)

    async with answering(answer) as (url, seen), Connection(Target.of(url)) as connection:
        for _ in range(2):
            await connection.ask("GET", "/", {})
            assert await connection.receive_all() == b"{}"
            await connection.aclose()
    assert seen == [0, 1]


def test_a_users_command_does_not_load_the_server():
    """A push of one commit takes as long as it takes to begin."""
    code = (
        "import sys, museworkd.cli.main as m\n"
        "for name in ('push', 'clone', 'fetch', 'verify', 'git-import'): m.main.get_command(None, name)\n"
        "import museworkd.client.push, museworkd.client.progress, museworkd.client.repository\n"
        "import museworkd.client.fetch, museworkd.client.checkout\n"
        "slow = {'quart', 'hypercorn', 'psycopg', 'psycopg_pool', 'structlog', 'httpx', 'rich', 'cryptography',"
        " 'storage.index', 'storage.rows'}\n"
        "print(*sorted(slow & set(sys.modules)), *(n for n in sys.modules if n.startswith('museworkd.http')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=clean_environment(), timeout=60, check=True
    )
    assert done.stdout == "\n"
