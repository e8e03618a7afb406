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
    FORBIDDEN = ("forbidden", 403, False)
    NOT_FOUND = ("not_found", 404, False)
    METHOD_NOT_ALLOWED = ("method_not_allowed", 405, False)
    REQUEST_TIMEOUT = ("request_timeout", 408, True)
    NON_FAST_FORWARD = ("non_fast_forward", 409, False)
    HEAD_MOVED = ("head_moved", 409, False)
    PROTECTED_BRANCH = ("protected_branch", 409, False)
    ALREADY_EXISTS = ("already_exists", 409, False)
    PUSH_SUPERSEDED = ("push_superseded", 409, False)
    TOO_LARGE = ("too_large", 413, False)
    QUOTA_EXCEEDED = ("quota_exceeded", 413, False)
    UNSUPPORTED_MEDIA = ("unsupported_media", 415, False)
    RANGE_MISMATCH = ("range_mismatch", 416, False)
    MALFORMED = ("malformed", 422, False)
    BAD_OBJECT_HASH = ("bad_object_hash", 422, False)
    BAD_RECORD_ID = ("bad_record_id", 422, False)
    MISSING_OBJECTS = ("missing_objects", 422, False)
    MISSING_PARENTS = ("missing_parents", 422, False)
    UNSAFE_PATH = ("unsafe_path", 422, False)
    BAD_SIGNATURE = ("bad_signature", 422, False)
    BOMB = ("bomb", 422, False)
    COUNT_MISMATCH = ("count_mismatch", 422, False)
    RATE_LIMITED = ("rate_limited", 429, True)
    INTERNAL = ("internal", 500, True)
    PREPARING = ("preparing", 503, True)
    STORE_UNAVAILABLE = ("store_unavailable", 503, True)
    INDEX_UNAVAILABLE = ("index_unavailable", 503, True)
    STORE_DAMAGED = ("store_damaged", 503, False)
    DRAINING = ("draining", 503, True)
    BUSY = ("busy", 503, True)

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


def malformed(detail: str, **facts: object) -> Refusal:
    """Build the most common refusal: the bytes do not mean anything."""
    return Refusal(Code.MALFORMED, detail, **facts)
