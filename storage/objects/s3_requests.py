"""Single signed requests to an S3-compatible store, blocking: what obstore does not offer, or not as we need it.

Uploads in parts are begun, ended and given up here, for they have to be given up by whoever began them; bodies come
from files, so that none is held in memory. Nothing is tried again here but a request on a connection that the store
had closed meanwhile.
"""

from __future__ import annotations

import hashlib
import http.client
import re
import ssl
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from storage.environment import Environment
from storage.errors import StorageError, StoreUnavailable
from storage.objects.s3_credentials import Credentials, CredentialSource
from storage.objects.s3_errors import UNTRUSTED, Answer, answer_of, meaning
from storage.objects.s3_settings import Origin, S3Settings
from storage.objects.s3_signature import EMPTY_SHA256, authorization, encoded_path, encoded_query

_ERROR = re.compile(rb"\s*(?:<\?xml[^>]*>)?\s*<Error\b")
BLOCK_BYTES = 256 * 1024
ANSWER_MOST_BYTES = 4 * 1024 * 1024
"""A page of a listing is below 1 MiB."""
IDLE_CONNECTIONS = 16


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes

    @property
    def succeeded(self) -> bool:
        """Whether it did what was asked; some servers say 200 and then tell of an error in the body."""
        return 200 <= self.status < 300 and not _ERROR.match(self.body)

    @property
    def answer(self) -> Answer:
        """How it was refused."""
        return answer_of(500 if 200 <= self.status < 300 else self.status, self.body)


class Body(Protocol):
    """What a request sends."""

    size: int

    def sha256(self) -> str:
        """Hash it."""

    def open(self) -> Readable:
        """Give a reader from its beginning."""


class Readable(Protocol):
    """A file, or something like it."""

    def read(self, size: int = -1) -> bytes:
        """Give the next bytes; none at the end."""

    def close(self) -> None:
        """Let go of it."""


