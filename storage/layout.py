"""Where an object's bytes are: keys of the object store, and the ``storage_uri`` that names a place.

One file per key. Blobs of the two id schemes never share a key: a plain blob may have the very bytes whose
hash is another blob's typed id.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from wire.ids import Kind, Scheme, hasher_for

_FETCH_KEY = re.compile(r"fetch/([0-9a-f]{64})\.mpack")
_JOURNAL_KEY = re.compile(r"journal/(\d{6})/\d{12}/(\d{18})-([0-9a-f]{64})\.json")
_BUCKET_ENTRIES = 10_000
_KEY = re.compile(r"(?:[a-z0-9][a-z0-9._-]*/)*[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Place:
    """Where one blob's content lies."""

    object_id: bytes
    size: int
    """Length of the content in bytes."""
    pack_id: bytes | None
    """SHA-256 of the pack that holds it, or ``None`` for a loose object."""
    offset: int
    """Of the content within the pack; 0 for a loose object."""
    pending: bool = False
    """Whether the content is still in the index alone (see ``storage.content_cache``); a loose object afterwards."""

    def key(self, scheme: Scheme) -> str:
        """Give the store key to read from."""
        return loose_key(self.object_id, scheme) if self.pack_id is None else pack_key(self.pack_id)

    def storage_uri(self, scheme: Scheme, base: str = "file:///") -> str:
        """Name the place (protocol §2); ``base`` is the store's own prefix."""
        if self.pending:
            return "pending"
        if self.pack_id is not None:
            return f"mpack://sha256:{self.pack_id.hex()}"
        return base + loose_key(self.object_id, scheme)


def loose_key(object_id: bytes, scheme: Scheme) -> str:
    """Key of a loose blob."""
    text = object_id.hex()
    return f"objects/{scheme.value}/{text[:2]}/{text[2:]}"


def pack_key(pack_id: bytes) -> str:
    """Key of a pack of blobs."""
    return f"packs/{pack_id.hex()}.mpack"


def record_pack_key(pack_id: bytes) -> str:
    """Key of a pack of canonical commits and snapshots."""
    return f"records/{pack_id.hex()}.mpack"


def fetch_pack_key(mpack_id: bytes) -> str:
    """Key of an assembled answer to a fetch; a cache entry, never the truth."""
    return f"fetch/{mpack_id.hex()}.mpack"


def fetch_pack_id(key: str) -> bytes | None:
    """Give the id of the pack whose :func:`fetch_pack_key` a key is."""
    found = _FETCH_KEY.fullmatch(key)
    return None if found is None else bytes.fromhex(found[1])


def staged_mpack_key(repo: int, mpack_id: bytes) -> str:
    """Key of an uploaded mpack that waits to be unpacked; never served, and removed by its age."""
    return f"staging/{repo}/mpack/{mpack_id.hex()}"


def staged_object_key(repo: int, object_id: bytes, scheme: Scheme) -> str:
    """Key of an uploaded object that waits to be confirmed; never served, and removed by its age."""
    return f"staging/{repo}/object/{scheme.value}/{object_id.hex()}"


def incoming_key(push: int, attempt: int) -> str:
    """Key of the copy one attempt of a push reads its upload from; nobody else writes to it."""
    return f"staging/incoming/{push}-{attempt}"


def confirming_key(token: bytes) -> str:
    """Key of the copy one confirmation reads an uploaded object from; nobody else writes to it."""
    return f"staging/incoming/{token.hex()}"


@dataclass(frozen=True, slots=True)
class JournalKey:
    """What the key of a segment of the journal says."""

    generation: int
    last: int
    """The greatest number of an entry in it."""
    digest: bytes
    """SHA-256 of its content."""


def journal_key(key: JournalKey) -> str:
    """Key of a segment of the journal."""
    return f"{journal_prefix(key.generation, key.last)}/{key.last:018d}-{key.digest.hex()}.json"


def journal_prefix(generation: int, entry: int) -> str:
    """Prefix of the segments whose last entry is about this one."""
    return f"journal/{generation:06d}/{entry // _BUCKET_ENTRIES:012d}"


def parse_journal_key(key: str) -> JournalKey | None:
    """Read what :func:`journal_key` made."""
    found = _JOURNAL_KEY.fullmatch(key)
    return None if found is None else JournalKey(int(found[1]), int(found[2]), bytes.fromhex(found[3]))


def next_journal_prefix(generation: int, entry: int) -> str:
    """Prefix of the segments that follow those of :func:`journal_prefix`."""
    return journal_prefix(generation, entry + _BUCKET_ENTRIES)


def epoch_key() -> str:
    """Key of the object that says which deployment a store belongs to."""
    return "deployment/epoch.json"


def check_key(key: str) -> str:
    """Guard a backend against keys that are not of this module's making; raises ``ValueError``."""
    if not is_key(key):
        raise ValueError(f"not a store key: {key!r}")
    return key


def is_key(text: str) -> bool:
    """Tell whether a text could be a key of this module's making."""
    return _KEY.fullmatch(text) is not None and ".." not in text


class Verifier:
    """Checks content that arrives in pieces against what its key promises."""

    def __init__(self, expected: str | None, scheme: Scheme, size: int) -> None:
        self._expected = expected
        self._hasher = None if expected is None else hasher_for(Kind.BLOB, size, scheme)

    def update(self, piece: bytes) -> None:
        """Take the next bytes."""
        if self._hasher is not None:
            self._hasher.update(piece)

    def matches(self) -> bool:
        """Tell whether the whole content is right; a key that promises nothing is always right."""
        return self._hasher is None or self._hasher.hexdigest() == self._expected


def verifier(key: str, size: int) -> Verifier:
    """Make a verifier for the whole content, ``size`` bytes, of a key."""
    parts = key.split("/")
    if parts[0] == "objects" and len(parts) == 4:
        return Verifier(parts[2] + parts[3], Scheme(parts[1]), size)
    if parts[0] in {"packs", "records", "fetch"} and len(parts) == 2:
        return Verifier(parts[1].partition(".")[0], Scheme.PLAIN, size)
    journal = parse_journal_key(key)
    if journal is not None:
        return Verifier(journal.digest.hex(), Scheme.PLAIN, size)
    return Verifier(None, Scheme.PLAIN, size)


def content_matches(key: str, content: bytes) -> bool:
    """Tell whether whole content read from a key is what the key promises."""
    check = verifier(key, len(content))
    check.update(content)
    return check.matches()
