"""AWS Signature Version 4 for requests to S3: in a header, and in a URL for others to use.

Written out because a URL is signed for each object of a push while the event loop waits: a general signer takes several
times as long. The tests hold it against botocore's.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import hmac
import re
from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote

from storage.objects.s3_credentials import Credentials

EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
LONGEST_S = 7 * 86_400
"""A signed URL lives a week at most; the service refuses longer ones."""
_ALGORITHM = "AWS4-HMAC-SHA256"
_UNSIGNED = "UNSIGNED-PAYLOAD"
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/_.~-]*")


def authorization(
    credentials: Credentials, region: str, now: dt.datetime, method: str, host: str, path: str,
    query: Mapping[str, str], headers: Mapping[str, str], body_sha256: str,
) -> dict[str, str]:  # fmt: skip
    """Give the headers of a signed request, those given among them; ``host`` is signed and not given back."""
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    signed = {name.lower(): value for name, value in headers.items()}
    signed |= {"x-amz-content-sha256": body_sha256, "x-amz-date": stamp}
    if credentials.token is not None:
        signed["x-amz-security-token"] = credentials.token
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    names, signature = _sign(
        credentials, region, stamp, scope, method, path, encoded_query(query), {**signed, "host": host}, body_sha256
    )
    signed["authorization"] = (
        f"{_ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return signed


def signed_query(
    credentials: Credentials, region: str, now: dt.datetime, method: str, host: str, path: str,
    headers: Mapping[str, str], expires_s: int, wishes: Mapping[str, str] | None = None,
) -> str:  # fmt: skip
    """Give the query that allows one request with exactly these headers; ``wishes`` are parameters of the request."""
    if not 1 <= expires_s <= LONGEST_S:
        raise ValueError(f"a signed URL lives for 1 to {LONGEST_S} seconds, not {expires_s}")
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    signed = {**{name.lower(): value for name, value in headers.items()}, "host": host}
    query = {
        "X-Amz-Algorithm": _ALGORITHM,
        "X-Amz-Credential": f"{credentials.access_key}/{scope}",
        "X-Amz-Date": stamp,
        "X-Amz-Expires": str(expires_s),
        "X-Amz-SignedHeaders": ";".join(sorted(signed)),
        **(wishes or {}),
    }
    if credentials.token is not None:
        query["X-Amz-Security-Token"] = credentials.token
    text = encoded_query(query)
    _, signature = _sign(credentials, region, stamp, scope, method, path, text, signed, _UNSIGNED)
    return f"{text}&X-Amz-Signature={signature}"


def encoded_query(query: Mapping[str, str]) -> str:
    """Write a query the way it is signed."""
    return "&".join(sorted(f"{_encoded(name)}={_encoded(value)}" for name, value in query.items()))


def encoded_path(path: str) -> str:
    """Write a path the way it is signed."""
    return path if _PLAIN_PATH.fullmatch(path) else quote(path, safe="/-_.~")


@lru_cache(maxsize=256)
def _encoded(text: str) -> str:
    return quote(text, safe="-_.~")


def _sign(
    credentials: Credentials, region: str, stamp: str, scope: str, method: str, path: str, query: str,
    headers: Mapping[str, str], body_sha256: str,
) -> tuple[str, str]:  # fmt: skip
    names = sorted(headers)
    listed = ";".join(names)
    lines = "".join(f"{name}:{' '.join(headers[name].split())}\n" for name in names)
    request = f"{method}\n{encoded_path(path)}\n{query}\n{lines}\n{listed}\n{body_sha256}"
    text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = _signing_key(credentials.secret_key, stamp[:8], region)
    return listed, hmac.digest(key, text.encode(), "sha256").hex()


@lru_cache(maxsize=8)
def _signing_key(secret_key: str, day: str, region: str) -> bytes:
    key = ("AWS4" + secret_key).encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key