class BytesBody:
    """A short content."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size = len(content)

    def sha256(self) -> str:
        """See ``Body``."""
        return hashlib.sha256(self.content).hexdigest()

    def open(self) -> Readable:
        """See ``Body``."""
        return _Slice(self.content)


class FileBody:
    """A part of a file, read when it is needed; ``stopped`` ends a transfer nobody waits for any more."""

    def __init__(self, path: Path, offset: int, size: int, stopped: Callable[[], bool]) -> None:
        self._path = path
        self._offset = offset
        self.size = size
        self._stopped = stopped

    def sha256(self) -> str:
        """See ``Body``; raises ``StoreUnavailable`` for a file that is shorter than it was."""
        hasher = hashlib.sha256()
        left = self.size
        reader = self.open()
        try:
            while left:
                block = reader.read(BLOCK_BYTES)
                if not block:
                    raise StoreUnavailable(f"{self._path} became shorter while it was stored", temporary=False)
                hasher.update(block)
                left -= len(block)
        finally:
            reader.close()
        return hasher.hexdigest()

    def open(self) -> Readable:
        """See ``Body``."""
        return _FileSlice(self._path, self._offset, self.size, self._stopped)


class _FileSlice:
    def __init__(self, path: Path, offset: int, size: int, stopped: Callable[[], bool]) -> None:
        self._file = path.open("rb", buffering=0)
        self._file.seek(offset)
        self._left = size
        self._stopped = stopped

    def read(self, size: int = -1) -> bytes:
        if self._stopped():
            raise StoreUnavailable("the upload was given up", temporary=False)
        block = self._file.read(min(self._left, size if size >= 0 else self._left)) or b""
        self._left -= len(block)
        return block

    def close(self) -> None:
        self._file.close()


class _Slice:
    def __init__(self, content: bytes) -> None:
        self._at = 0
        self._content = content

    def read(self, size: int = -1) -> bytes:
        block = self._content[self._at :] if size < 0 else self._content[self._at : self._at + size]
        self._at += len(block)
        return block

    def close(self) -> None:
        self._content = b""


class S3Requests:
    """Makes signed requests on connections that are kept; used from many threads."""

    def __init__(
        self, settings: S3Settings, credentials: CredentialSource, environment: Environment,
        origin: Origin | None = None,
    ) -> None:  # fmt: skip
        self._idle: deque[http.client.HTTPConnection] = deque()
        self.settings = settings
        self._credentials = credentials
        self._environment = environment
        self._origin = origin or settings.origin
        self._tls: ssl.SSLContext | None = None
        if self._origin.scheme == "https":
            self._tls = ssl.create_default_context()
            if settings.ca_file is not None:
                self._tls.load_verify_locations(settings.ca_file)
        self._lock = threading.Lock()

    def ask(
        self, method: str, key: str, query: Mapping[str, str] | None = None, body: Body | None = None,
        headers: Mapping[str, str] | None = None, *, body_sha256: str | None = None,
    ) -> Response:  # fmt: skip
        """Make a request and give its answer, a success or not; ``key`` may be empty for the bucket itself.

        Raises:
            StoreUnavailable: there was no answer.
        """
        digest = body_sha256 or (EMPTY_SHA256 if body is None else body.sha256())
        used = self._credentials.current()
        response = self._asked(used, method, key, query or {}, body, headers or {}, digest)
        if not response.succeeded and response.answer.stale_credentials and self._credentials.look_again(used):
            response = self._asked(self._credentials.current(), method, key, query or {}, body, headers or {}, digest)
        return response

    def do(
        self, method: str, key: str, query: Mapping[str, str] | None = None, body: Body | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:  # fmt: skip
        """Make a request that has to succeed.

        Raises:
            StorageError: what a refusal means.
        """
        response = self.ask(method, key, query, body, headers)
        if not response.succeeded:
            raise self.meaning(response.answer, key)
        return response

    def send(self, method: str, target: str, headers: Mapping[str, str], body: Body | None = None) -> Response:
        """Make a request that carries its own proof: ``target`` is path and query of a signed URL."""
        return self._exchange(method, target, dict(headers), body)

    def meaning(self, answer: Answer, key: str) -> StorageError:
        """Give the error of this floor."""
        return meaning(answer, key, self.settings.bucket)

    def close(self) -> None:
        """Close connections that are kept; done at the latest when nobody refers to it, for a store is not closed."""
        while self._idle:
            self._idle.pop().close()

    __del__ = close

    def _asked(
        self, credentials: Credentials, method: str, key: str, query: Mapping[str, str], body: Body | None,
        headers: Mapping[str, str], digest: str,
    ) -> Response:  # fmt: skip
        path = f"{self._origin.path}/{self.settings.full_key(key)}" if key else self._origin.path or "/"
        signed = authorization(
            credentials, self.settings.region, self._environment.now(), method, self._origin.host, path, query,
            headers, digest,
        )  # fmt: skip
        target = encoded_path(path) + (f"?{encoded_query(query)}" if query else "")
        if method in {"PUT", "POST"}:
            signed["content-length"] = str(0 if body is None else body.size)
        return self._exchange(method, target, signed, body)

    def _exchange(self, method: str, target: str, headers: dict[str, str], body: Body | None) -> Response:
        while True:
            connection, used_before = self._connection()
            try:
                response = self._on(connection, method, target, headers, body)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                closed_meanwhile = isinstance(error, http.client.RemoteDisconnected | ConnectionError)
                if used_before and closed_meanwhile:
                    continue  # ends with the last of the idle ones
                raise self._unanswered(error) from None
            except BaseException:
                connection.close()
                raise
            self._keep(connection)
            return response

    def _on(
        self, connection: http.client.HTTPConnection, method: str, target: str, headers: dict[str, str],
        body: Body | None,
    ) -> Response:  # fmt: skip
        reader = None if body is None else body.open()
        try:
            connection.request(method, target, body=reader, headers=headers)
            with connection.getresponse() as response:
                content = response.read(ANSWER_MOST_BYTES + 1)
                if len(content) > ANSWER_MOST_BYTES:
                    raise StoreUnavailable("the S3 store's answer is too long", temporary=False)
                found = {name.lower(): value for name, value in response.getheaders()}
                return Response(response.status, found, content)
        finally:
            if reader is not None:
                reader.close()

    def _unanswered(self, error: Exception) -> StorageError:
        untrusted = isinstance(error, ssl.SSLCertVerificationError)
        return self.meaning(Answer(0, UNTRUSTED if untrusted else "", str(error) or type(error).__name__), "")

    def _connection(self) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            if self._idle:
                return self._idle.pop(), True
        timeout_s = self.settings.call_timeout_s
        if self._tls is not None:
            return http.client.HTTPSConnection(
                self._origin.host, timeout=timeout_s, context=self._tls, blocksize=BLOCK_BYTES
            ), False
        return http.client.HTTPConnection(self._origin.host, timeout=timeout_s, blocksize=BLOCK_BYTES), False

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        if connection.sock is None:  # the store wanted it closed
            return
        with self._lock:
            if len(self._idle) < IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()
