"""Opening an S3 store: what is relied on is tried out; what is lacking is said, by ``serve`` and ``store check``."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from museworkd.assembly import open_store
from museworkd.cli.config_commands import config_group
from museworkd.cli.store_commands import store_group
from museworkd.config import Config, ConfigError, StoreConfig
from museworkd.s3_opening import checked
from storage.environment import SystemEnvironment
from storage.errors import StoreUnavailable
from storage.objects.check import Outcome
from storage.objects.s3_settings import Addressing, S3Settings
from tests.s3_faults import Asked, Fault, always, faulty_s3, once
from tests.s3_server import S3Server
from tests.s3_stores import make_store, store_config

pytestmark = pytest.mark.usefixtures("expected_errors")
CHECKS = [
    "write", "read after write", "replace", "range", "absent", "checksum", "conditional write", "signed URLs",
    "public address", "copy", "listing", "parts", "delete",
]  # fmt: skip


def config_over(store: StoreConfig, tmp_path: Path) -> Config:
    return Config(data_dir=tmp_path / "data", store=store)


# ---- the checks


async def test_a_sound_service_passes_every_check_and_keeps_nothing_of_it(ceph_server: S3Server) -> None:
    store = make_store(ceph_server, prefix="museworkd")
    findings = await checked(store, SystemEnvironment(), quick=False)
    assert [(finding.name, finding.outcome) for finding in findings] == [(name, Outcome.OK) for name in CHECKS]
    assert all(finding.relied_on_by for finding in findings)
    assert ceph_server.keys(store.settings.bucket) == {}
    quick = await checked(store, SystemEnvironment(), quick=True)
    assert {finding.name for finding in quick} < set(CHECKS)
    assert ceph_server.keys(store.settings.bucket) == {}


def _is(method: str, ends: str = "", query: str | None = None) -> Callable[[Asked], bool]:
    return lambda asked: asked.method == method and asked.key.endswith(ends) and (query is None or query in asked.query)


def _other_size(asked: Asked) -> bool:
    return asked.method == "PUT" and "X-Amz-Signature" in asked.query and asked.headers["content-length"] == "31"


LACKING = {
    "read after write": (_is("GET", "/a"), Fault(refuse=404), Outcome.REFUSED, "not there"),
    "range": (lambda asked: "range" in asked.headers, Fault(flip_answer_at=0), Outcome.REFUSED, "range"),
    "absent": (_is("GET", "/absent"), Fault(refuse=403), Outcome.REFUSED, "right to list"),
    "checksum": (_is("PUT", "/b"), Fault(swallow=True), Outcome.DEGRADED, "does not match its hash"),
    "conditional write": (
        lambda asked: "if-none-match" in asked.headers, Fault(swallow=True), Outcome.DEGRADED, "If-None-Match"
    ),
    "signed URLs": (_other_size, Fault(swallow=True), Outcome.DEGRADED, "another size"),
    "copy": (lambda asked: asked.is_copy, Fault(refuse=403), Outcome.REFUSED, "denied"),
    "listing": (_is("GET", query="list-type"), Fault(swallow=True), Outcome.REFUSED, "not listed"),
    "parts": (_is("POST", "/parts"), Fault(refuse=403), Outcome.REFUSED, "denied"),
    "delete": (_is("POST", query="delete"), Fault(swallow=True), Outcome.REFUSED, "still there"),
    "write": (_is("PUT", "/a"), Fault(refuse=503), Outcome.UNREACHABLE, "503"),
}  # fmt: skip


@pytest.mark.parametrize("name", LACKING)
async def test_what_a_service_lacks_is_found(ceph_server: S3Server, name: str) -> None:
    """Each check fails by the service doing its one thing wrong, and says so; the others are as they were."""
    applies, fault, outcome, said = LACKING[name]
    async with faulty_s3(ceph_server) as proxy:
        proxy.rules = [once(applies, fault) if name == "read after write" else always(applies, fault)]
        findings = await checked(make_store(proxy.as_server), SystemEnvironment(), quick=False)
    found = {finding.name: finding for finding in findings}
    assert found[name].outcome is outcome, findings
    assert said in found[name].detail
    others = {other: finding.outcome for other, finding in found.items() if other != name}
    assert all(other is Outcome.OK for other in others.values()), findings


# ---- opening


async def test_a_service_that_does_not_keep_urls_to_their_size_signs_none(s3_server: S3Server, tmp_path: Path) -> None:
    """The daemon serves URLs of its own then, by which the same holds."""
    async with faulty_s3(s3_server) as proxy:
        store = await open_store(config_over(store_config(proxy.as_server, tmp_path), tmp_path), SystemEnvironment())
        if s3_server.checks_signatures:
            assert store.signing() is not None
        proxy.rules = [always(_other_size, Fault(swallow=True))]
        store = await open_store(config_over(store_config(proxy.as_server, tmp_path), tmp_path), SystemEnvironment())
        assert store.signing() is None
        await store.put_batch([("notes/one", b"x")])


async def test_a_service_that_is_away_is_opened_all_the_same(s3_server: S3Server, tmp_path: Path) -> None:
    """A daemon that is started again during an outage works when that is over."""
    async with faulty_s3(s3_server) as proxy:
        proxy.rules = [always(lambda _: True, Fault(refuse=503))]
        config = config_over(store_config(proxy.as_server, tmp_path, retry_s=0.1), tmp_path)
        store = await open_store(config, SystemEnvironment())
        with pytest.raises(StoreUnavailable):
            await store.put_batch([("notes/one", b"x")])
        proxy.rules = []
        await store.put_batch([("notes/one", b"x")])
        assert store.signing() is not None


WRONG = {
    "bucket": ({"url": "s3://no-such-bucket-anywhere/x"}, "bucket does not exist"),
    "credentials file": ({"credentials_file": Path("/nonexistent/s3")}, "cannot be read"),
    "certificates": ({"ca_file": Path("/nonexistent/ca.pem")}, "ca.pem"),
}


@pytest.mark.parametrize("name", WRONG)
async def test_a_store_that_cannot_be_is_refused_at_the_start(s3_server: S3Server, tmp_path: Path, name: str) -> None:
    settings, said = WRONG[name]
    with pytest.raises(ConfigError, match=said):
        await open_store(config_over(store_config(s3_server, tmp_path, **settings), tmp_path), SystemEnvironment())


async def test_wrong_keys_are_refused_at_the_start(ceph_server: S3Server, tmp_path: Path) -> None:
    config = config_over(store_config(replace(ceph_server, secret_key="wrong"), tmp_path, "some-bucket"), tmp_path)
    with pytest.raises(ConfigError, match="secret key"):
        await open_store(config, SystemEnvironment())


# ---- TLS


def issued_certificate(directory: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's certificate for 127.0.0.1, and the file of its issuer, whom nobody else trusts."""
    now = SystemEnvironment().now()
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]) for name in ("an issuer", "a server")]
    made = []
    for at, (key, name) in enumerate(zip(keys, names, strict=True)):
        builder = (
            x509.CertificateBuilder().subject_name(name).issuer_name(names[0]).public_key(key.public_key())
            .serial_number(at + 1).not_valid_before(now - dt.timedelta(days=1))
            .not_valid_after(now + dt.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=at == 0, path_length=None), critical=True)
        )  # fmt: skip
        if at == 1:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        made.append(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    (directory / "issuer.pem").write_bytes(made[0])
    private = keys[1].private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "server.pem").write_bytes(private + made[1])
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / "server.pem")
    return context, directory / "issuer.pem"


