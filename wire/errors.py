"""The closed set of refusals a client can meet, and the exception that carries one.

What lives here: stable codes, their HTTP status, whether trying again can help. What must not: wording for
particular situations (each raiser writes its own sentence) and anything about HTTP beyond the status hint.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping


class Code(enum.Enum):
    """A stable error code (protocol §11): extended, never renamed."""

    UNAUTHENTICATED = ("unauthenticated", 401, False)
    """No token, or one that is unknown, revoked or over its time."""
    FORBIDDEN = ("forbidden", 403, False)
    """The identity may read here and not do this."""
    NOT_FOUND = ("not_found", 404, False)
    """There is no such thing, or none that the identity may read."""
    METHOD_NOT_ALLOWED = ("method_not_allowed", 405, False)
    """The path exists, not for this method; `Allow` lists those it has."""
    REQUEST_TIMEOUT = ("request_timeout", 408, True)
    """The body came slower than `min_body_rate`, or not at all."""
    NON_FAST_FORWARD = ("non_fast_forward", 409, False)
    """The branch's head is no ancestor of the new one; fetch and merge first, or force."""
    HEAD_MOVED = ("head_moved", 409, False)
    """The branch is not where `expected_head` says: somebody else moved it meanwhile."""
    PROTECTED_BRANCH = ("protected_branch", 409, False)
    """The branch's protection forbids this move."""
    ALREADY_EXISTS = ("already_exists", 409, False)
    """The name is taken."""
    PUSH_SUPERSEDED = ("push_superseded", 409, False)
    """A newer attempt of the same push took over; its answer counts."""
    TOO_LARGE = ("too_large", 413, False)
    """Something is above a named limit; the sentence tells which."""
    QUOTA_EXCEEDED = ("quota_exceeded", 413, False)
    """The quota of the repository's owner would be exceeded."""
    UNSUPPORTED_MEDIA = ("unsupported_media", 415, False)
    """The Content-Type or Content-Encoding is none that this request takes."""
    RANGE_MISMATCH = ("range_mismatch", 416, False)
    """The range asked for is outside the content."""
    MALFORMED = ("malformed", 422, False)
    """The bytes or values do not follow the protocol."""
    BAD_OBJECT_HASH = ("bad_object_hash", 422, False)
    """An object does not hash to its id, or its content is damaged; `object_id` names it."""
    BAD_RECORD_ID = ("bad_record_id", 422, False)
    """A commit or snapshot does not hash to its id."""
    MISSING_OBJECTS = ("missing_objects", 422, False)
    """Blobs of the new snapshots are neither in the push nor in this repository; `missing` lists up to 100."""
    MISSING_PARENTS = ("missing_parents", 422, False)
    """Parents, snapshots or delta bases are neither in the push nor in this repository; `missing` lists up to 100."""
    UNSAFE_PATH = ("unsafe_path", 422, False)
    """A path cannot be checked out safely everywhere, or collides with another one."""
    BAD_SIGNATURE = ("bad_signature", 422, False)
    """A commit is signed, and the signature does not hold."""
    BOMB = ("bomb", 422, False)
    """Compressed content inflates beyond its limit, or asks for too large a window."""
    COUNT_MISMATCH = ("count_mismatch", 422, False)
    """The end frame counts other numbers than were received."""
    RATE_LIMITED = ("rate_limited", 429, True)
    """Too many requests of this identity; `Retry-After` says when to come again."""
    INTERNAL = ("internal", 500, True)
    """A mistake of the server; its log has the details under the request id."""
    PREPARING = ("preparing", 503, True)
    """The answer is being made; ask again."""
    STORE_UNAVAILABLE = ("store_unavailable", 503, True)
    """The object store cannot answer now."""
    INDEX_UNAVAILABLE = ("index_unavailable", 503, True)
    """The database cannot answer now."""
    STORE_DAMAGED = ("store_damaged", 503, False)
    """A stored object is missing or damaged, and the answer would not be whole; the sentence names it."""
    DRAINING = ("draining", 503, True)
    """The server is stopping and takes nothing new."""
    BUSY = ("busy", 503, True)
    """The server does as much as it may at once."""

    def __init__(self, text: str, status: int, retryable: bool) -> None:
        self.text = text
        self.status = status
        self.retryable = retryable

    @classmethod
    def from_text(cls, text: str) -> Code | None:
        """Find a code by its wire text; ``None`` for one this version does not know."""
        return _BY_TEXT.get(text)


_BY_TEXT = {code.text: code for code in Code}

LISTED_FACTS = 100
"""How many ids an error lists at most (protocol §11: ``missing_objects`` lists up to 100)."""


class Refusal(Exception):
    """An expected refusal: the request is answered with a code and one sentence, nothing is broken here.

    Args:
        code: the stable code.
        detail: one sentence for a person.
        facts: extra machine-readable members of the error body (JSON-able values).
    """

    def __init__(self, code: Code, detail: str, **facts: object) -> None:
        super().__init__(f"{code.text}: {detail}")
        self.code = code
        self.detail = detail
        self.facts: Mapping[str, object] = facts

    def body(self, request_id: str) -> dict[str, object]:
        """Give the error envelope of protocol §11."""
        return {
            **self.facts,
            "error": self.code.text,
            "detail": self.detail,
            "request_id": request_id,
            "retryable": self.code.retryable,
        }


def shown(value: object, limit: int = 80) -> str:
    """Show a peer's value in an error sentence: one line of ASCII, cut; of what is no plain value only the type."""
    if isinstance(value, str):
        text = ascii(value[:limit])
    elif value is None or isinstance(value, bool | int | float):
        text = ascii(value)
    else:
        text = f"a {type(value).__name__}"
    return text if len(text) <= limit else text[: limit - 1] + "…"


def malformed(detail: str, **facts: object) -> Refusal:
    """Build the most common refusal: the bytes do not mean anything."""
    return Refusal(Code.MALFORMED, detail, **facts)
