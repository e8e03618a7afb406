"""Do the database and the object store belong together? Asked when a daemon starts (threat T30).

The store says in one small object which deployment it is of, and how often its database was made anew; the database
says the same of itself, and how far its journal reaches. Writing it down for a new deployment goes in steps, and can
be done again after each: the database names the deployment; the object is put; the database notes that it is there.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from storage.environment import Environment
from storage.errors import DeploymentMismatch, ObjectDamaged, ObjectMissing
from storage.journal import Deployment, DeploymentState, Journal, canonical_json
from storage.layout import epoch_key, journal_prefix, next_journal_prefix, parse_journal_key
from storage.object_store import ObjectStore

_EPOCH_MOST = 1024 * 1024
_VERSION = 1
_EMPTY = (
    "the object store holds a deployment's history, and the database is empty: run `museworkd reindex` to make the "
    "database anew from the store, or name an empty store"
)
_OTHERS = (
    "the object store belongs to deployment {store}, the database to {database}: they were never together; correct "
    "database.url or the store's settings"
)
_UNKNOWN = (
    "the object store belongs to deployment {store}, which the database knows nothing of: it is of another deployment "
    "or was restored from an old backup; correct database.url or the store's settings, restore the newest database, or "
    "run `museworkd reindex` with an empty one"
)
_OLD_DATABASE = (
    "the database is older than the object store ({facts}): serving with it would lose what was acknowledged since; "
    "restore the newest database, or run `museworkd reindex` with an empty one"
)
_OLD_STORE = (
    "the object store is older than the database, or another one ({facts}): what the database names may be missing; "
    "restore the newest store, or correct the store's settings"
)
_REBUILDING = "the database is being rebuilt from the object store: run `museworkd reindex` again until it is done"


@dataclass(frozen=True, slots=True)
class Epoch:
    """What a store says it is."""

    deployment: uuid.UUID
    generation: int
    ended: Mapping[int, int] = field(default_factory=dict)
    """Of each generation that was rebuilt from the store: the last entry the rebuilding found."""

    def content(self) -> bytes:
        """Give the stored form."""
        ended = {str(generation): last for generation, last in self.ended.items()}
        return canonical_json(
            {"version": _VERSION, "deployment": str(self.deployment), "generation": self.generation, "ended": ended}
        )


async def read_epoch(store: ObjectStore) -> Epoch | None:
    """Read what a store says it is; ``None``: it says nothing.

    Raises:
        ObjectDamaged: what it says cannot be read.
    """
    try:
        content = await store.get(epoch_key(), _EPOCH_MOST)
    except ObjectMissing:
        return None
    try:
        said = json.loads(content)
        ended = {int(generation): int(last) for generation, last in said["ended"].items()}
        return Epoch(uuid.UUID(said["deployment"]), int(said["generation"]), ended)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ObjectDamaged(f"{epoch_key()} cannot be read: {error}") from error


async def write_epoch(store: ObjectStore, epoch: Epoch) -> None:
    """Let a store say what it is."""
    await store.put_batch([(epoch_key(), epoch.content())])


async def join(journal: Journal, store: ObjectStore, environment: Environment) -> Deployment:
    """Check that database and store belong together, and note it where neither says anything yet.

    Raises:
        DeploymentMismatch: they do not; the message says what to do.
    """
    found = await journal.deployment(None)  # first: what it says was put was put before
    epoch = await read_epoch(store)
    if found is None and epoch is not None:
        found = await journal.deployment(None)  # another daemon may have begun meanwhile
    if found is None and epoch is not None:
        facts = await journal.holds_facts()
        raise DeploymentMismatch(_UNKNOWN.format(store=epoch.deployment) if facts else _EMPTY)
    found = found or await journal.deployment(environment.uuid())
    assert found is not None
    if found.state is DeploymentState.REBUILDING:
        raise DeploymentMismatch(_REBUILDING)
    if epoch is None:
        epoch = await read_epoch(store)  # put by another daemon that began at the same time
    if epoch is None:
        if found.state is DeploymentState.IN_USE:
            raise DeploymentMismatch(_OLD_STORE.format(facts=f"it lacks {epoch_key()}"))
        await write_epoch(store, Epoch(found.deployment, found.generation))
    else:
        _compare(found, epoch)
        await _compare_positions(journal, store, found)
    if found.state is DeploymentState.NEW:
        await journal.announce(DeploymentState.IN_USE)
    return found


def _compare(found: Deployment, epoch: Epoch) -> None:
    if found.deployment != epoch.deployment:
        raise DeploymentMismatch(_OTHERS.format(store=epoch.deployment, database=found.deployment))
    if found.generation != epoch.generation:
        facts = f"generation {found.generation} of the database, {epoch.generation} of the store"
        old = _OLD_DATABASE if found.generation < epoch.generation else _OLD_STORE
        raise DeploymentMismatch(old.format(facts=facts))


async def _compare_positions(journal: Journal, store: ObjectStore, found: Deployment) -> None:
    """What is in the store was in the outbox before: so the database, asked later, must know of it."""
    before = await journal.last_entry()
    last = 0
    for prefix in (journal_prefix(found.generation, before), next_journal_prefix(found.generation, before)):
        async for stored in store.scan(prefix):
            key = parse_journal_key(stored.key)
            last = max(last, 0 if key is None else key.last)
    known = await journal.last_entry()
    if last > known:
        raise DeploymentMismatch(_OLD_DATABASE.format(facts=f"entry {known} of the journal, {last} in the store"))
    if found.segment is not None:
        try:
            await store.size(found.segment)
        except ObjectMissing:
            raise DeploymentMismatch(_OLD_STORE.format(facts=f"it lacks {found.segment}")) from None
