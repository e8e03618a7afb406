"""Putting the floors together from a configuration: the store in its wrappers, the index, the services."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import structlog
import trio

from actors.fetch.assemble import FETCHES_AT_ONCE, FetchServices
from actors.heartbeat import HeartbeatClock, Heartbeats
from actors.jobs.builtin import builtin_registry
from actors.jobs.handler import JobServices
from actors.jobs.registry import Registry, UnusableHandler
from actors.jobs.runner import JobObserver
from actors.jobs.runner import unobserved as unobserved_job
from actors.jobs.work import JobWork
from actors.journal.writing import JournalOffice, JournalWriter, NoJournal, Settling
from actors.push.confirm import ConfirmSlots
from actors.push.context import PushServices
from actors.push.observed import Observer, unobserved
from actors.supervisor import Child, Supervisor
from actors.watchdog import ROUND_S, Watchdog
from museworkd.config import Config, ConfigError
from museworkd.http.control import LARGE_BODIES_AT_ONCE
from museworkd.http.id_lists import ID_LISTS_MIB
from museworkd.http.recent_repositories import RecentRepositories
from museworkd.http.services import HttpServices
from museworkd.http.signed_urls import SECRET_BYTES, SECRET_NAME, UrlSigner
from museworkd.http.small_uploads import SmallUploads
from museworkd.http.uploads import Uploads
from museworkd.keepers import EmbeddedKeeper, ExpiryKeeper
from museworkd.service_manager import ServiceManager
from storage.environment import Environment, SystemEnvironment
from storage.index import Index
from storage.journal import Journal
from storage.migrate import check_schema, migrate
from storage.object_store import ObjectStore
from storage.objects.filesystem import FilesystemStore
from storage.objects.limited import LimitedStore
from storage.objects.retrying import RetryingStore, RetryPolicy
from storage.objects.verifying import VerifyingStore
from storage.postgres.database import DatabaseSettings
from storage.postgres.embedded import EmbeddedPostgres
from storage.postgres.index import PostgresIndex
from storage.slots import Slots

log = structlog.get_logger("museworkd")

STALE_TEMPORARY_S = 86_400.0
"""Temporary files older than a day belong to nobody that still runs."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """The index of a configuration, and the embedded PostgreSQL behind it if there is one."""

    index: PostgresIndex
    embedded: EmbeddedPostgres | None


@asynccontextmanager
async def open_deployment(config: Config, environment: Environment | None = None) -> AsyncIterator[Deployment]:
    """Reach the database a configuration names, its schema up to date. For processes of its own: sets the umask."""
    os.umask(0o077)  # histories are for those the server lets read them
    embedded = None if config.database.url else EmbeddedPostgres(config.data_dir)
    if embedded is not None:
        await trio.to_thread.run_sync(embedded.start)
    try:
        settings = database_settings(config, embedded)
        await trio.to_thread.run_sync(_prepare_schema, config, settings)
        async with PostgresIndex(settings, environment, config.limits.owner_quota_bytes) as index:
            yield Deployment(index, embedded)
    finally:
        if embedded is not None:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(embedded.stop)


def database_settings(config: Config, embedded: EmbeddedPostgres | None) -> DatabaseSettings:
    """Give how to reach the database."""
    database = config.database
    conninfo = database.url if embedded is None else embedded.conninfo
    return DatabaseSettings(conninfo, database.pool_size, database.statement_timeout_s, database.lock_timeout_s)


async def open_store(config: Config, environment: Environment) -> ObjectStore:
    """Open the object store in its wrappers, innermost first: limited, retrying, verifying.

    Raises:
        ConfigError: the S3 service lacks what is relied on, or does not let us in.
    """
    store = config.store
    kept: ObjectStore
    if config.s3 is not None:
        from museworkd.s3_opening import open_s3  # with its libraries: a directory needs none

        kept = await open_s3(config, config.s3, environment)
    else:
        files = kept = await FilesystemStore.open(config.store_path, store.sync, environment)
        swept = await files.sweep_temporary(STALE_TEMPORARY_S)
        if swept:
            log.info("swept temporary files", count=swept)
    limited = LimitedStore(kept, store.parallel_puts, store.parallel_gets, store.call_timeout_s)
    return VerifyingStore(RetryingStore(limited, environment, RetryPolicy(budget_s=store.retry_s)))


async def make_services(
    config: Config, index: Index, store: ObjectStore, environment: Environment | None = None,
    observe: Observer = unobserved,
) -> tuple[HttpServices, list[Child]]:  # fmt: skip
    """Make what the HTTP floor works with, and the children its supervisor has to run."""
    environment = environment or SystemEnvironment()
    heartbeats = Heartbeats()
    spool_dir = config.data_dir / "spool"
    signer = UrlSigner(await index.secret(SECRET_NAME, environment.random_bytes(SECRET_BYTES)))
    uploads = Uploads(config.data_dir / "uploads")
    journal: Settling = NoJournal()
    children = []
    if isinstance(index, Journal):
        office = JournalOffice(index, store, environment)
        journal = office
        children.append(Child("journal", lambda: JournalWriter(office)))
    services = HttpServices(
        index, store, environment, Supervisor(),
        PushServices(
            index, store, environment, heartbeats, spool_dir, config.limits, observe=observe,
            followup_delay_s=config.jobs.after_push_s, journal=journal,
        ),
        FetchServices(index, store, environment, spool_dir, config.limits, Slots(FETCHES_AT_ONCE)),
        Slots(LARGE_BODIES_AT_ONCE), Slots(ID_LISTS_MIB), ConfirmSlots(), signer, uploads, SmallUploads(store),
        RecentRepositories(index), config.limits, config.server,
        config.server.public_url or None, config.server.presign_s,
        direct=store.signing() if config.store.direct else None,
    )  # fmt: skip
    children += [
        Child("heartbeat", lambda: HeartbeatClock(heartbeats, index, environment, config.server.heartbeat_s)),
        Child("expired", lambda: ExpiryKeeper(store, index, uploads, environment, 2.0 * config.server.presign_s)),
    ]
    return services, children


def make_work(
    config: Config, services: HttpServices, observe: JobObserver = unobserved_job, registry: Registry | None = None
) -> JobWork:
    """Make what does jobs in a daemon.

    Raises:
        ConfigError: the handler of an installed package cannot be used.
    """
    if registry is None:
        registry = builtin_registry()
        try:
            loaded = registry.load_entry_points()
        except UnusableHandler as error:
            raise ConfigError(str(error)) from error
        if loaded:
            log.info("handlers of installed packages", types=loaded)
    fetch, environment = services.fetch, services.environment
    job_services = JobServices(
        services.index, services.store, environment, fetch.spool_dir, config.limits, fetch, config.jobs
    )
    worker = f"{socket.gethostname()}/{os.getpid()}/{environment.random_bytes(3).hex()}"
    return JobWork(job_services, services.supervisor, registry, worker, observe)


def keeper_of(embedded: EmbeddedPostgres) -> Child:
    """Give the child that starts the embedded PostgreSQL again when it dies."""
    return Child("embedded postgres", lambda: EmbeddedKeeper(embedded))


def watchdog_of(supervisor: Supervisor, manager: ServiceManager) -> Child:
    """Give the child that asks all others for a sign of life, and tells the service manager."""
    return Child("watchdog", lambda: Watchdog(supervisor, manager.alive, manager.round_s(ROUND_S)))


def _prepare_schema(config: Config, settings: DatabaseSettings) -> None:
    if config.database.auto_migrate:
        for migration in migrate(settings):
            log.info("migrated", name=migration.name)
    else:
        check_schema(settings)
