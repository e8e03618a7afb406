"""Which paths and branch names are safe on every client system (protocol §1).

Two grades: what could leave the work tree or reach a client's own metadata is refused always
(:func:`check_path`); what merely cannot be checked out everywhere is the portability part, which a
repository may relax. Collisions between paths need the whole manifest and live in ``wire.manifest``.
"""

from __future__ import annotations

import enum
import functools
import re
import unicodedata

from wire.errors import Code, Refusal, malformed
from wire.limits import DEFAULT_LIMITS, Limits


class PathPolicy(enum.Enum):
    """How strict a repository is about paths."""

    PORTABLE = "portable"
    """Every path can be checked out on Linux, macOS and Windows. The default."""
    RELAXED = "relaxed"
    """The portability part is off; traversal and metadata names stay refused."""


_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_DRIVE = re.compile(r"[A-Za-z]:")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])(?:[. ].*)?\Z")
_METADATA_NAMES = frozenset({".git", ".muse"})
_METADATA_SHORT = re.compile(r"(?:git|muse)~[0-9]+\Z|(?:gi|mu)[0-9a-f]{4}~[0-9]+\Z")
_IGNORABLE = frozenset(map(chr, [0x00AD, 0x034F, 0x061C, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0])) | frozenset(
    chr(c) for first, last in [(0x180B, 0x180F), (0x200B, 0x200F), (0x202A, 0x202E), (0x2060, 0x206F),
                               (0xFE00, 0xFE0F), (0xFFF0, 0xFFFB), (0x1BCA0, 0x1BCA3),
                               (0x1D173, 0x1D17A), (0xE0000, 0xE0FFF)]
    for c in range(first, last + 1)
) | {"\ufeff"}  # fmt: skip
"""Default-ignorable code points: HFS+ and some shells drop them when comparing names."""


def fold(path: str) -> str:
    """Reduce a path to what a case-insensitive, normalising file system sees."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def check_path(path: object, policy: PathPolicy, limits: Limits = DEFAULT_LIMITS) -> str:
    """Check one manifest or directory path.

    Raises:
        Refusal: ``unsafe_path`` that says which rule it breaks.
    """
    if not isinstance(path, str):
        raise malformed("a path is not text")
    reason = _path_problem(path, policy, limits)
    if reason is not None:
        raise Refusal(Code.UNSAFE_PATH, f"the path {path[:200]!a} {reason}", path=path[:200])
    return path


def path_problem(path: str, policy: PathPolicy, limits: Limits = DEFAULT_LIMITS) -> str | None:
    """Say why a path would be refused, or ``None``: for importers that rename instead of failing."""
    return _path_problem(path, policy, limits)


def _path_problem(path: str, policy: PathPolicy, limits: Limits) -> str | None:
    if not path:
        return "is empty"
    try:
        size = len(path.encode("utf-8"))
    except UnicodeEncodeError:
        return "is not valid UTF-8"
    if size > limits.path_bytes:
        return f"is {size} bytes long, the limit is {limits.path_bytes}"
    if _DRIVE.match(path):
        return "starts with a drive letter"
    for component in path.split("/"):
        reason = _component_problem(component, policy, limits.path_component_bytes)
        if reason is not None:
            return reason
    return None


@functools.lru_cache(maxsize=4096)
def _component_problem(name: str, policy: PathPolicy, limit: int) -> str | None:
    if name == "":
        return "has an empty component"
    if name in {".", ".."}:
        return f"has the component {name!r}"
    if "\\" in name:
        return "has a backslash"
    if _CONTROL.search(name):
        return "has a control character"
    if len(name.encode("utf-8")) > limit:
        return f"has a component of more than {limit} bytes"
    if _is_metadata(name):
        return "names a client's own metadata (.muse or .git)"
    return _portability_problem(name) if policy is PathPolicy.PORTABLE else None


def _is_metadata(name: str) -> bool:
    visible = "".join(c for c in name if c not in _IGNORABLE) if not name.isascii() else name
    folded = fold(unicodedata.normalize("NFKC", visible)) if not visible.isascii() else visible.lower()
    stem = folded.partition(":")[0].rstrip(". ")  # NTFS drops trailing dots and spaces and serves .git::$DATA
    return stem in _METADATA_NAMES or _METADATA_SHORT.match(stem) is not None


def _portability_problem(name: str) -> str | None:
    if ":" in name:
        return "has a colon (a drive or stream on Windows)"
    if name[-1] in ". ":
        return "has a component that ends in a dot or space"
    if _RESERVED.match(name.lower()):
        return "has a component that is reserved on Windows"
    if not name.isascii() and unicodedata.normalize("NFC", name) != name:
        return "is not in Unicode normal form C"
    return None


_BRANCH_FORBIDDEN = re.compile(r"[\x00-\x20\x7f-\x9f\\~^:?*\[]|\.\.|//|@\{")


def check_branch_name(name: object, limits: Limits = DEFAULT_LIMITS) -> str:
    """Check a branch name (protocol §1); raises ``malformed`` with the rule it breaks."""
    if not isinstance(name, str):
        raise malformed("a branch name is not text")
    try:
        size = len(name.encode("utf-8"))
    except UnicodeEncodeError:
        raise malformed("a branch name is not valid UTF-8") from None
    if not 1 <= size <= limits.branch_name_bytes:
        raise malformed(f"a branch name has 1 to {limits.branch_name_bytes} bytes, this one {size}")
    shown = ascii(name)
    found = _BRANCH_FORBIDDEN.search(name)
    if found:
        raise malformed(f"the branch name {shown} must not contain {found.group()!r}")
    if name[0] in "-./":
        raise malformed(f"the branch name {shown} must not start with {name[0]!r}")
    if name[-1] in "./" or name.endswith(".lock"):
        raise malformed(f"the branch name {shown} must not end in '.', '/' or '.lock'")
    return name
