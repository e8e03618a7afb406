"""Signed URLs of an S3 store: good for one request, and for nothing else (threat T4)."""

from __future__ import annotations

import datetime as dt
import random
from dataclasses import replace
from urllib.parse import parse_qs, urlsplit

import h11
import pytest
import trio
from botocore.auth import S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as BotocoreCredentials

from storage.environment import SeededEnvironment, SystemEnvironment
from storage.errors import ObjectMissing
from storage.object_store import SignedUrl, UrlSigning
from storage.objects.s3 import S3Store
from storage.objects.s3_credentials import Credentials, CredentialSource
from storage.objects.s3_settings import Addressing, S3Settings
from storage.objects.s3_signature import LONGEST_S, authorization, encoded_query, signed_query
from storage.objects.s3_urls import S3UrlSigning
from tests.s3_server import S3Server
from tests.s3_stores import credentials_of, make_store

KEY = "staging/7/object/typed/" + "ab" * 32
OTHER = "staging/7/object/typed/" + "cd" * 32
CONTENT = b"a content"


async def ask(method: str, signed: SignedUrl, body: bytes = b"", headers: dict[str, str] | None = None) -> int:
    return (await answer(method, signed, body, headers))[0]


async def answer(
    method: str, signed: SignedUrl, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Make a request as some client would, with nothing but what it was given."""
    parts = urlsplit(signed.url)
    sent = {"Host": parts.netloc, "Connection": "close", **signed.headers, **(headers or {})}
    http = h11.Connection(h11.CLIENT)
    stream = await trio.open_tcp_stream(parts.hostname or "", parts.port or 80)
    async with stream:
        request = h11.Request(method=method, target=f"{parts.path}?{parts.query}", headers=list(sent.items()))
        await stream.send_all((http.send(request) or b"") + body)
        raw = h11.Connection(h11.CLIENT)
        raw.send(h11.Request(method="GET", target="/", headers=[("Host", "x")]))
        raw.send(h11.EndOfMessage())
        status, content = 0, b""
        while not isinstance(event := raw.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                content += bytes(event.data)
            elif event is h11.NEED_DATA:
                raw.receive_data(await stream.receive_some(65536))
        return status, content


def signing_of(store: S3Store) -> UrlSigning:
    signing = store.signing()
    assert signing is not None
    return signing


@pytest.fixture
def store(ceph_server: S3Server) -> S3Store:
    return make_store(ceph_server, prefix="some/where")


async def test_T4_a_url_allows_what_it_was_made_for(store: S3Store) -> None:
    put = signing_of(store).put_url(KEY, len(CONTENT), 60)
    assert await ask("PUT", put, CONTENT) == 200
    assert await store.get(KEY, 100) == CONTENT
    get = signing_of(store).get_url(KEY, 60)
    assert get.headers == {}
    assert await answer("GET", get) == (200, CONTENT)
    assert await answer("GET", get, headers={"Range": "bytes=2-4"}) == (206, CONTENT[2:5])


async def test_T4_a_put_url_allows_no_other_size(store: S3Store) -> None:
    put = signing_of(store).put_url(KEY, len(CONTENT), 60)
    for body in (CONTENT + b"!", CONTENT[:-1], b""):
        assert await ask("PUT", replace(put, headers={"Content-Length": str(len(body))}), body) == 403
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(CONTENT), CONTENT)
    assert await ask("PUT", replace(put, headers={"Transfer-Encoding": "chunked"}), chunked) in {400, 403, 411}
    with pytest.raises(ObjectMissing):
        await store.get(KEY, 100)


async def test_T4_an_empty_content_has_a_url_too(store: S3Store) -> None:
    put = signing_of(store).put_url(KEY, 0, 60)
    assert await ask("PUT", replace(put, headers={"Content-Length": "1"}), b"x") == 403
    assert await ask("PUT", put) == 200
    assert await store.size(KEY) == 0


async def test_T4_a_url_allows_no_other_key_method_or_query(store: S3Store) -> None:
    await store.put_batch([(KEY, CONTENT), (OTHER, b"the other")])
    put, get = signing_of(store).put_url(KEY, len(CONTENT), 60), signing_of(store).get_url(KEY, 60)
    for signed, method, body in ((put, "PUT", CONTENT), (get, "GET", b"")):
        assert await ask(method, replace(signed, url=signed.url.replace(KEY, OTHER)), body) == 403
        assert await ask(method, replace(signed, url=signed.url + "&uploads="), body) == 403
        assert await ask("DELETE", replace(signed, headers={})) == 403
    assert await ask("GET", replace(put, headers={})) == 403
    assert await ask("PUT", replace(get, headers={"Content-Length": "9"}), CONTENT) == 403
    assert await store.get(OTHER, 100) == b"the other"


async def test_T4_a_url_is_of_no_use_after_its_time(ceph_server: S3Server, store: S3Store) -> None:
    await store.put_batch([(KEY, CONTENT)])

    class Earlier(SystemEnvironment):
        def now(self) -> dt.datetime:
            return super().now() - dt.timedelta(seconds=61)

    earlier = S3UrlSigning(store.settings, credentials_of(ceph_server), Earlier())
    assert await ask("GET", earlier.get_url(KEY, 120)) == 200
    assert await ask("GET", earlier.get_url(KEY, 60)) == 403
    assert await ask("PUT", earlier.put_url(KEY, len(CONTENT), 60), CONTENT) == 403
    late = signing_of(store).get_url(KEY, 60)
    assert await ask("GET", replace(late, url=late.url.replace("X-Amz-Expires=60", "X-Amz-Expires=6000"))) == 403


@pytest.mark.parametrize("expires_s", [0, -1, LONGEST_S + 1])
def test_a_url_cannot_live_for_ever(expires_s: int) -> None:
    with pytest.raises(ValueError, match="signed URL"):
        _signing(S3Settings("bucket")).get_url(KEY, expires_s)


# ---- where they lead, held against another signer


def _signing(settings: S3Settings, token: str | None = None) -> S3UrlSigning:
    variables = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "some/secret+key"}
    variables |= {"AWS_SESSION_TOKEN": token} if token else {}
    environment = SeededEnvironment(1, dt.datetime.now(dt.UTC))
    return S3UrlSigning(settings, CredentialSource(environment, None, variables), environment)


ADDRESSES = {
    "path": (S3Settings("buck", endpoint="http://s3.internal:9000"), "http://s3.internal:9000/buck/"),
    "host": (
        S3Settings("buck", endpoint="https://S3.example.org", addressing=Addressing.HOST),
        "https://buck.s3.example.org/",
    ),
    "standard port": (S3Settings("buck", endpoint="https://s3.example.org:443/"), "https://s3.example.org/buck/"),
    "prefix": (S3Settings("buck", "a/b", endpoint="http://h"), "http://h/buck/a/b/"),
    "public": (
        S3Settings("buck", endpoint="http://10.0.0.5:9000", public_endpoint="https://store.example.org"),
        "https://store.example.org/buck/",
    ),
    "amazon": (S3Settings("buck", region="eu-west-1"), "https://s3.eu-west-1.amazonaws.com/buck/"),
    "ipv6": (S3Settings("buck", endpoint="http://[::1]:9000"), "http://[::1]:9000/buck/"),
}


@pytest.mark.parametrize("name", ADDRESSES)
def test_a_url_leads_to_the_public_address(name: str) -> None:
    settings, begins = ADDRESSES[name]
    assert _signing(settings).get_url(KEY, 60).url.startswith(begins + KEY + "?")


@pytest.mark.parametrize("name", ADDRESSES)
@pytest.mark.parametrize("token", [None, "a/session+token=="])
def test_a_url_is_signed_as_botocore_signs_it(name: str, token: str | None) -> None:
    """The very same but for the order of its query, at the very same second."""
    settings = ADDRESSES[name][0]
    ours = [_signing(settings, token).put_url(KEY, 4711, 900), _signing(settings, token).get_url(KEY, 900)]
    for method, signed in (("PUT", ours[0]), ("GET", ours[1])):
        assert _signed_again(method, signed, settings.region, token) == parse_qs(urlsplit(signed.url).query)


def _signed_again(method: str, signed: SignedUrl, region: str, token: str | None) -> dict[str, list[str]]:
    """Sign with botocore, at the second our URL names."""
    wishes = (
        "?response-cache-control=private%2C%20max-age%3D3600&response-content-disposition=attachment"
        "&response-content-encoding=identity&response-content-type=application%2Foctet-stream"
    )
    query = wishes if method == "GET" else ""
    asked = AWSRequest(method=method, url=signed.url.partition("?")[0] + query, headers=dict(signed.headers))
    auth = S3SigV4QueryAuth(BotocoreCredentials("AKIAEXAMPLE", "some/secret+key", token), "s3", region, expires=900)
    stamp = parse_qs(urlsplit(signed.url).query)["X-Amz-Date"][0]
    _at(auth, stamp, asked)
    return parse_qs(urlsplit(asked.url).query)


def _at(auth: S3SigV4QueryAuth | S3SigV4Auth, stamp: str, asked: AWSRequest) -> None:
    """What ``add_auth`` does, at a time of ours."""
    asked.context["timestamp"] = stamp
    auth._modify_request_before_signing(asked)
    text = auth.string_to_sign(asked, auth.canonical_request(asked))
    auth._inject_signature_to_request(asked, auth.signature(text, asked))


def test_headers_are_signed_as_botocore_signs_them() -> None:
    rng = random.Random(7)
    now = dt.datetime(2026, 3, 4, 5, 6, 7, tzinfo=dt.UTC)
    for _ in range(200):
        token = rng.choice([None, "a/token+="])
        query = {rng.choice(["uploads", "uploadId", "list-type", "prefix"]): rng.choice(["", "2~ab/c=+ ü", "x&y"])}
        query |= {"partNumber": str(rng.randrange(10_000))} if rng.random() < 0.5 else {}
        headers = rng.choice([{}, {"range": "bytes=0-0"}, {"if-none-match": "*", "x-amz-copy-source": "/b/k  two"}])
        digest = rng.randbytes(32).hex()
        method = rng.choice(["GET", "PUT", "POST", "DELETE"])
        ours = authorization(
            Credentials("AKIA", "secret", token), "eu-1", now, method, "h:9000", "/buck/a/b~c", query, headers, digest
        )
        asked = AWSRequest(
            method=method, url=f"http://h:9000/buck/a/b~c?{encoded_query(query)}",
            headers={**headers, "X-Amz-Content-SHA256": digest, "X-Amz-Date": "20260304T050607Z"},
        )  # fmt: skip
        auth = S3SigV4Auth(BotocoreCredentials("AKIA", "secret", token), "s3", "eu-1")
        asked.context["timestamp"] = "20260304T050607Z"
        if token:
            asked.headers["X-Amz-Security-Token"] = token
        text = auth.string_to_sign(asked, auth.canonical_request(asked))
        assert ours["authorization"].endswith("Signature=" + auth.signature(text, asked))


def test_the_signing_key_is_of_its_day_region_and_secret() -> None:
    """It is kept between calls: another day, region or secret has another."""
    seen = set()
    for secret in ("one", "two"):
        for region in ("eu-1", "us-1"):
            for day in (1, 2):
                now = dt.datetime(2026, 1, day, tzinfo=dt.UTC)
                query = signed_query(Credentials("k", secret), region, now, "GET", "h", "/b/k", {}, 60)
                seen.add(parse_qs(query)["X-Amz-Signature"][0])
    assert len(seen) == 8
