"""How a command ends: what it raises becomes one line on stderr and an exit code."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

from museworkd.cli.endings import end_in_order, exit_by_signal
from museworkd.cli.output import say
from museworkd.client.errors import ClientError
from storage.errors import SchemaMismatch, StorageError
from wire.errors import Refusal

EXIT_OK = 0
EXIT_USER = 1
"""The user can mend it: a wrong argument, a missing right, a refused push."""
EXIT_USAGE = 2
"""The command line itself is wrong (click's own code)."""
EXIT_INTEGRITY = 3
"""Damaged or unreachable data, a lost connection, a failed verification."""
EXIT_CONFIG = 4
"""The configuration or the database's schema cannot be used."""

P = ParamSpec("P")
T = TypeVar("T")
_EXPECTED = (ClientError, Refusal, StorageError, OSError, KeyboardInterrupt)


def run(function: Callable[..., Any], *arguments: object) -> Any:
    """Run an async function of a guarded command; of several errors at once the first is told."""
    import trio  # a question about usage needs none

    try:
        return trio.run(function, *arguments)
    except BaseExceptionGroup as group:
        raise _first(group) from group


def guarded(function: Callable[P, T]) -> Callable[P, T]:
    """Give an operator's command its endings."""
    from museworkd.config import ConfigError  # the server's, and slow to begin: no user's command needs it

    return _guarded(function, (*_EXPECTED, ConfigError), {ConfigError: EXIT_CONFIG}, terminate=False)


def guarded_client(function: Callable[P, T]) -> Callable[P, T]:
    """Guard a user's command, which ends by SIGTERM as it does by Ctrl-C: nothing half-made is left behind."""
    return _guarded(function, _EXPECTED, {}, terminate=True)


def _guarded(
    function: Callable[P, T], expected: tuple[type[BaseException], ...], codes: dict[type[BaseException], int], *,
    terminate: bool,
) -> Callable[P, T]:  # fmt: skip
    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            end_in_order(terminate=terminate)
            return function(*args, **kwargs)
        except expected as error:
            _fail(error, codes.get(type(error)))

    return wrapper


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    if group.subgroup(KeyboardInterrupt) is not None:  # what else failed did so because of it
        return KeyboardInterrupt()
    for error in group.exceptions:
        return _first(error) if isinstance(error, BaseExceptionGroup) else error
    return group


def _fail(error: BaseException, code: int | None) -> NoReturn:
    match error:
        case KeyboardInterrupt():
            exit_by_signal()
        case ClientError():
            say(f"error: {error}")
            sys.exit(error.exit_code)
        case Refusal():
            say(f"error: {error.detail}")
            sys.exit(EXIT_USER)
        case SchemaMismatch():
            say(f"error: {error}")
            sys.exit(EXIT_CONFIG)
        case _:
            say(f"error: {error}")
            sys.exit(EXIT_INTEGRITY if code is None else code)
