"""Ids: SHA-256 digests in two id schemes (protocol §1).

Inside the server an id is its 32 raw bytes; the text form exists on the wire only and is parsed strictly
here, so that an upper-case, short, prefixed or foreign-scheme id never becomes a digest.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from wire.errors import malformed, shown

if TYPE_CHECKING:
    from hashlib import _Hash

DIGEST_BYTES = 32
_PREFIX = "sha256:"
_HEX_CHARS = 64


class Scheme(enum.Enum):
    """How a repository forms its ids; fixed by its first commit and never mixed."""

    TYPED = "typed"
    """``sha256:`` + hex over ``<kind> <len>\\0`` + bytes: the current clients."""
    PLAIN = "plain"
    """bare hex over the bytes alone: the public 0.1.x client."""


class Kind(enum.Enum):
    """What an id names; in the typed scheme it is part of what is hashed."""

    BLOB = "blob"
    SNAPSHOT = "snapshot"
    COMMIT = "commit"
    TAG = "tag"
    """Only in the canonical form of a stored record: a tag's id is not a hash."""
    RELEASE = "release"
    """Like a tag."""


def parse_id(text: object, scheme: Scheme, what: str = "id") -> bytes:
    """Read the text form of an id of one scheme.

    Args:
        text: whatever the peer sent.
        scheme: the only scheme accepted.
        what: the field's name, for the error sentence.

    Returns:
        The 32-byte digest.

    Raises:
        Refusal: ``malformed`` when it is anything but that scheme's exact text form.
    """
    found = _digest_of(text)
    if found is None:
        raise malformed(f"{what} is not an id: {shown(text)}")
    if found[0] is not scheme:
        raise malformed(f"{what} is an id of the {found[0].value} scheme, this repository's is {scheme.value}: {text}")
    return found[1]


def parse_ids(texts: Sequence[object], scheme: Scheme) -> list[bytes] | None:
    """Read many ids of one scheme at once, as strictly as :func:`parse_id`; ``None`` when any of them is none."""
    prefix = _PREFIX if scheme is Scheme.TYPED else ""
    start = len(prefix)
    if set(map(type, texts)) - {str} or set(map(len, cast("Sequence[str]", texts))) - {start + _HEX_CHARS}:
        return None
    named = cast("Sequence[str]", texts)
    if start and not all(text.startswith(prefix) for text in named):
        return None
    joined = "".join([text[start:] for text in named] if start else named)
    try:
        data = bytes.fromhex(joined)
    except ValueError:
        return None
    if data.hex() != joined:  # as in one: upper case and spaces
        return None
    return [data[at : at + DIGEST_BYTES] for at in range(0, len(data), DIGEST_BYTES)]


def parse_any_id(text: object, what: str = "id") -> tuple[Scheme, bytes]:
    """Read an id of either scheme; raises ``malformed`` like :func:`parse_id`."""
    found = _digest_of(text)
    if found is None:
        raise malformed(f"{what} is not an id: {shown(text)}")
    return found


def format_id(digest: bytes, scheme: Scheme) -> str:
    """Write a digest in the text form of a scheme."""
    return _PREFIX + digest.hex() if scheme is Scheme.TYPED else digest.hex()


def hash_bytes(kind: Kind, content: bytes | bytearray | memoryview, scheme: Scheme) -> bytes:
    """Compute an id's digest from the complete bytes it names (protocol §1)."""
    hasher = hasher_for(kind, len(content), scheme)
    hasher.update(content)
    return hasher.digest()


def hasher_for(kind: Kind, size: int, scheme: Scheme) -> _Hash:
    """Start an id's hash; the caller feeds exactly ``size`` bytes in any number of pieces."""
    if scheme is Scheme.TYPED:
        return hashlib.sha256(b"%s %d\0" % (kind.value.encode(), size))
    return hashlib.sha256()


def _digest_of(text: object) -> tuple[Scheme, bytes] | None:
    if not isinstance(text, str):
        return None
    scheme = Scheme.PLAIN
    if text.startswith(_PREFIX):
        scheme, text = Scheme.TYPED, text[len(_PREFIX) :]
    if len(text) != _HEX_CHARS:
        return None
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        return None
    return (scheme, digest) if digest.hex() == text else None  # fromhex also takes upper case and spaces
