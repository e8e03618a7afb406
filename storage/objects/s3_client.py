"""The clients that move bytes: obstore's, one for calls that have to end soon and one for long streams.

They are made again when the credentials have changed. What obstore would take from the environment by itself is given,
so that a variable meant for another program moves nothing here. It tries a single request again twice, for a batch
would otherwise fail by any of its requests; to wait until a store has recovered is ``RetryingStore``'s.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

import obstore.store
from obstore.exceptions import BaseError

from storage.errors import StorageError, StoreUnavailable
from storage.objects.s3_credentials import Credentials, CredentialSource
from storage.objects.s3_errors import Answer, answer_of_error, meaning
from storage.objects.s3_settings import Addressing, S3Settings

if TYPE_CHECKING:
    from obstore.store import S3Credential

T = TypeVar("T")

REQUEST_RETRIES = 2
FIRST_RETRY_S = 0.05
LONGEST_RETRY_S = 1.0
RETRIES_FOR_S = 10.0
LONGEST_STREAM_S = 86_400.0
"""However slowly its reader reads; between two pieces the store has ``call_timeout_s``."""
SLOWEST_BYTES_PER_S = 1024 * 1024
SMALL_MOST_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Clients:
    """Clients with the same credentials."""

    credentials: Credentials
    small: obstore.store.S3Store
    streams: obstore.store.S3Store


class ClientSource:
    """Gives the clients to use now; used from many threads."""

    def __init__(self, settings: S3Settings, credentials: CredentialSource, connections: int) -> None:
        self.settings = settings
        self.credentials = credentials
        self._connections = connections
        self._authorities = None if settings.ca_file is None else settings.ca_file.read_bytes()
        self._lock = threading.Lock()
        self._clients: Clients | None = None

    def current(self) -> Clients:
        """Give clients with the credentials of the moment."""
        credentials = self.credentials.current()
        with self._lock:
            if self._clients is None or self._clients.credentials != credentials:
                settings = self.settings
                small_s = settings.call_timeout_s + SMALL_MOST_BYTES / SLOWEST_BYTES_PER_S
                self._clients = Clients(
                    credentials, self._make(credentials, small_s), self._make(credentials, LONGEST_STREAM_S)
                )
            return self._clients

    def call(self, key: str, request: Callable[[Clients], T]) -> T:
        """Make a request, with other credentials once more when the first are not accepted any longer.

        Raises:
            StorageError: what a refusal means.
        """
        clients = self.current()
        try:
            return request(clients)
        except (BaseError, OSError) as error:
            answer = answer_of_error(error)
            if not (answer.stale_credentials and self.credentials.look_again(clients.credentials)):
                raise self.meaning(answer, key) from None
        try:
            return request(self.current())
        except (BaseError, OSError) as error:
            raise self.meaning(answer_of_error(error), key) from None

    def meaning(self, answer: Answer, key: str) -> StorageError:
        """Give the error of this floor."""
        return meaning(answer, key, self.settings.bucket)

    def _make(self, credentials: Credentials, timeout_s: float) -> obstore.store.S3Store:
        settings = self.settings
        origin = settings.origin
        endpoint = f"{origin.scheme}://{origin.host}"
        options: dict[str, object] = {
            "allow_http": origin.scheme == "http",
            "connect_timeout": timedelta(seconds=settings.connect_timeout_s),
            "timeout": timedelta(seconds=timeout_s),
            "read_timeout": timedelta(seconds=settings.call_timeout_s + SMALL_MOST_BYTES / SLOWEST_BYTES_PER_S),
            "pool_max_idle_per_host": str(self._connections),
            "http1_only": True,
            "user_agent": "museworkd",
        }
        if self._authorities is not None:
            options["root_certificate"] = self._authorities
        try:
            return obstore.store.S3Store(
                settings.bucket,
                endpoint=endpoint,
                aws_endpoint_url_s3=endpoint,
                region=settings.region,
                virtual_hosted_style_request=settings.addressing is Addressing.HOST,
                skip_signature=False,
                unsigned_payload=False,
                credential_provider=_provider(credentials),
                client_options=options,  # type: ignore[arg-type]
                retry_config={
                    "max_retries": REQUEST_RETRIES,
                    "retry_timeout": timedelta(seconds=RETRIES_FOR_S),
                    "backoff": {
                        "init_backoff": timedelta(seconds=FIRST_RETRY_S),
                        "max_backoff": timedelta(seconds=LONGEST_RETRY_S), "base": 2,
                    },
                },
            )  # fmt: skip
        except (BaseError, ValueError) as error:
            raise StoreUnavailable(f"the S3 store cannot be used so: {error}", temporary=False) from None


def _provider(credentials: Credentials) -> Callable[[], S3Credential]:
    def provide() -> S3Credential:
        return {
            "access_key_id": credentials.access_key, "secret_access_key": credentials.secret_key,
            "token": credentials.token, "expires_at": None,
        }  # fmt: skip

    return provide
