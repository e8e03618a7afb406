"""Cutting a byte stream into pieces in every way a network can."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from hypothesis import settings
from hypothesis import strategies as st

SIZES = st.lists(st.integers(1, 400), min_size=1, max_size=6)
"""Lengths of pieces, used in turn; see :func:`cut`."""


def cut(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """Give ``data`` in pieces whose lengths run through ``sizes`` again and again."""
    at = 0
    for size in itertools.cycle(sizes):
        if at >= len(data):
            return
        yield data[at : at + size]
        at += size


def examples(number: int) -> settings:
    """The settings of a property: the same examples in every run."""
    return settings(max_examples=number, deadline=None, derandomize=True, database=None)