@asynccontextmanager
async def tls_in_front(server: S3Server, context: ssl.SSLContext) -> AsyncIterator[S3Server]:
    """Offer a server under https."""

    async def copy(source: trio.abc.ReceiveStream, target: trio.abc.SendStream) -> None:
        while data := await source.receive_some(65536):
            await target.send_all(data)

    async def relay(raw: trio.SocketStream) -> None:
        client = trio.SSLStream(raw, context, server_side=True, https_compatible=True)
        try:
            inner = await trio.open_tcp_stream("127.0.0.1", urlsplit(server.endpoint).port or 80)
            async with inner, trio.open_nursery() as nursery:
                nursery.start_soon(copy, inner, client)
                await copy(client, inner)
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            pass
        finally:
            await trio.aclose_forcefully(raw)

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, relay, listeners)
        yield replace(server, endpoint=f"https://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
        nursery.cancel_scope.cancel()


async def test_a_certificate_is_trusted_when_its_issuer_is_named(s3_server: S3Server, tmp_path: Path) -> None:
    """By every kind of client: checks, small calls, streams, uploads. Without that none of them gets through."""
    context, ca_file = issued_certificate(tmp_path)
    bucket = s3_server.new_bucket()
    async with tls_in_front(s3_server, context) as server:
        settings = store_config(server, tmp_path, bucket, ca_file=ca_file)
        store = await open_store(config_over(settings, tmp_path), SystemEnvironment())
        await store.put_batch([("notes/one", b"x" * 300_000)])
        async with store.stream("notes/one") as pieces:
            assert sum([len(piece) async for piece in pieces]) == 300_000
        (tmp_path / "file").write_bytes(b"y" * 10)
        await store.put_file("notes/file", tmp_path / "file")
        assert await store.get("notes/file", 10) == b"y" * 10
        (tmp_path / "file").write_bytes(b"y" * 10)
        untrusting = make_store(server, bucket)
        for call in (lambda: untrusting.size("notes/one"), lambda: untrusting.put_file("notes/two", tmp_path / "file")):
            with pytest.raises(StoreUnavailable, match=r"store\.ca_file") as caught:
                await call()
            assert not caught.value.temporary
        with pytest.raises(ConfigError, match=r"store\.ca_file"):
            await open_store(config_over(store_config(server, tmp_path, bucket), tmp_path), SystemEnvironment())


# ---- commands


def invoke(*arguments: str, environment: dict[str, str] | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(store_group, ["check", *arguments], env=environment)
    return result.exit_code, result.stdout, result.stderr


def test_store_check_tells_what_it_found(ceph_server: S3Server, tmp_path: Path) -> None:
    settings = store_config(ceph_server, tmp_path)
    options = ["--set", f"store.url={settings.url}", "--set", f"store.endpoint={settings.endpoint}"]
    options += ["--set", f"store.credentials_file={settings.credentials_file}"]
    code, out, err = invoke(*options)
    assert (code, "can be used" in err) == (0, True)
    assert all(name in out for name in CHECKS)
    assert ceph_server.secret_key not in out + err
    code, out, _ = invoke(*options, "--json")
    value = json.loads(out)
    assert (code, value["usable"], [check["name"] for check in value["checks"]]) == (0, True, CHECKS)
    code, out, err = invoke(*options, "--set", "store.url=s3://no-such-bucket-anywhere", "--json")
    assert (code, json.loads(out)["usable"], "cannot be used" in err) == (4, False, True)
    code, _, err = invoke(*options, "--set", "store.endpoint=http://127.0.0.1:9")
    assert (code, "does not answer" in err) == (3, True)
    code, out, err = invoke(*options[:4], environment={"AWS_ACCESS_KEY_ID": ""})
    assert (code, out, "no credentials" in err) == (4, "", True)


def test_store_check_looks_at_a_directory_too(tmp_path: Path) -> None:
    code, out, err = invoke("--set", f"store.path={tmp_path / 'store'}", "--json")
    assert (code, "can be used" in err) == (0, True), err
    value = json.loads(out)
    assert value["usable"]
    assert {"write", "range", "copy", "listing", "delete"} <= {check["name"] for check in value["checks"]}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("not a store")
    assert invoke("--set", f"store.path={tmp_path / 'other'}")[0] == 3


def test_config_show_has_no_secret_of_the_store(ceph_server: S3Server, tmp_path: Path) -> None:
    """Threat T20: secrets are in no setting at all, only the name of the file that holds them."""
    settings = store_config(ceph_server, tmp_path)
    options = ["--set", f"store.url={settings.url}", "--set", f"store.credentials_file={settings.credentials_file}"]
    result = CliRunner().invoke(config_group, ["show", "--json", *options])
    assert result.exit_code == 0
    assert ceph_server.secret_key not in result.output
    assert json.loads(result.stdout)["store.credentials_file"]["value"] == str(settings.credentials_file)


# ---- settings

UNUSABLE = [
    {"url": "bucket/prefix"},
    {"url": "http://bucket"},
    {"url": "s3:///prefix"},
    {"url": "s3://b"},
    {"url": "s3://bucket/a/../b"},
    {"url": "s3://bucket/ä"},
    {"url": "s3://bucket?x=1"},
    {"url": "s3://bucket", "endpoint": "store.example.org"},
    {"url": "s3://bucket", "endpoint": "ftp://store.example.org"},
    {"url": "s3://bucket", "endpoint": "https://store.example.org/path"},
    {"url": "s3://bucket", "endpoint": "https://user:secret@store.example.org"},
    {"url": "s3://bucket", "endpoint": "https://store.example.org:no"},
    {"url": "s3://bucket", "public_endpoint": "nowhere"},
    {"url": "s3://bucket", "region": "a b"},
    {"url": "s3://bucket", "addressing": "dns"},
    {"url": "s3://bucket", "path": "/somewhere"},
    {"endpoint": "https://store.example.org"},
]


@pytest.mark.parametrize("settings", UNUSABLE, ids=lambda settings: " ".join(settings.values()))
def test_a_store_that_is_not_described_well_is_a_configuration_error(settings: dict[str, str]) -> None:
    options = [word for name, value in settings.items() for word in ("--set", f"store.{name}={value}")]
    result = CliRunner().invoke(config_group, ["check", *options])
    assert result.exit_code == 4, result.output
    assert result.stderr.count("\n") == 1


def test_a_store_is_described_by_its_url_and_settings() -> None:
    store = StoreConfig(url="s3://buck/a/b/", endpoint="https://h", region="eu-1", addressing=Addressing.HOST)
    found = Config(store=store).s3
    assert found == S3Settings("buck", "a/b", "https://h", "", "eu-1", Addressing.HOST, None, 60.0)
    assert Config().s3 is None
