"""URLs that carry their own right: bound to one method, path and expiry by a keyed hash."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from urllib.parse import quote

from wire.errors import Code, Refusal

SECRET_NAME = "signed-urls"
SECRET_BYTES = 32


class UrlSigner:
    """Sign and check paths with the deployment's secret."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def sign(self, method: str, path: str, expires: int) -> str:
        """Give the path with its signature; ``expires`` in seconds since the epoch."""
        return f"{quote(path)}?expires={expires}&signature={self._signature(method, path, expires)}"

    def check(self, method: str, path: str, query: Mapping[str, str], now: float) -> None:
        """Refuse anything but what was signed, while it is valid (``forbidden``)."""
        expires = query.get("expires", "")
        if not (expires.isascii() and expires.isdigit() and len(expires) <= 12):
            raise Refusal(Code.FORBIDDEN, "this URL is not signed")
        signed_for = "GET" if method == "HEAD" else method
        expected = self._signature(signed_for, path, int(expires))
        if not hmac.compare_digest(expected.encode(), query.get("signature", "").encode("utf-8", "replace")):
            raise Refusal(Code.FORBIDDEN, "the signature of this URL does not match")
        if now >= int(expires):
            raise Refusal(Code.FORBIDDEN, "this URL has expired: ask for a new one")

    def _signature(self, method: str, path: str, expires: int) -> str:
        text = f"{method}\n{path}\n{expires}".encode()
        return hmac.digest(self._secret, text, "sha256").hex()
