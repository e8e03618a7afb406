"""How a command ends: what it raises becomes one line on stderr and an exit code."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any, NoReturn, ParamSpec, TypeVar

from museworkd.cli.endings import end_in_order, exit_by_signal
from museworkd.cli.output import say
from museworkd.client.errors import ClientError, IntegrityError
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

EXPECTED = (ClientError, Refusal, StorageError, OSError)
"""What a command may fail of: one line for people, no traceback."""

P = ParamSpec("P")
T = TypeVar("T")
_CAUGHT = (*EXPECTED, KeyboardInterrupt)


@dataclasses.dataclass(frozen=True, slots=True)
class Ending:
    """What an error comes to."""

    exit_code: int
    code: str
    """Stable: the server's, or what kind of failure it is."""
    detail: str


def ending_of(error: BaseException) -> Ending:
    """Say what an error comes to."""
    match error:
        case ClientError():
            return Ending(error.exit_code, error.code or error.kind, str(error))
        case Refusal():
            return Ending(EXIT_USER, error.code.text, error.detail)
        case SchemaMismatch():
            return Ending(EXIT_CONFIG, IntegrityError.kind, str(error))
        case _:
            return Ending(EXIT_INTEGRITY, IntegrityError.kind, str(error))


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

    return _guarded(function, (*_CAUGHT, ConfigError), {ConfigError: EXIT_CONFIG}, terminate=False)


def guarded_client(function: Callable[P, T]) -> Callable[P, T]:
    """Guard a user's command, which ends by SIGTERM as it does by Ctrl-C: nothing half-made is left behind."""
    return _guarded(function, _CAUGHT, {}, terminate=True)


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
    if isinstance(error, KeyboardInterrupt):
        exit_by_signal()
    ending = ending_of(error)
    say(f"error: {ending.detail}")
    sys.exit(ending.exit_code if code is None else code)
