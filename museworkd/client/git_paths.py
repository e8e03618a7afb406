"""Git paths in Muse: nearly always the same, escaped where Muse cannot have them, and never two git paths in one.

Git allows any byte but NUL; a Muse path is UTF-8 without backslashes, control characters and the names of client
metadata. What does not fit is percent-escaped, byte by byte, component by component. A component that merely contains
``%`` keeps its name, unless it spells exactly what another one is escaped to: then its ``%`` is escaped too. So the
escaped form can always be read back, and no two components share one:

* a component equal to its Muse name is not what unescaping it would be escaped to;
* an escaped name unescapes to what it was made of;
* a name too long for a component ends in ``%~`` and its hash, which neither of the others does.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from hashlib import sha256

from wire.limits import DEFAULT_LIMITS
from wire.paths import PathPolicy, path_problem

_ESCAPED = re.compile(rb"%([0-9A-F]{2})")
_HASHED = re.compile(r".*%~[0-9a-f]{64}\Z")
_HASH_MARK = "%~"
_ELSEWHERE = "%unrepresentable"
"""First component of what has no path: too long as a whole, or with an empty component."""
_ANY_LENGTH = dataclasses.replace(DEFAULT_LIMITS, path_bytes=1 << 31, path_component_bytes=1 << 31)


@functools.lru_cache(maxsize=131_072)
def muse_path(raw: bytes) -> str:
    """Give the Muse path for a git path; equal to it whenever that is possible, and different for every git path."""
    components = raw.split(b"/")
    if all(components):
        path = "/".join(_component(component, first=not number) for number, component in enumerate(components))
        if path_problem(path, PathPolicy.RELAXED) is None:
            return path
    return f"{_ELSEWHERE}/{sha256(raw).hexdigest()}"


def is_portable(path: str) -> bool:
    """Tell whether a path passes the default policy of a server."""
    return path_problem(path, PathPolicy.PORTABLE) is None


@functools.lru_cache(maxsize=131_072)
def _component(raw: bytes, *, first: bool) -> str:
    """Give a component's Muse name. Only a path's first component can be taken for a drive."""
    if len(raw) <= DEFAULT_LIMITS.path_component_bytes:
        name = raw.decode("utf-8", "replace")
        kept = name.encode() == raw and _sound(name, first=first)
        kept = kept and not _HASHED.match(name) and not (first and name == _ELSEWHERE)
        if kept and not _is_an_escape(raw, name, first=first):
            return name
    return _shortened(_escape(raw, first=first), raw)


def _is_an_escape(raw: bytes, name: str, *, first: bool) -> bool:
    """Tell whether another component has this very name in Muse; only the unescaped one can."""
    origin = _ESCAPED.sub(lambda match: bytes([int(match.group(1), 16)]), raw)
    return origin != raw and b"\0" not in origin and b"/" not in origin and _component(origin, first=first) == name


def _sound(name: str, *, first: bool) -> bool:
    return path_problem(name if first else f"x/{name}", PathPolicy.RELAXED, _ANY_LENGTH) is None


def _escape(raw: bytes, *, first: bool) -> str:
    out = ""
    for at, part in enumerate(raw.decode("utf-8", "surrogateescape")):
        code = ord(part)
        control = code < 0x20 or 0x7F <= code <= 0x9F
        if 0xDC80 <= code <= 0xDCFF or control or part in "\\%" or (first and at == 1 and part == ":"):
            out += _percent(part)
        else:
            out += part
    return out if _sound(out, first=first) else _percent(out[0]) + out[1:]  # a metadata name: never begins with %


def _percent(part: str) -> str:
    return "".join(f"%{byte:02X}" for byte in part.encode("utf-8", "surrogateescape"))


def _shortened(name: str, raw: bytes) -> str:
    most = DEFAULT_LIMITS.path_component_bytes
    encoded = name.encode()
    if len(encoded) <= most:
        return name
    mark = _HASH_MARK + sha256(raw).hexdigest()
    return encoded[: most - len(mark)].decode(errors="ignore") + mark
