"""Which of the memory index's pushes a ticket is for, and whether it is still its turn."""

from __future__ import annotations

import uuid

from storage.errors import StaleTicket
from storage.memory.tables import PushEntry, Tables
from storage.rows import PushState, PushTicket


def find_entry(tables: Tables, repo: int, push_id: uuid.UUID) -> PushEntry | None:
    """Find a repository's push by the id its client gave it."""
    return next((p for p in tables.pushes.values() if (p.repo, p.record.push_id) == (repo, push_id)), None)


def is_current(tables: Tables, ticket: PushTicket) -> bool:
    """Tell whether the ticket's push is open and no later attempt has it."""
    entry = tables.pushes.get(ticket.number)
    return entry is not None and entry.record.state is PushState.OPEN and entry.attempt == ticket.attempt


def current(tables: Tables, ticket: PushTicket) -> PushEntry:
    """Give the ticket's push.

    Raises:
        StaleTicket: it has ended, or a later attempt has it.
    """
    if not is_current(tables, ticket):
        raise StaleTicket(f"push {ticket.push_id} attempt {ticket.attempt}")
    return tables.pushes[ticket.number]
