"""Relying on what is stored for the length of a block: a fetch, a confirmation, the collector's own reading.

While the lease is kept, the collector takes nothing away that could be seen when it was taken. A lease that is lost —
the index has not heard of it for ``LEASE_S`` — ends the block: what it was about to read may be gone.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
import trio

from actors.heartbeat import LEASE_S
from storage.collection import Leases
from storage.environment import Environment
from storage.errors import IndexUnavailable, LeaseLost

log = structlog.get_logger("leases")

_RENEWALS = 10
"""Within the time of a lease."""


@asynccontextmanager
async def leased(
    index: Leases, environment: Environment, repo: int, lease_s: float = LEASE_S
) -> AsyncIterator[uuid.UUID]:
    """Hold a lease on what a repository holds; gives its id.

    Raises:
        LeaseLost: it could not be kept.
        IndexUnavailable: it cannot be had.
    """
    lease = environment.uuid()
    await index.take_lease(lease, repo, environment.now(), lease_s)
    failure: Exception | None = None
    lost = trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep, index, environment, lease, lease_s, lost, nursery.cancel_scope)
            try:
                yield lease
            except Exception as error:  # noqa: BLE001 - raised again as it is, not in a group of one
                failure = error
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True), suppress(IndexUnavailable):  # what stays expires
            await index.end_lease(lease)
    if failure is not None:
        raise failure
    if lost.is_set():
        raise LeaseLost(str(lease))


async def _keep(
    index: Leases, environment: Environment, lease: uuid.UUID, lease_s: float, lost: trio.Event, scope: trio.CancelScope
) -> None:
    while True:
        await trio.sleep(lease_s / _RENEWALS)
        try:
            if await index.renew_lease(lease, environment.now(), lease_s):
                continue
        except IndexUnavailable as error:  # so often again before it is over
            log.warning("lease not renewed", error=str(error))
            continue
        lost.set()
        scope.cancel()
        return
