"""The journal: what was decided, in the order of the decisions, kept in the object store.

The index notes every fact in the transaction that decides it (the *outbox*); whoever writes it out puts *segments* into
the store, each a list of entries, and then lets the outbox forget them. A segment's key names its generation, its last
entry and its hash. Entries may be in several segments, for two daemons may write the same ones; their numbers say which
they are, and of which of two about one row came later. See ``docs/design/0012-journal.md``.
"""

from __future__ import annotations

import enum
import hashlib
import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from storage.errors import ObjectDamaged
from storage.layout import JournalKey, journal_key

SEGMENT_ENTRIES = 500
SEGMENT_BYTES = 1024 * 1024
"""Facts of one segment at most; a single larger one has a segment of its own."""
SEGMENT_MOST = 256 * 1024 * 1024
"""A larger segment was not written by us."""
_VERSION = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One fact: a row as it is from now on, or one that is gone."""

    number: int
    kind: str
    gone: bool
    fact: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outbox:
    """The first entries that are not written out, in order."""

    entries: list[Entry]
    more: bool
    """Whether there are others besides."""


class DeploymentState(enum.IntEnum):
    """What a database is in."""

    NEW = 0
    """Its store has not been told yet."""
    IN_USE = 1
    REBUILDING = 2


@dataclass(frozen=True, slots=True)
class Deployment:
    """Which deployment a database belongs to, and how far its journal in the store reaches."""

    deployment: uuid.UUID
    generation: int
    """Counts how often its database was rebuilt from the store."""
    state: DeploymentState
    journalled: int
    """The greatest number that was written out."""
    segment: str | None
    """The key of the segment that number is in."""


@runtime_checkable
class Journal(Protocol):
    """The part of the index that knows what is still to be written out, besides the ``Index`` port."""

    async def deployment(self, candidate: uuid.UUID | None) -> Deployment | None:
        """Give what the database says it is; of one that says nothing, ``candidate`` is kept from now on."""

    async def announce(self, state: DeploymentState) -> None:
        """Note what the deployment is in."""

    async def holds_facts(self) -> bool:
        """Tell whether anything at all was ever decided in this database."""

    async def last_entry(self) -> int:
        """Give the greatest number of an entry that is known to have been noted."""

    async def outbox(self, of: Deployment, most: int, most_bytes: int) -> Outbox:
        """Give the first entries that are not written out, in order, that fit; at least one if there is any.

        Raises:
            DeploymentMismatch: the database is another deployment's by now, of another generation, or not in use.
        """

    async def written_out(self, of: Deployment, numbers: Sequence[int], key: str) -> None:
        """Forget entries that are in the store, in the segment of that key.

        Raises:
            DeploymentMismatch: as of ``outbox``; nothing is forgotten.
        """


def write_segment(deployment: Deployment, entries: Sequence[Entry]) -> tuple[str, bytes]:
    """Write entries in the stored form (protocol §2: canonical JSON); gives key and content."""
    content = canonical_json({
        "version": _VERSION,
        "deployment": str(deployment.deployment),
        "generation": deployment.generation,
        "entries": [{"entry": e.number, "kind": e.kind, "gone": e.gone, "fact": e.fact} for e in entries],
    })  # fmt: skip
    digest = hashlib.sha256(content).digest()
    last = max(entry.number for entry in entries)
    return journal_key(JournalKey(deployment.generation, last, digest)), content


def read_segment(key: JournalKey, content: bytes, deployment: uuid.UUID) -> list[Entry]:
    """Read a segment back.

    Raises:
        ObjectDamaged: it is not what its key says, or not of this deployment.
    """
    if hashlib.sha256(content).digest() != key.digest:
        raise ObjectDamaged(f"the journal segment up to {key.last} does not hash to its name")
    try:
        segment = json.loads(content)
        if (segment["version"], segment["deployment"]) != (_VERSION, str(deployment)):
            raise ObjectDamaged(f"the journal segment up to {key.last} is of another deployment or version")
        return [Entry(e["entry"], e["kind"], e["gone"], e["fact"]) for e in segment["entries"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ObjectDamaged(f"the journal segment up to {key.last} cannot be read: {error}") from error


def canonical_json(value: object) -> bytes:
    """Write JSON as all stored truth is: UTF-8, keys sorted, no white space."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError:  # a refusal may quote half a surrogate pair, which only an escape can say
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
