"""Trying out what is relied on in an S3-compatible service, with contents that are removed again.

Services differ in what they leave out. Without some of it nothing works, and the service is refused; without the rest
something is done in another way, or is not noticed, and that is said. What a check leaves when it dies lies under
``staging/`` and is removed by its age.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from urllib.parse import quote, urlsplit

from storage.environment import Environment
from storage.errors import StorageError, StoreUnavailable
from storage.object_store import SignedUrl
from storage.objects.check import Finding, Outcome, Unkept
from storage.objects.s3_credentials import CredentialSource
from storage.objects.s3_requests import BytesBody, Response, S3Requests
from storage.objects.s3_settings import S3Settings
from storage.objects.s3_urls import S3UrlSigning

ANSWER_S = 5.0
"""For each request of a check."""
_EXPIRES_S = 60
_OLD, _NEW, _OTHER = b"museworkd tries out this store", b"museworkd tries it out again", b"something else of it"


class _EarlierTime:
    """The world of a while ago, for what has expired."""

    def __init__(self, environment: Environment) -> None:
        self.random_bytes = environment.random_bytes
        self.uuid = environment.uuid
        self.jitter = environment.jitter
        self._now = environment.now

    def now(self) -> dt.datetime:
        return self._now() - dt.timedelta(seconds=2 * _EXPIRES_S)


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    relied_on_by: str
    run: Callable[[S3Check], None]
    quick: bool
    without: str = ""
    """What it means when it is not kept; empty: the service is refused."""


class S3Check:
    """Checks one store; blocking."""

    def __init__(self, settings: S3Settings, credentials: CredentialSource, environment: Environment) -> None:
        self._settings = replace(settings, call_timeout_s=ANSWER_S, connect_timeout_s=ANSWER_S)
        self._credentials = credentials
        self._environment = environment
        self._requests = S3Requests(self._settings, credentials, environment)
        self._signing = S3UrlSigning(self._settings, credentials, environment, self._settings.origin)
        self._base = f"staging/probe/{environment.random_bytes(8).hex()}"
        self._put: list[str] = []

    def findings(self, *, quick: bool = False) -> Iterator[Finding]:
        """Make the checks, one after the other, up to the first without which the others mean nothing."""
        try:
            for check in _CHECKS:
                if quick and not check.quick:
                    continue
                finding = self._find(check)
                yield finding
                if finding.outcome is Outcome.UNREACHABLE or (finding.outcome is Outcome.REFUSED and not self._put):
                    return
        finally:
            self._clean()

    def _find(self, check: _Check) -> Finding:
        try:
            check.run(self)
        except Unkept as error:
            said = f"{error}; {check.without}" if check.without else str(error)
            return Finding(check.name, check.relied_on_by, Outcome.DEGRADED if check.without else Outcome.REFUSED, said)
        except StorageError as error:
            outcome = Outcome.UNREACHABLE if error.temporary else Outcome.REFUSED
            return Finding(check.name, check.relied_on_by, outcome, str(error))
        return Finding(check.name, check.relied_on_by, Outcome.OK, "")

    def _clean(self) -> None:
        try:
            for key in self._put:
                self._requests.ask("DELETE", key)
        except StorageError:  # they expire
            return
        finally:
            self._requests.close()

    def write(self) -> None:
        """Store a content."""
        self._store("a", _OLD)

    def read_after_write(self) -> None:
        """Read what was just stored."""
        self._expect("a", _OLD)

    def replace(self) -> None:
        """Store over it."""
        self._store("a", _NEW)
        self._expect("a", _NEW)

    def part(self) -> None:
        """Read some bytes."""
        response = self._requests.ask("GET", self._key("a"), headers={"range": "bytes=3-6"})
        if response.status != 206 or response.body not in {_OLD[3:7], _NEW[3:7]}:
            raise Unkept(f"a range was answered by HTTP {response.status} with {len(response.body)} bytes")
        if not re.fullmatch(r"bytes 3-6/\d+", response.headers.get("content-range", "")):
            raise Unkept("the answer to a range does not tell the whole length")

    def absent(self) -> None:
        """Read what is not there."""
        response = self._requests.ask("GET", self._key("absent"))
        if response.status == 403:
            raise Unkept("what is not there is answered by 403: the credentials lack the right to list the bucket")
        if response.answer.code != "NoSuchKey":
            raise Unkept(f"what is not there is answered by {response.answer.text}, not by NoSuchKey")

    def checksum(self) -> None:
        """Store a content with the hash of another."""
        key = self._named("b")
        digest = hashlib.sha256(_OTHER).hexdigest()
        response = self._requests.ask("PUT", key, body=BytesBody(_OLD), body_sha256=digest)
        if response.succeeded:
            raise Unkept("a content that does not match its hash was stored")

    def conditional_write(self) -> None:
        """Store where something is, unless something is there."""
        response = self._requests.ask("PUT", self._key("a"), body=BytesBody(_OTHER), headers={"if-none-match": "*"})
        if response.status not in {409, 412}:
            raise Unkept(f"If-None-Match was answered by HTTP {response.status}")

    def signed_urls(self) -> None:
        """Use signed URLs as they are meant, and in ways they are not."""
        key = self._named("signed")
        url = self._signing.put_url(key, len(_OLD), _EXPIRES_S)
        self._allowed(self._send("PUT", url, _OLD))
        longer = replace(url, headers={"Content-Length": str(len(_OLD) + 1)})
        self._forbidden("another size", self._send("PUT", longer, _OLD + b"."))
        other = replace(url, url=url.url.replace(key, self._named("unsigned")))
        self._forbidden("another key", self._send("PUT", other, _OLD))
        reading = self._signing.get_url(key, _EXPIRES_S)
        self._forbidden("another method", self._send("DELETE", reading))
        before = _EarlierTime(self._environment)
        earlier = S3UrlSigning(self._settings, self._credentials, before, self._settings.origin)
        self._forbidden("another time", self._send("GET", earlier.get_url(key, _EXPIRES_S)))
        response = self._send("GET", reading)
        self._allowed(response)
        if response.body != _OLD:
            raise Unkept("a signed URL gave another content")

    def copy(self) -> None:
        """Copy within the store."""
        source = f"/{self._settings.bucket}/{self._settings.full_key(self._key('a'))}"
        self._requests.do("PUT", self._named("copy"), headers={"x-amz-copy-source": quote(source)})
        original = self._requests.do("GET", self._key("a")).body
        self._expect("copy", original)

    def listing(self) -> None:
        """List what was just stored."""
        query = {"list-type": "2", "prefix": self._settings.full_key(self._base)}
        text = self._requests.do("GET", "", query).body.decode("utf-8", "replace")
        if f"<Key>{self._settings.full_key(self._key('a'))}</Key>" not in text:
            raise Unkept("what was just stored is not listed")

    def parts(self) -> None:
        """Store in parts, and give an upload up."""
        key = self._named("parts")
        upload = self._begin(key)
        part = self._requests.do("PUT", key, {"partNumber": "1", "uploadId": upload}, BytesBody(_OLD))
        tag = part.headers.get("etag", "")
        text = f"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{tag}</ETag></Part>"
        body = BytesBody(f"{text}</CompleteMultipartUpload>".encode())
        self._requests.do("POST", key, {"uploadId": upload}, body)
        self._expect("parts", _OLD)
        given_up = self._begin(key)
        if given_up not in self._listed_uploads():
            raise Unkept("uploads that have begun are not listed: those of dead daemons would lie there for ever")
        self._requests.do("DELETE", key, {"uploadId": given_up})
        if given_up in self._listed_uploads():
            raise Unkept("an upload that was given up is still there")

    def delete(self) -> None:
        """Delete several contents at once."""
        keys = [self._settings.full_key(key) for key in (self._key("a"), self._key("never-there"))]
        listed = "".join(f"<Object><Key>{key}</Key></Object>" for key in keys)
        content = f"<Delete>{listed}</Delete>".encode()
        digest = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        response = self._requests.do("POST", "", {"delete": ""}, BytesBody(content), {"content-md5": digest})
        if b"<Code>" in response.body:
            raise Unkept("deleting several contents at once was refused for one that was not there")
        if self._requests.ask("GET", self._key("a")).answer.code != "NoSuchKey":
            raise Unkept("what was deleted is still there")

    def public_address(self) -> None:
        """Read at the address that clients are given."""
        public = S3Requests(self._settings, self._credentials, self._environment, self._settings.public_origin)
        signing = S3UrlSigning(self._settings, self._credentials, self._environment)
        self._store("public", _OLD)
        try:
            response = _sent(public, "GET", signing.get_url(self._key("public"), _EXPIRES_S))
        except StoreUnavailable as error:
            raise Unkept(str(error)) from None
        finally:
            public.close()
        if not response.succeeded or response.body != _OLD:
            raise Unkept(f"a signed URL was answered by HTTP {response.status} {response.answer.code}")

    def _begin(self, key: str) -> str:
        text = self._requests.do("POST", key, {"uploads": ""}).body.decode("utf-8", "replace")
        found = re.search(r"<UploadId>([^<]+)</UploadId>", text)
        if found is None:
            raise Unkept("an upload in parts has begun without a name")
        return found[1]

    def _listed_uploads(self) -> list[str]:
        query = {"uploads": "", "prefix": self._settings.full_key(self._base)}
        text = self._requests.do("GET", "", query).body.decode("utf-8", "replace")
        return re.findall(r"<UploadId>([^<]+)</UploadId>", text)

    def _key(self, name: str) -> str:
        return f"{self._base}/{name}"

    def _named(self, name: str) -> str:
        """A key that is removed at the end."""
        key = self._key(name)
        if key not in self._put:
            self._put.append(key)
        return key

    def _store(self, name: str, content: bytes) -> None:
        self._requests.do("PUT", self._key(name), body=BytesBody(content))
        self._named(name)

    def _expect(self, name: str, content: bytes) -> None:
        response = self._requests.ask("GET", self._key(name))
        if response.answer.code == "NoSuchKey":
            raise Unkept("what was just stored is not there")
        if not response.succeeded:
            raise self._requests.meaning(response.answer, name)
        if response.body != content:
            raise Unkept("what is read is not what was just stored")

    def _send(self, method: str, signed: SignedUrl, content: bytes | None = None) -> Response:
        return _sent(self._requests, method, signed, content)

    def _allowed(self, response: Response) -> None:
        if not response.succeeded:
            raise Unkept(f"a signed URL was refused: {response.answer.text}")

    def _forbidden(self, what: str, response: Response) -> None:
        if response.succeeded:
            raise Unkept(f"a signed URL was good for {what} too")


def _sent(requests: S3Requests, method: str, signed: SignedUrl, content: bytes | None = None) -> Response:
    parts = urlsplit(signed.url)
    body = None if content is None else BytesBody(content)
    return requests.send(method, f"{parts.path}?{parts.query}", signed.headers, body)


_CHECKS = (
    _Check("write", "every push", S3Check.write, quick=True),
    _Check("read after write", "a fetch right after a push", S3Check.read_after_write, quick=True),
    _Check("replace", "mending what is damaged", S3Check.replace, quick=False),
    _Check("range", "every fetch of a pack's contents", S3Check.part, quick=True),
    _Check("absent", "telling what is missing from an outage", S3Check.absent, quick=True),
    _Check(
        "checksum", "refusing what was damaged on its way", S3Check.checksum, quick=True,
        without="such damage is found by scrub only",
    ),
    _Check(
        "conditional write", "nothing alone: what has a name has one content", S3Check.conditional_write, quick=False,
        without="museworkd does without",
    ),
    _Check(
        "signed URLs", "clients that upload to and download from the store themselves", S3Check.signed_urls, quick=True,
        without="clients go through the daemon",
    ),
    _Check(
        "public address", "the same", S3Check.public_address, quick=False,
        without="see from a client's machine whether it is reached there",
    ),
    _Check("copy", "taking uploads out of their clients' reach", S3Check.copy, quick=False),
    _Check("listing", "collection, reindex and fsck", S3Check.listing, quick=False),
    _Check("parts", "files of more than 16 MiB", S3Check.parts, quick=False),
    _Check("delete", "collection", S3Check.delete, quick=False),
)  # fmt: skip
