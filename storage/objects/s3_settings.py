"""Where an S3-compatible store is, and how requests to it are addressed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from urllib.parse import urlsplit

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,61}[A-Za-z0-9]")
_PREFIX = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]*/)*[A-Za-z0-9][A-Za-z0-9._-]*")
_REGION = re.compile(r"[A-Za-z0-9-]{1,64}")
_STANDARD_PORTS = {"http": 80, "https": 443}


class Addressing(Enum):
    """Where the bucket's name stands in a URL."""

    PATH = "path"
    HOST = "host"


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and leading path of one of the store's addresses."""

    scheme: str
    host: str
    """With its port, unless that is the scheme's own."""
    path: str
    """Empty, or a slash and the bucket's name."""

    @property
    def url(self) -> str:
        """The address as text, without a slash at its end."""
        return f"{self.scheme}://{self.host}{self.path}"


@dataclass(frozen=True, slots=True)
class S3Settings:
    """One bucket, or a part of one."""

    bucket: str
    prefix: str = ""
    """Empty, or what stands before every key: path segments without a slash at either end."""
    endpoint: str = ""
    """``http(s)://host[:port]`` as the daemon reaches it; empty: Amazon's, of the region."""
    public_endpoint: str = ""
    """As clients reach it, for signed URLs; empty: the same."""
    region: str = "us-east-1"
    addressing: Addressing = Addressing.PATH
    ca_file: Path | None = None
    """PEM certificates to trust beside the system's."""
    call_timeout_s: float = 60.0
    connect_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        """Refuse with ``ValueError`` what could not be put into a URL as it is."""
        if not _BUCKET.fullmatch(self.bucket):
            raise ValueError(f"not a bucket's name: {self.bucket!r}")
        if self.prefix and (not _PREFIX.fullmatch(self.prefix) or ".." in self.prefix):
            raise ValueError(f"not a prefix: {self.prefix!r}; segments of letters, digits, '.', '_' and '-'")
        if not _REGION.fullmatch(self.region):
            raise ValueError(f"not a region: {self.region!r}")
        for endpoint in (self.endpoint, self.public_endpoint):
            _check_endpoint(endpoint)

    @property
    def origin(self) -> Origin:
        """The address the daemon uses."""
        return self._origin(self.endpoint or f"https://s3.{self.region}.amazonaws.com")

    @property
    def public_origin(self) -> Origin:
        """The address clients use."""
        return self._origin(self.public_endpoint) if self.public_endpoint else self.origin

    def full_key(self, key: str) -> str:
        """Give the key within the bucket."""
        return f"{self.prefix}/{key}" if self.prefix else key

    def _origin(self, endpoint: str) -> Origin:
        parts = urlsplit(endpoint)
        host = (parts.hostname or "").lower()
        host = f"[{host}]" if ":" in host else host
        if self.addressing is Addressing.HOST:
            host = f"{self.bucket}.{host}"
        if parts.port not in {None, _STANDARD_PORTS[parts.scheme]}:
            host += f":{parts.port}"
        return Origin(parts.scheme, host, f"/{self.bucket}" if self.addressing is Addressing.PATH else "")


def parse_url(url: str) -> tuple[str, str]:
    """Give bucket and prefix of ``s3://bucket/prefix``; raises ``ValueError``."""
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        raise ValueError(f"not an s3://bucket/prefix: {url!r}")
    return parts.netloc, parts.path.strip("/")


def _check_endpoint(endpoint: str) -> None:
    if not endpoint:
        return
    try:
        parts = urlsplit(endpoint)
        sound = parts.scheme in _STANDARD_PORTS and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or parts.path.strip("/") or parts.query or parts.fragment or parts.username is not None:
        raise ValueError(f"not an endpoint: {endpoint!r}; http(s)://host[:port]")
