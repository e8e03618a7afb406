"""Codes are stable, and an error sentence never carries more of a peer's value than fits a line."""

from __future__ import annotations

import pytest

from wire.errors import Code, Refusal, malformed, shown

PROTOCOL = {
    "unauthenticated": 401, "forbidden": 403, "not_found": 404, "non_fast_forward": 409, "head_moved": 409,
    "protected_branch": 409, "too_large": 413, "quota_exceeded": 413, "unsupported_media": 415, "range_mismatch": 416,
    "malformed": 422, "bad_object_hash": 422, "bad_record_id": 422, "missing_objects": 422, "missing_parents": 422,
    "unsafe_path": 422, "bad_signature": 422, "bomb": 422, "count_mismatch": 422, "rate_limited": 429,
    "preparing": 503, "store_unavailable": 503, "index_unavailable": 503, "draining": 503,
}  # fmt: skip


@pytest.mark.parametrize(("text", "status"), PROTOCOL.items())
def test_every_code_of_the_protocol_has_its_status(text, status):
    code = Code.from_text(text)
    assert code is not None
    assert (code.text, code.status) == (text, status)


def test_codes_are_told_apart_by_their_text():
    assert len({code.text for code in Code}) == len(Code)
    assert Code.from_text("a code of the future") is None


def test_only_what_may_pass_is_retryable():
    assert not [code for code in Code if code.retryable and code.status in {401, 403, 404, 409, 413, 415, 416, 422}]
    assert all(Code.from_text(text).retryable for text, status in PROTOCOL.items() if status in {429, 503})


def test_an_error_body_has_the_members_of_the_protocol_whatever_the_facts_are():
    refusal = Refusal(Code.MISSING_OBJECTS, "two are missing", missing=["a", "b"], error="a fact of that name")
    assert refusal.body("r-1") == {
        "error": "missing_objects", "detail": "two are missing", "request_id": "r-1", "retryable": False,
        "missing": ["a", "b"],
    }  # fmt: skip


def test_malformed_is_the_refusal_of_meaningless_bytes():
    assert malformed("no", where="there").code is Code.MALFORMED


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"), (7, "7"), (1.5, "1.5"), (True, "True"), ("é\n\x1b[31m", r"'\xe9\n\x1b[31m'"),
        ([1, 2], "a list"), ({}, "a dict"), (b"secret", "a bytes"),
    ],
)  # fmt: skip
def test_a_shown_value_is_one_line_of_ascii(value, text):
    assert shown(value) == text


def test_a_shown_value_is_short():
    deep: object = []
    for _ in range(100_000):
        deep = [deep]
    assert len(shown("x" * 10_000_000)) <= 80
    assert len(shown("\U0001f600" * 1000, 20)) <= 20
    assert shown(deep) == "a list"
