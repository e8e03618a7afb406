"""The HTTP floor over either pair of ports, the memory twins or PostgreSQL and files, and first contents for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from museworkd.administration import create_token
from storage.environment import Environment
from storage.errors import IndexUnavailable
from storage.index import Index
from storage.memory.index import MemoryIndex
from storage.postgres.database import DatabaseSettings
from storage.postgres.index import PostgresIndex
from storage.rows import Repository, Right, Token
from tests.http_client import push
from tests.muse import Push
from tests.servers import Server, serving
from tests.stores import on_s3, store_of_a_test


@asynccontextmanager
async def deployed(
    database_url: str | None, tmp_path: Path, environment: Environment | None = None, **settings: object
) -> AsyncIterator[Server]:
    """Serve over PostgreSQL and a directory, or without a database over the memory twins; see ``tests.stores``."""
    async with AsyncExitStack() as stack:
        real = database_url is not None
        store = await stack.enter_async_context(store_of_a_test(tmp_path, real=real))
        index: Index = MemoryIndex()
        if database_url is not None:
            index = await stack.enter_async_context(PostgresIndex(DatabaseSettings(database_url), environment))
        settings = {"store__direct": False, **settings} if on_s3.server is not None else settings
        yield await stack.enter_async_context(serving(index, store, tmp_path, environment, **settings))


def two_commits() -> Push:
    history = Push()
    history.commit({"a.txt": b"hello\n", "empty": b""})
    history.commit({"a.txt": b"hello again\n", "empty": b"", "dir/b.bin": bytes(range(256))})
    return history


async def with_history(server: Server, history: Push | None = None, slug: str = "x", public: bool = False) -> Push:
    history = history or two_commits()
    await server.make_repository(slug=slug, public=public)
    assert (await push(server, history.frames(), repository=f"alice/{slug}"))["type"] == "R"
    return history


async def bearer(server: Server, handle: str, scope: Right, lifetime_s: float | None = None) -> tuple[Token, dict]:
    """Make a token; gives it with the header that carries it."""
    index, environment = server.services.index, server.services.environment
    token, secret = await create_token(index, environment, handle, scope, lifetime_s)
    return token, {"authorization": f"Bearer {secret}"}


class DownIndex(MemoryIndex):
    """An index that can be switched off."""

    down = False

    async def find_repository(self, owner: str, slug: str) -> Repository | None:
        self._check()
        return await super().find_repository(owner, slug)

    async def ping(self) -> None:
        self._check()

    def _check(self) -> None:
        if self.down:
            raise IndexUnavailable("injected")


class CountingIndex:
    """An index that counts the questions it is asked."""

    def __init__(self) -> None:
        self._inner = MemoryIndex()
        self.asked: Counter[str] = Counter()

    def __getattr__(self, name: str) -> object:
        operation = getattr(self._inner, name)

        async def call(*arguments: object) -> object:
            self.asked[name] += 1
            return await operation(*arguments)

        return call


def readings(slug: str, commit: str, blob: str) -> list[tuple[str, str, dict]]:
    """Every way of reading a repository."""
    body = {"json": {"want": [commit], "have": []}}
    return [
        ("GET", f"/alice/{slug}/refs", {}), ("POST", f"/alice/{slug}/negotiate", body),
        ("POST", f"/alice/{slug}/fetch", body), ("POST", f"/alice/{slug}/fetch/mpack", body),
        ("POST", f"/alice/{slug}/fetch/stream", body), ("POST", f"/alice/{slug}/fetch/presign", body),
        ("POST", f"/alice/{slug}/fetch/objects", {"json": {"object_ids": [blob]}}),
        ("GET", f"/alice/{slug}/o/{blob}", {}), ("HEAD", f"/alice/{slug}/o/{blob}", {}),
        ("GET", f"/api/repos/alice/{slug}", {}),
    ]  # fmt: skip
