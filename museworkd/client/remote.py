"""Where a repository is on a server, and what is sent there with every request: the token only where nobody listens."""

from __future__ import annotations

import ipaddress
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from museworkd.client.errors import ClientError

MSGPACK = "application/x-msgpack"
PLAIN_HTTP_HOSTS = "MUSEWORKD_PLAIN_HTTP_HOSTS"
"""Names in the environment, separated by commas, the hosts that get a token over plain http."""
UNENCODED = {"accept-encoding": "identity"}
"""An encoded answer could be a thousand times as long as what was received."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A repository on a server."""

    url: str
    """``http(s)://host[:port]/[prefix/]owner/slug``."""
    token: str | None

    def __post_init__(self) -> None:
        if "@" in self.url.partition("://")[2].partition("/")[0]:  # the URL itself is not repeated: it is a secret
            raise ClientError("a URL must not hold a name or password; give a token in $MUSEWORKD_TOKEN")
        try:
            parts = urlsplit(self.url)
            sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
        except ValueError:
            parts, sound = urlsplit(""), False
        if not sound or len(parts.path.strip("/").split("/")) < 2 or not self.url.isprintable():
            raise ClientError(f"not a repository URL: {self.url!a}; expected http(s)://host/owner/name")
        if self.token:
            self._check_token(self.token, parts.scheme, parts.hostname or "")

    @staticmethod
    def _check_token(token: str, scheme: str, host: str) -> None:
        """Refuse a token that is none, or that everybody on the way could read."""
        if not (token.isascii() and token.isprintable()):
            raise ClientError("the token holds characters that no token has")
        if scheme != "https" and not _is_loopback(host) and host not in _plain_http_hosts():
            raise ClientError(
                f"a token is not sent over plain http to {host!a}: use https, or name the host in ${PLAIN_HTTP_HOSTS}"
            )

    @property
    def headers(self) -> dict[str, str]:
        """Headers of every request."""
        headers = {"user-agent": "museworkd-client", "accept": f"{MSGPACK}, application/json", **UNENCODED}
        if self.token:
            headers["authorization"] = f"Bearer {self.token}"
        return headers

    def at(self, path: str) -> str:
        """Give the URL of an endpoint."""
        return f"{self.url.rstrip('/')}/{path}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _plain_http_hosts() -> set[str]:
    return {name.strip().lower() for name in os.environ.get(PLAIN_HTTP_HOSTS, "").split(",")} - {""}
