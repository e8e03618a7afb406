"""Every rule for paths and branch names, by example (protocol §1, threats T10, T11, T29)."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.chunkings import examples
from tests.unit.refusals import MIB, memory_below, refused
from wire.errors import Code
from wire.limits import Limits
from wire.paths import PathPolicy, check_branch_name, check_path, fold, path_problem

SAFE = [
    "a", "README.md", "src/main.py", "a b/c d", ".hidden", "..a", "a..b", "...a", "a/..b/c", "-rf", "~", "$HOME",
    "%2e%2e", "a&b;c|d", "'quoted'", "ünïcödé", "日本語/ファイル", "\U0001f600.txt", "git", "muse", ".github",
    ".gitignore", ".gitmodules", ".museum", ".muserc", "x.git", "a.git/b", ".git-old", "git~", "git~x", "xgit~1",
    "git~1.txt", "gi12345~1", "console", "com", "com10", "lpt", "nul1", "auxiliary/x", "xcon", "a.con", "prn_",
    "a\u200bb", "\u2028", " leading", "a" * 255, "ü" * 127, "/".join(["d" * 255] * 16), "sha256",
    "dir", "\u00c5ngstr\u00f6m",
]  # fmt: skip

ALWAYS_REFUSED = {
    "empty": ["", "/", "//", "a//b", "/a", "a/", "a/b/"],
    "absolute": ["/etc/passwd", "//server/share", "///"],
    "dots": [".", "..", "../a", "a/..", "a/../b", "./a", "a/.", "a/./b", "../../../etc/passwd"],
    "backslash": ["\\", "a\\b", "..\\a", "a/..\\..\\b", "\\\\server\\share", "C:\\x"],
    "control": ["\0", "a\0b", "a\nb", "a\tb", "\x1b[31m", "a\x7f", "a\x80", "a/\x9f/b", "a\r", "x/\x01"],
    "drive": ["C:", "c:/x", "C:x", "z:a/b"],
    "length": ["a" * 256, "x/" + "b" * 256 + "/c", "ü" * 128, "/".join(["d" * 255] * 17), "x" * 4097],
    "not UTF-8": ["\ud800", "a/\udcff", "a\udfffb/c"],
    "metadata": [".git", ".muse", ".git/config", "a/.git/hooks/post-checkout", "a/b/.muse", ".muse/refs"],
    "metadata by case": [".GIT", ".Git/x", "a/.gIt", ".MUSE", ".Muse/x", "\uff0e\uff47\uff49\uff54", ".\uff2duse"],
    "metadata by ignorable characters": [
        ".g\u200cit", ".\u200dgit", ".gi\u200et", ".git\u200f", ".\u202agit", ".g\u202eit", ".git\ufeff", "\ufeff.git",
        ".mu\u2060se", ".m\u00aduse", ".git\u2063/x", ".gi\u034ft", ".\U000e0001git", ".g\ufe0fit", ".muse\u180e",
        ".G\u200dI\u200cT", "a/.mu\u115fse", ".git\u3164", "g\u200cit~1", ".g\U0001bca0it", ".muse\U0001d173",
    ],
    "metadata by NTFS short names": [
        "git~1", "GIT~1", "Git~2", "git~10", "muse~1", "MUSE~1/x", "a/git~1", "gi7eb2~1", "GI7EB2~1", "mu1f3a~2",
    ],
    "metadata by NTFS dots, spaces and streams": [
        ".git.", ".git ", ".git. . ", ".muse..", ".git::$INDEX_ALLOCATION", ".git:x", ".GIT::$DATA", ".muse :x",
        "git~1.", "git~1 ", "git~1::$DATA",
    ],
}  # fmt: skip

PORTABILITY = {
    "stream": ["ab:c", "file.txt::$DATA", "a/b:c", ":", "dir:/x"],
    "trailing dot or space": ["a.", "a ", "a/b.", "dir./x", "dir /x", "a. .", "...", " ", "x.. "],
    "reserved": [
        "con", "CON", "Con.txt", "prn", "aux.c", "nul", "NUL.tar.gz", "com1", "COM9.log", "lpt1", "LPT9", "a/aux/b",
        "com\u00b9", "lpt\u00b3.x", "conin$", "CONOUT$", "con .txt", "nul. x", "src/Aux.h", "com0",
    ],
    "not NFC": ["e\u0301", "a/A\u030angstrom", "\u212b", "\u1112\u1161\u11ab"],
}  # fmt: skip

REFUSED_BRANCHES = {
    "length": ["", "a" * 256, "ü" * 128],
    "control": ["a\0", "a\nb", "\t", "a\x1b[0m", "a\x7f", "a\x80b", "\x9f"],
    "space": [" ", "a b", " a", "a "],
    "punctuation": ["a\\b", "a~1", "a^", "a:b", "a?", "a*", "a[b", "refs/heads/*", "a@{1}", "@{u}", "@{"],
    "dots": ["a..b", "..", "../x", "a/../b"],
    "slashes": ["a//b", "//", "/a", "a/", "/"],
    "first character": ["-a", "-", ".a", ".", "--upload-pack=x"],
    "last characters": ["a.", "a.lock", ".lock", "x/y.lock", "a/."],
    "not UTF-8": ["\ud800", "a\udcff"],
    "not text": [None, 5, b"main", ["main"], True],
}
BRANCHES = [
    "main", "feature/x", "a/b/c", "v1.2.3", "x.locked", "a.lock/b", "lock", "@", "a@b", "a@", "{a}", "a}", "]", "a]b",
    "(x)", "é", "日本", "\U0001f600", "a-", "a-.b", "HEAD", "refs/heads/main", "a" * 255, "ü" * 127, "$(x)", "'a'",
    "a;b", "%00", "a=b", "#1", "main\u200b",
]  # fmt: skip


def listed(groups):
    return [pytest.param(text, id=f"{rule}-{ascii(text)[:60]}") for rule, texts in groups.items() for text in texts]


@pytest.mark.parametrize("path", SAFE, ids=lambda path: ascii(path)[:60])
@pytest.mark.parametrize("policy", PathPolicy)
def test_a_safe_path_is_accepted(path, policy):
    assert check_path(path, policy) == path
    assert path_problem(path, policy) is None


@pytest.mark.parametrize("path", listed(ALWAYS_REFUSED))
@pytest.mark.parametrize("policy", PathPolicy)
def test_an_unsafe_path_is_refused_under_every_policy(path, policy):
    with refused(Code.UNSAFE_PATH):
        check_path(path, policy)
    assert path_problem(path, policy)


@pytest.mark.parametrize("path", listed(PORTABILITY))
def test_a_path_that_is_not_portable_is_refused_unless_the_repository_relaxes_it(path):
    with refused(Code.UNSAFE_PATH):
        check_path(path, PathPolicy.PORTABLE)
    assert check_path(path, PathPolicy.RELAXED) == path


@pytest.mark.parametrize("rule", [rule for rule in ALWAYS_REFUSED if rule not in {"absolute", "drive"}])
@pytest.mark.parametrize("place", ["{}/x", "x/{}", "x/{}/y"])
def test_a_rule_holds_for_every_component(rule, place):
    for bad in ALWAYS_REFUSED[rule]:
        for policy in PathPolicy:
            with refused(Code.UNSAFE_PATH):
                check_path(place.format(bad), policy)


@pytest.mark.parametrize("path", [None, 5, b"a", ["a"], {"a": 1}], ids=ascii)
def test_what_is_not_text_is_no_path(path):
    with refused(Code.MALFORMED):
        check_path(path, PathPolicy.PORTABLE)


def test_lengths_are_counted_in_bytes_and_the_limits_are_inclusive():
    limits = Limits(path_bytes=10, path_component_bytes=4)
    for path in ("abcd/efgh", "üü/üü", "abcd/efg/i"):
        check_path(path, PathPolicy.PORTABLE, limits)
    for path in ("abcde", "üüü", "a/bcdef", "ab/cd/ef/gh", "ü/ü/ü/ü"):
        with refused(Code.UNSAFE_PATH):
            check_path(path, PathPolicy.PORTABLE, limits)


def test_a_refusal_shows_a_path_escaped_and_short():
    with memory_below(16 * MIB), refused(Code.UNSAFE_PATH) as caught:
        check_path("\x1b[31m" * 100_000, PathPolicy.PORTABLE)
    assert len(caught.value.detail) < 1500
    assert "\x1b" not in caught.value.detail
    assert len(caught.value.facts["path"]) <= 200


@given(st.text(max_size=20))
@examples(300)
def test_an_accepted_path_never_leaves_the_tree_nor_reaches_metadata(path):
    for policy in PathPolicy:
        if path_problem(path, policy) is not None:
            continue
        for part in path.split("/"):
            assert part not in {"", ".", ".."}
            assert not set(part) & set("\\\0\n\x7f")
            assert part.lower() not in {".git", ".muse"}
            assert len(part.encode()) <= 255
        if policy is PathPolicy.PORTABLE:
            assert unicodedata.is_normalized("NFC", path)
            assert ":" not in path


@given(st.text(max_size=20))
@examples(200)
def test_what_is_portable_is_fine_when_relaxed(path):
    if path_problem(path, PathPolicy.PORTABLE) is None:
        assert path_problem(path, PathPolicy.RELAXED) is None


@pytest.mark.parametrize(
    "paths",
    [
        ["README", "readme", "ReadMe"], ["Stra\u00dfe", "STRASSE", "strasse"],
        ["\u00e9", "e\u0301", "\u00c9", "E\u0301"],
        ["\u00c5", "\u212b", "a\u030a"], ["\u03c3", "\u03c2", "\u03a3"], ["\ufb01le", "file"], ["\u1e9e", "ss"],
    ],
    ids=ascii,
)  # fmt: skip
def test_folding_makes_paths_equal_that_one_file_system_may_not_tell_apart(paths):
    assert len({fold(path) for path in paths}) == 1


@given(st.text(max_size=12))
@examples(200)
def test_folding_again_changes_nothing(path):
    assert fold(fold(path)) == fold(path)


@pytest.mark.parametrize("name", BRANCHES, ids=ascii)
def test_a_sound_branch_name_is_accepted(name):
    assert check_branch_name(name) == name


@pytest.mark.parametrize("name", listed(REFUSED_BRANCHES))
def test_an_unsound_branch_name_is_refused(name):
    with refused(Code.MALFORMED) as caught:
        check_branch_name(name)
    assert caught.value.detail.isascii()
    assert caught.value.detail.isprintable()
    assert len(caught.value.detail) < 1500


def test_the_length_of_a_branch_name_has_a_limit():
    assert check_branch_name("ab", Limits(branch_name_bytes=2)) == "ab"
    with refused(Code.MALFORMED):
        check_branch_name("abc", Limits(branch_name_bytes=2))
    with memory_below(32 * MIB), refused(Code.MALFORMED):
        check_branch_name("x" * 5_000_000)
