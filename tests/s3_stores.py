"""Stores over the S3 server of a test run, each with a bucket of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from museworkd.assembly import open_store
from museworkd.config import Config, StoreConfig
from storage.environment import Environment, SystemEnvironment
from storage.object_store import ObjectStore
from storage.objects.s3 import S3Store
from storage.objects.s3_credentials import CredentialSource
from storage.objects.s3_settings import S3Settings
from tests.s3_server import S3Server


def credentials_of(server: S3Server, environment: Environment | None = None) -> CredentialSource:
    variables = {"AWS_ACCESS_KEY_ID": server.access_key, "AWS_SECRET_ACCESS_KEY": server.secret_key}
    return CredentialSource(environment or SystemEnvironment(), None, variables)


def make_store(server: S3Server, bucket: str | None = None, **settings: Any) -> S3Store:
    """A store without wrappers; ``settings`` as of ``S3Settings``."""
    settings = {"endpoint": server.endpoint, "call_timeout_s": 10.0} | settings
    environment = SystemEnvironment()
    found = S3Settings(server.new_bucket() if bucket is None else bucket, **settings)
    return S3Store(found, credentials_of(server, environment), environment)


def store_config(server: S3Server, directory: Path, bucket: str | None = None, **settings: Any) -> StoreConfig:
    """Settings of a daemon that keeps its objects there."""
    credentials = directory / "s3-credentials"
    credentials.write_text(
        f"[default]\naws_access_key_id = {server.access_key}\naws_secret_access_key = {server.secret_key}\n"
    )
    url = f"s3://{bucket or server.new_bucket()}/museworkd"
    return StoreConfig(**{"url": url, "endpoint": server.endpoint, "credentials_file": credentials} | settings)


async def s3_store(root: Path, server: S3Server) -> ObjectStore:
    return make_store(server)


async def s3_production(root: Path, server: S3Server) -> ObjectStore:
    config = Config(data_dir=root / "data", store=store_config(server, root))
    return await open_store(config, SystemEnvironment())
