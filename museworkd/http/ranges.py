"""The Range header: one byte range of a content of known size (RFC 9110 §14)."""

from __future__ import annotations

import re

from wire.errors import Code, Refusal

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


def parse_range(header: str | None, size: int) -> tuple[int, int] | None:
    """Give ``(offset, length)`` of the one range asked for, or ``None`` for the whole content.

    A header of another form, or with several ranges, is ignored, as the RFC allows.

    Raises:
        Refusal: ``range_mismatch`` when the range lies outside the content.
    """
    match = _RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.group(0) == "bytes=-":
        return None
    first, last = match.groups()
    if not first:
        length = min(int(last), size)
        if not length:
            raise _unsatisfiable(size)
        return size - length, length
    start = int(first)
    end = min(int(last), size - 1) if last else size - 1
    if start >= size:
        raise _unsatisfiable(size)
    if end < start:
        return None
    return start, end - start + 1


def _unsatisfiable(size: int) -> Refusal:
    return Refusal(Code.RANGE_MISMATCH, f"the content has {size} bytes", size=size)
