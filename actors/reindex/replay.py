"""What a push brought, taken in again from its record pack by the same stages that took it in at first.

So everything is proved once more: ids are computed anew, manifests rebuilt, parents and bases looked up. Only the
repository's present policies are not asked: what was accepted was.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import replace

import structlog

from actors.push.context import Attempt, Counts, PushPlan, PushRequest, PushServices, Timings
from actors.push.finish import Finish
from actors.push.record_pack import RecordPack
from actors.push.records import RecordStage
from actors.refusals import refusal_for
from actors.reindex.records import pack_records
from actors.spool import SpoolDirectory
from storage.errors import ObjectDamaged, ObjectMissing
from storage.layout import record_pack_key
from storage.object_store import ObjectStore
from storage.postgres.reindex_index import ReindexIndex
from storage.reindex import Step, StepKind
from storage.rows import Repository, RepositorySettings, Right, Visibility
from wire.errors import Refusal
from wire.ids import Scheme, parse_any_id

log = structlog.get_logger("reindex")


class _StoredPack(RecordPack):
    """Records that are in the store already."""

    async def store(self, store: ObjectStore, beside: Sequence[tuple[str, bytes]] = ()) -> bytes | None:
        del store, beside
        return None


class Replayer:
    """Does steps of repositories again."""

    def __init__(self, services: PushServices, index: ReindexIndex) -> None:
        self._services = replace(services, index=index)
        self._index = index

    async def do(self, step: Step) -> str | None:
        """Do one step again; gives what is damaged, if anything.

        Raises:
            StorageError: index or store cannot do it now.
        """
        if step.kind is StepKind.SWEPT:
            await self._index.sweep_again(step.entry)
        elif step.kind is StepKind.PUSH:
            return await self._push(step)
        return None

    async def _push(self, step: Step) -> str | None:
        assert step.ticket is not None
        if step.record_pack is None or step.scheme is None or step.head is None:
            await self._index.accept_bare(step, None)
            return None
        self._index.current[step.ticket.number] = step
        try:
            await self._take_in(step, step.record_pack, step.scheme, step.head)
        except (ObjectMissing, ObjectDamaged, Refusal) as error:
            refusal = refusal_for(error)
            if isinstance(error, Refusal) and refusal is not None and refusal.code.retryable:
                raise
            detail = error.detail if isinstance(error, Refusal) else str(error)
            log.error("a push does not come back", push_id=str(step.ticket.push_id), error=detail)
            await self._index.accept_bare(step, detail)
            return detail
        finally:
            del self._index.current[step.ticket.number]
        return None

    async def _take_in(self, step: Step, pack_id: bytes, scheme: Scheme, head: str) -> None:
        services, ticket = self._services, step.ticket
        assert ticket is not None
        request = PushRequest(_repository(ticket.repo, scheme), step.handle, Right.ADMIN, f"reindex {step.entry}")
        plan = PushPlan(ticket.push_id, step.branch, parse_any_id(head)[1], scheme, True, None, False, None)
        attempt = await Attempt.begun(services, request, plan, ticket)
        timings, counts = Timings(), Counts()
        name = f"reindex-{ticket.number}-{services.environment.random_bytes(4).hex()}"
        async with SpoolDirectory(services.spool_dir, name) as spools, attempt.kept:
            pack = _StoredPack(spools)
            records = RecordStage(services, request, attempt, pack, counts, timings)
            async with aclosing(pack_records(services.store, record_pack_key(pack_id), services.limits)) as stored:
                async for record in stored:
                    await records.take(record.as_sent())
            await records.close()
            finish = Finish(
                services, request, attempt, pack, records.commits, records.snapshots.keys(), counts, timings,
                _unseen, None, records.tagged,
            )  # fmt: skip
            await finish.run()


def _repository(number: int, scheme: Scheme) -> Repository:
    """Give the repository with the mildest policies there are."""
    settings = RepositorySettings(relaxed_paths=True)
    began = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
    return Repository(
        number, uuid.UUID(int=number), "", "", Visibility.PRIVATE, scheme, "", "", settings, began
    )  # fmt: skip


def _unseen(_stage: str, _done: int, _total: int | None) -> None:
    """Progress nobody sees."""
