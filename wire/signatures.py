"""Commit signatures (protocol §1): Ed25519 over the provenance fields, format_version 8."""

from __future__ import annotations

import base64
import binascii
import hashlib

from wire.errors import Code, Refusal
from wire.ids import Scheme, format_id
from wire.records import Commit

_KEY_BYTES = 32
_SIGNATURE_BYTES = 64
_COVERED = ("author", "agent_id", "model_id", "toolchain_id", "prompt_hash")


def signed_text(commit: Commit, commit_id_text: str) -> bytes:
    """Build the 64 hexadecimal characters a commit signature covers."""
    fields = [commit_id_text, *(_text(commit, key) for key in _COVERED)]
    return hashlib.sha256("\0".join(fields).encode("utf-8")).hexdigest().encode("ascii")


def is_signed(commit: Commit) -> bool:
    """Tell whether a commit carries a signature (an empty one counts as none)."""
    return bool(commit.raw.get("signature"))


def check_signature(commit: Commit, scheme: Scheme) -> None:
    """Verify a signed commit; an unsigned one passes.

    The commit id is signed in the text form of its record; the bare hex is accepted as well, since it names the
    same commit.

    Raises:
        Refusal: ``bad_signature`` when the signature, key or key id does not hold.
    """
    if not is_signed(commit):
        return
    shown = format_id(commit.commit_id, scheme)
    key_bytes = _decode(commit, "signer_public_key", _KEY_BYTES, shown)
    signature = _decode(commit, "signature", _SIGNATURE_BYTES, shown)
    key_id = commit.raw.get("signer_key_id")
    if key_id and key_id != "sha256:" + hashlib.sha256(key_bytes).hexdigest():
        raise _bad(shown, "its signer_key_id is not that of its key")
    for name in _COVERED:  # what is stored is what was signed (threat T7)
        value = commit.raw.get(name)
        if value is not None and (not isinstance(value, str) or "\0" in value):
            raise _bad(shown, f"its {name} is not text without NUL")
    from cryptography.exceptions import InvalidSignature  # most commits are not signed, and it is slow to begin
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    key = Ed25519PublicKey.from_public_bytes(key_bytes)
    for text in (shown, commit.commit_id.hex()):
        try:
            key.verify(signature, signed_text(commit, text))
        except InvalidSignature:
            continue
        return
    raise _bad(shown, "its signature does not verify")


def _text(commit: Commit, key: str) -> str:
    value = commit.raw.get(key)
    return value if isinstance(value, str) else ""


def _decode(commit: Commit, key: str, size: int, shown: str) -> bytes:
    text = commit.raw.get(key)
    if not isinstance(text, str):
        raise _bad(shown, f"its {key} is missing")
    text = text.removeprefix("ed25519:")
    try:
        value = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise _bad(shown, f"its {key} is not base64url") from None
    if len(value) != size:
        raise _bad(shown, f"its {key} has {len(value)} bytes instead of {size}")
    return value


def _bad(shown: str, why: str) -> Refusal:
    return Refusal(Code.BAD_SIGNATURE, f"commit {shown} is refused: {why}", id=shown)
