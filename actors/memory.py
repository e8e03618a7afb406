"""Giving memory back to the system after work that took much of it.

What a large tree leaves behind lies between what stays: the allocator would keep all of it, for whatever comes next
or for ever. Where there is no glibc, nothing is done.
"""

from __future__ import annotations

import ctypes

WORTH_BYTES = 4 * 1024 * 1024
"""After less than this it is not worth the milliseconds it takes."""


def give_back() -> None:
    """Return free pages; blocking."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
