"""Git paths in Muse: nearly always the same, escaped where Muse cannot have them.

Git allows any byte but NUL; a Muse path is UTF-8 without backslashes, control characters and the names of client
metadata. What does not fit is percent-escaped, byte by byte, and noted, so that nothing is lost and the way back
is known.
"""

from __future__ import annotations

import functools
from hashlib import sha256

from wire.limits import DEFAULT_LIMITS
from wire.paths import PathPolicy, path_problem

_MARK_BYTES = 16


@functools.lru_cache(maxsize=131_072)
def muse_path(raw: bytes) -> str:
    """Give the Muse path for a git path; equal to it whenever that is possible."""
    try:
        path = raw.decode("utf-8")
    except UnicodeDecodeError:
        path = ""
    if path and path_problem(path, PathPolicy.RELAXED) is None:
        return path
    escaped = "/".join(_escape(component) for component in raw.split(b"/"))
    if escaped[1:2] == ":":
        escaped = escaped.replace(":", "%3A", 1)
    if path_problem(escaped, PathPolicy.RELAXED) is None:
        return escaped
    return f"%unrepresentable/{sha256(raw).hexdigest()}"


def is_portable(path: str) -> bool:
    """Tell whether a path passes the default policy of a server."""
    return path_problem(path, PathPolicy.PORTABLE) is None


def _escape(component: bytes) -> str:
    out = ""
    for part in component.decode("utf-8", "surrogateescape"):
        code = ord(part)
        if 0xDC80 <= code <= 0xDCFF:
            out += f"%{code - 0xDC00:02X}"
        elif code < 0x20 or 0x7F <= code <= 0x9F or part == "\\":
            out += "".join(f"%{byte:02X}" for byte in part.encode())
        else:
            out += part
    if path_problem(out, PathPolicy.RELAXED) is not None and out:  # a metadata name, or too long
        out = f"%{ord(out[0]):02X}" + out[1:] if out.isascii() else "%" + out
    if len(out.encode()) > DEFAULT_LIMITS.path_component_bytes:
        mark = sha256(component).hexdigest()[:_MARK_BYTES]
        out = out.encode()[: DEFAULT_LIMITS.path_component_bytes - _MARK_BYTES - 1].decode(errors="ignore") + "~" + mark
    return out
