"""Ids that are not the hash of what they name: what very old tools made (protocol §1, the setting ``verify``).

Such an id proves nothing, so it never becomes a key that repositories share. A commit or snapshot that comes under one
is kept under a stand-in of its own repository: a tag that no hash begins with, and a hash of the repository and the
id as it was claimed. A snapshot's stand-in is stored as no change at all to the snapshot that has the true id of the
same content; whatever is stored as changes to a snapshot builds on true ids only.
"""

from __future__ import annotations

import hashlib
import re
import uuid

from wire.ids import DIGEST_BYTES

CLAIMED = "$claimed_id"
"""Member of a snapshot's extra fields, in the index and the store, with the id it came under."""
_TAG = b"opaque id \0\0"
_PATTERN = re.compile(f"{_TAG.hex()}[0-9a-f]{{{2 * (DIGEST_BYTES - len(_TAG))}}}")


def opaque_id(repo_id: uuid.UUID, claimed: bytes) -> bytes:
    """Give the stand-in of an id that a repository takes as it is."""
    digest = hashlib.sha256(b"museworkd opaque id\0" + repo_id.bytes + claimed).digest()
    return _TAG + digest[: DIGEST_BYTES - len(_TAG)]


def is_opaque(digest: bytes) -> bool:
    """Tell whether a digest is a stand-in; no hash is."""
    return digest.startswith(_TAG)


def opaque_ids_in(text: str) -> list[bytes]:
    """Give the stand-ins that a text names."""
    return [bytes.fromhex(found) for found in _PATTERN.findall(text)]
