"""Which object store the servers of a test run stand on: by the test's own choice, or all of them on S3.

``MUSEWORKD_TEST_STORE=s3`` puts every server that does not bring a store of its own on a bucket of the S3 server of the
run: those inside the test, also in place of the memory twin, and daemons with the commands of their operators. Bytes
pass the daemon there, because many tests look at its own URLs; ``tests/integration/test_s3_*.py`` are about the others.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from storage.object_store import ObjectStore
from storage.objects.filesystem import FilesystemStore
from storage.objects.memory import MemoryStore
from tests.s3_server import S3Server

VARIABLE = "MUSEWORKD_TEST_STORE"


class OnS3:
    """The S3 server that everything stands on, with a bucket for each test."""

    server: S3Server | None = None
    _bucket: str | None = None

    @property
    def bucket(self) -> str:
        assert self.server is not None
        self._bucket = self._bucket or self.server.new_bucket()
        return self._bucket

    def begin(self, server: S3Server) -> None:
        """Begin a test, with an empty store."""
        self.server, self._bucket = server, None

    def variables(self) -> dict[str, str]:
        """What the environment of a daemon has to say of it; nothing, unless everything stands on S3."""
        if self.server is None:
            return {}
        settings = self.server.settings(self.bucket) | {"store.direct": "false"}
        named = {f"MUSEWORKD_{key.upper().replace('.', '_')}": value for key, value in settings.items()}
        return named | self.server.variables


on_s3 = OnS3()


def wanted() -> bool:
    """Tell whether everything is to stand on S3."""
    return os.environ.get(VARIABLE) == "s3"


@asynccontextmanager
async def store_of_a_test(tmp_path: Path, *, real: bool) -> AsyncIterator[ObjectStore]:
    """A directory or the memory twin; a bucket if everything stands on S3."""
    if on_s3.server is not None:
        from tests.s3_deployments import bucket_store

        # by its own clock: a service refuses signatures of another time
        async with bucket_store(on_s3.server, on_s3.bucket, tmp_path, direct=False) as store:
            yield store
    elif real:
        yield await FilesystemStore.open(tmp_path / "store")
    else:
        yield MemoryStore()
