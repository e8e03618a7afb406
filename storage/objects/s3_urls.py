"""URLs by which clients reach an S3-compatible store themselves: bound to method, key, size and time."""

from __future__ import annotations

from storage.environment import Environment
from storage.layout import check_key
from storage.object_store import SignedUrl
from storage.objects.s3_credentials import CredentialSource
from storage.objects.s3_settings import Origin, S3Settings
from storage.objects.s3_signature import encoded_path, signed_query

CACHE_CONTROL = "private, max-age=3600"
"""Of what is read by a URL: contents never change, and are not everybody's."""
_WISHES = {
    "response-cache-control": CACHE_CONTROL,
    "response-content-disposition": "attachment",
    "response-content-encoding": "identity",
    "response-content-type": "application/octet-stream",
}
"""Headers of the answer, whatever the one who uploaded the content has sent with it."""


class S3UrlSigning:
    """``UrlSigning`` at the store's public address."""

    def __init__(
        self, settings: S3Settings, source: CredentialSource, environment: Environment, origin: Origin | None = None
    ) -> None:
        self._settings = settings
        self._source = source
        self._environment = environment
        self._origin = origin or settings.public_origin

    def put_url(self, key: str, size: int, expires_s: int) -> SignedUrl:
        """See ``UrlSigning``; the length is among the signed headers, so another one is refused by its signature."""
        headers = {"Content-Length": str(size)}
        return SignedUrl(self._signed("PUT", key, headers, expires_s), headers)

    def get_url(self, key: str, expires_s: int) -> SignedUrl:
        """See ``UrlSigning``; the answer is to be kept by no shared cache, whatever the bucket says (threat T21)."""
        return SignedUrl(self._signed("GET", key, {}, expires_s, _WISHES), {})

    def _signed(
        self, method: str, key: str, headers: dict[str, str], expires_s: int, wishes: dict[str, str] | None = None
    ) -> str:
        path = f"{self._origin.path}/{self._settings.full_key(check_key(key))}"
        query = signed_query(
            self._source.current(), self._settings.region, self._environment.now(), method, self._origin.host, path,
            headers, expires_s, wishes,
        )  # fmt: skip
        return f"{self._origin.scheme}://{self._origin.host}{encoded_path(path)}?{query}"
