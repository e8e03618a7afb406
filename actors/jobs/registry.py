"""Which types of jobs a daemon can do: the built-in ones, and those of installed packages.

A package adds a type by an entry point of the group ``museworkd.jobs``: its name is the type, its object the handler.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import entry_points

from actors.jobs.handler import Handler

ENTRY_POINTS = "museworkd.jobs"


class UnusableHandler(Exception):
    """A handler cannot be registered; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Registered:
    """A type of jobs."""

    type: str
    handler: Handler
    limit: int
    """How many of the type one daemon runs at once."""


class Registry:
    """Types of jobs with their handlers."""

    def __init__(self) -> None:
        self._by_type: dict[str, Registered] = {}

    def register(self, type: str, handler: Handler, limit: int = 1) -> None:  # noqa: A002 - the field's word
        """Add a type.

        Raises:
            UnusableHandler: there is one of that name, or what is given is no handler.
        """
        if type in self._by_type:
            raise UnusableHandler(f"there is a handler for jobs {type!r} already")
        if not type or not callable(handler) or limit < 1:
            raise UnusableHandler(f"what is given for jobs {type!r} is no handler")
        self._by_type[type] = Registered(type, handler, limit)

    def get(self, type: str) -> Handler:  # noqa: A002 - the field's word
        """Give a type's handler; raises ``KeyError`` when there is none."""
        return self._by_type[type].handler

    def types(self) -> list[str]:
        """Name all types, sorted."""
        return sorted(self._by_type)

    def limits(self) -> dict[str, int]:
        """Give how many of each type one daemon runs at once."""
        return {type_: registered.limit for type_, registered in self._by_type.items()}

    def load_entry_points(self, group: str = ENTRY_POINTS) -> list[str]:
        """Register the handlers of installed packages; gives their types.

        Raises:
            UnusableHandler: one cannot be loaded, or its type has a handler already.
        """
        loaded = []
        for entry in sorted(entry_points(group=group), key=lambda entry: entry.name):
            try:
                handler = entry.load()
            except (ImportError, AttributeError) as error:
                raise UnusableHandler(f"the handler {entry.value} for jobs {entry.name!r}: {error}") from error
            self.register(entry.name, handler)
            loaded.append(entry.name)
        return loaded
