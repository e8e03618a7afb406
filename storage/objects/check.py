"""Trying out an object store through its port: that it keeps, gives back and removes what it was given."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from storage.environment import Environment
from storage.errors import ObjectMissing, StorageError
from storage.object_store import ObjectStore, ReadRange

_OLD, _NEW = b"museworkd tries out this store", b"museworkd tries it out again"


class Outcome(Enum):
    """How a check came out."""

    OK = "ok"
    DEGRADED = "degraded"
    """It is done without, or not noticed when it fails."""
    REFUSED = "refused"
    """The store cannot be used."""
    UNREACHABLE = "unreachable"
    """It did not answer, this time."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check."""

    name: str
    relied_on_by: str
    outcome: Outcome
    detail: str


class Unkept(Exception):
    """The store answered, and not as it should."""


async def check_port(store: ObjectStore, environment: Environment) -> list[Finding]:
    """Try out any store, up to the first check that fails; what is left when it dies is removed by its age."""
    base = f"staging/probe/{environment.random_bytes(8).hex()}"
    first, second = f"{base}/a", f"{base}/b"

    async def write() -> None:
        await store.put_batch([(first, _OLD)])

    async def read() -> None:
        _expect(await store.get(first, len(_OLD)) == _OLD, "what is read is not what was just stored")

    async def replace() -> None:
        await store.put_batch([(first, _NEW)])
        _expect(await store.get(first, len(_NEW)) == _NEW, "a content is not replaced by another")

    async def ranges() -> None:
        _expect(await store.get_ranges([ReadRange(first, 3, 4)]) == [_NEW[3:7]], "a range is not what it should be")

    async def copy() -> None:
        await store.copy(first, second)
        _expect(await store.get(second, len(_NEW)) == _NEW, "a copy is not what it was made of")

    async def listing() -> None:
        found = {stored.key async for stored in store.scan(base)}
        _expect(found == {first, second}, "what was just stored is not listed")

    async def delete() -> None:
        await store.delete([first, second])
        try:
            await store.size(first)
        except ObjectMissing:
            return
        raise Unkept("what was deleted is still there")

    checks: list[tuple[str, str, Callable[[], Awaitable[None]]]] = [
        ("write", "every push", write),
        ("read after write", "a fetch right after a push", read),
        ("replace", "mending what is damaged", replace),
        ("range", "every fetch of a pack's contents", ranges),
        ("copy", "taking uploads out of their clients' reach", copy),
        ("listing", "collection, reindex and fsck", listing),
        ("delete", "collection", delete),
    ]
    findings: list[Finding] = []
    for name, relied_on_by, check in checks:
        outcome, detail = Outcome.OK, ""
        try:
            await check()
        except Unkept as error:
            outcome, detail = Outcome.REFUSED, str(error)
        except StorageError as error:
            outcome, detail = Outcome.UNREACHABLE if error.temporary else Outcome.REFUSED, str(error)
        findings.append(Finding(name, relied_on_by, outcome, detail))
        if outcome is not Outcome.OK:
            break
    return findings


def _expect(kept: bool, otherwise: str) -> None:
    if not kept:
        raise Unkept(otherwise)
