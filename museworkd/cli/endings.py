"""How a command ends by a signal: SIGINT with exit code 130, SIGTERM with 143, each with one line on stderr.

Until a command has begun there is nothing to clean up, so the process ends at once. From then on a signal raises
``KeyboardInterrupt`` where trio and ``finally`` blocks can deal with it. This module is imported before everything
else and imports next to nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_received: list[int] = []


@contextmanager
def signals_of_a_program() -> Iterator[None]:
    """Let signals end the program that a block is; afterwards they are what they were before."""
    if threading.current_thread() is not threading.main_thread():  # signals are none of its business
        yield
        return
    before = {number: signal.getsignal(number) for number in _WORDS}
    end_at_once()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_at_once() -> None:
    """Until :func:`end_in_order`: a signal says its line and ends the process."""
    for number in _WORDS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as whoever started us wants it
            signal.signal(number, _exit)


def end_in_order(*, terminate: bool) -> None:
    """From here on a signal raises ``KeyboardInterrupt``; SIGTERM only with ``terminate``, else it is the system's."""
    if signal.getsignal(signal.SIGINT) is _exit:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if terminate and signal.getsignal(signal.SIGTERM) in {_exit, signal.SIG_DFL}:
        signal.signal(signal.SIGTERM, _terminate)
    elif signal.getsignal(signal.SIGTERM) is _exit:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def exit_by_signal() -> NoReturn:
    """End a command that a ``KeyboardInterrupt`` has cut short."""
    number = signal.SIGTERM if signal.SIGTERM in _received else signal.SIGINT
    sys.unraisablehook = lambda unraisable: None  # noqa: ARG005 - what was cut off may complain when it is collected
    sys.stderr.write(f"{_WORDS[number]}\n")
    sys.stderr.flush()
    sys.exit(128 + number)


def _exit(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the system's
    os.write(2, f"{_WORDS[signal.Signals(number)]}\n".encode())
    os._exit(128 + number)


def _terminate(number: int, frame: FrameType | None) -> None:
    """Go the way of SIGINT: while trio runs, its handler knows where it is safe to raise."""
    _received.append(number)
    handler = signal.getsignal(signal.SIGINT)
    if callable(handler):
        handler(signal.SIGINT, frame)
    else:
        raise KeyboardInterrupt
