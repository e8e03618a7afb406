"""Git paths in Muse: every git path has a Muse path of its own, and keeps its name wherever it can."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from museworkd.client.git_paths import muse_path
from wire.paths import PathPolicy, path_problem

PIECES = [b"%", b"0", b"9", b"2", b"5", b"\t", b"\\", b"/", b".git", b"\xff", b"E", b":", b"C"]


@pytest.mark.parametrize(
    "raw",
    [b"a", b"100%", b"a%20b", b"%", b"%%", b"50%25", b"%2F", b"a%2fb", b"a%5cb", b"%41", b"src/%d.py", b"%E9",
     b"caf\xc3\xa9", b"x/C:", b"a~0123456789abcdef", b"a%00b", b"x/%unrepresentable"],
)  # fmt: skip
def test_an_ordinary_path_keeps_its_name_also_with_a_percent_sign(raw: bytes) -> None:
    expected = raw.decode() if raw != b"%E9" else "%25E9"  # what the byte E9 is escaped to
    assert muse_path(raw) == expected


@pytest.mark.parametrize(
    ("raw", "path"),
    [(b"a\tb", "a%09b"), (b"a%09b", "a%2509b"), (b"a%2509b", "a%252509b"), (b".git/x", "%2Egit/x"),
     (b"%2Egit/x", "%252Egit/x"), (b"sub/.MUSE/y", "sub/%2EMUSE/y"), (b"back\\slash", "back%5Cslash"),
     (b"C:/x", "C%3A/x"), (b"C%3A/x", "C%253A/x"), (b"x/C%3A", "x/C%3A"), (b"..", "%2E."), (b"a/./b", "a/%2E/b"),
     (b"git~1", "%67it~1"), (b".g\xe2\x80\x8cit", "%2Eg\u200cit"), (b"\xe2\x80\x8c.git", "%E2%80%8C.git")],
)  # fmt: skip
def test_a_path_that_muse_refuses_is_escaped_and_so_is_what_looks_like_it(raw: bytes, path: str) -> None:
    assert muse_path(raw) == path


def test_no_two_short_paths_share_a_name() -> None:
    seen: dict[str, bytes] = {}
    for length in range(1, 5):
        for pieces in itertools.product(PIECES, repeat=length):
            raw = b"".join(pieces)
            other = seen.setdefault(muse_path(raw), raw)
            assert other == raw, (other, raw, muse_path(raw))
            assert path_problem(muse_path(raw), PathPolicy.RELAXED) is None


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map(b"".join), st.integers(0, 300))
def test_no_path_shares_the_name_of_its_name(raw: bytes, padding: int) -> None:
    raw += b"x" * padding
    path = muse_path(raw)
    assert path_problem(path, PathPolicy.RELAXED) is None
    if path.encode() != raw:
        assert muse_path(path.encode()) != path


@pytest.mark.parametrize(
    "raw",
    [b"x" * 256, b"\xff" * 100, b"%25" * 200, b"d/" * 2100 + b"x", b"a//b", b"%2525" * 60],
    ids=lambda raw: raw[:6],
)
def test_what_is_too_long_or_has_no_name_is_named_by_its_hash(raw: bytes) -> None:
    path = muse_path(raw)
    assert path_problem(path, PathPolicy.RELAXED) is None
    assert path.encode() != raw
    assert muse_path(path.encode()) != path
    assert muse_path(raw + b"y") != path
