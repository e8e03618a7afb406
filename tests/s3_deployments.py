"""The HTTP floor over a bucket of a real S3 server, its store opened and wrapped as a daemon does it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from museworkd.assembly import open_store
from museworkd.config import load
from storage.environment import Environment, SystemEnvironment
from storage.index import Index
from storage.memory.index import MemoryIndex
from storage.object_store import ObjectStore
from storage.objects.s3 import S3Store
from storage.objects.wrapped import WrappedStore
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from tests.s3_server import S3Server
from tests.servers import Server, serving


@asynccontextmanager
async def bucket_store(
    s3: S3Server, bucket: str, tmp_path: Path, environment: Environment | None = None, **settings: object
) -> AsyncIterator[ObjectStore]:
    """Open a bucket by the settings an operator would write; ``settings`` are more of ``[store]``."""
    credentials = tmp_path / "s3-credentials"
    credentials.write_text(s3.credentials_file)
    flags = s3.settings(bucket) | {"store.credentials_file": str(credentials)}
    flags |= {f"store.{name}": str(value) for name, value in settings.items()}
    config, _ = load(environment={}, flags=flags)
    store = await open_store(replace(config, data_dir=tmp_path / "data"), environment or SystemEnvironment())
    yield store
    innermost = store
    while isinstance(innermost, WrappedStore):
        innermost = innermost.inner
    assert isinstance(innermost, S3Store)
    innermost.requests.close()


@asynccontextmanager
async def over_s3(
    s3: S3Server, tmp_path: Path, database_url: str | None = None, *, bucket: str | None = None,
    store: Mapping[str, object] | None = None, environment: Environment | None = None, **settings: object,
) -> AsyncIterator[Server]:  # fmt: skip
    """Serve over a bucket, a fresh one unless one is named, and PostgreSQL or the index in memory."""
    async with AsyncExitStack() as stack:
        bucket = bucket or s3.new_bucket()
        opened = await stack.enter_async_context(bucket_store(s3, bucket, tmp_path, environment, **(store or {})))
        index: Index = MemoryIndex()
        if database_url is not None:
            index = await stack.enter_async_context(PostgresIndex(DatabaseSettings(database_url), environment))
        yield await stack.enter_async_context(serving(index, opened, tmp_path, environment, **settings))
