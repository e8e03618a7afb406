"""Expecting a refusal by its code, under a bound on memory where a test is about bombs."""

from __future__ import annotations

import contextlib
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from wire.errors import Code, Refusal

MIB = 1024 * 1024


@contextlib.contextmanager
def refused(code: Code, match: str | None = None) -> Iterator[pytest.ExceptionInfo[Refusal]]:
    with pytest.raises(Refusal, match=match) as caught:
        yield caught
    assert caught.value.code is code, caught.value


@contextlib.contextmanager
def memory_below(most: int) -> Iterator[None]:
    """Fail when Python's allocators hold more than ``most`` bytes at any time inside."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < most, f"{peak / MIB:.1f} MiB at the peak"


def outcome(function: Callable[..., object], *arguments: object) -> object:
    """Give what a function gives, or the code it refuses with; anything else it raises is a failure."""
    try:
        return function(*arguments)
    except Refusal as refusal:
        return refusal.code
