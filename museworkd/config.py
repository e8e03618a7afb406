"""Configuration: defaults < TOML file < environment < flags, each value with where it came from.

A key is ``section.name``, or a name alone for what stands before all sections. In the environment it is
``MUSEWORKD_SECTION_NAME``, on the command line ``--set section.name=value``. An unknown key anywhere is an error
at start-up, never ignored.
"""

from __future__ import annotations

import dataclasses
import os
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from urllib.parse import urlsplit

from actors.heartbeat import LEASE_S
from actors.jobs.settings import JobSettings
from museworkd.http.settings import HttpSettings
from storage.objects.durability import Durability
from storage.objects.s3_settings import Addressing, S3Settings, parse_url
from storage.postgres.database import without_password
from wire.limits import Limits

ENVIRONMENT_PREFIX = "MUSEWORKD_"
NOT_SETTINGS = {"MUSEWORKD_CONFIG", "MUSEWORKD_TOKEN", "MUSEWORKD_PLAIN_HTTP_HOSTS", "MUSEWORKD_HISTORIES"}
"""Variables of the prefix that are not settings: the configuration file, a client's token and the hosts that get it
over plain http, test input."""
TEST_PREFIX = "MUSEWORKD_TEST_"
"""Of variables that steer the tests; there is no such section."""
SECRETS = {"database.url"}
ROLES = ("web", "worker", "all")
MAY_BE_ZERO = {
    "jobs.after_push_s",
    "limits.owner_quota_bytes", "limits.content_cache_object_bytes", "jobs.gc_every_s", "jobs.scrub_every_s",
    "jobs.prebuild_bytes",
}  # fmt: skip
STATEMENT_MOST_S = 120.0
"""A statement that outlives a push's lease would write for a push that others may have swept away."""
DEFAULT_FILES = (Path("museworkd.toml"), Path("/etc/museworkd/museworkd.toml"))


class ConfigError(Exception):
    """The configuration cannot be used; the message says which key and why."""


@dataclass(frozen=True, slots=True)
class ServerConfig(HttpSettings):
    """``[server]``: where to listen, and how connections are treated."""

    bind: str = "127.0.0.1:1337"
    """Host and port; port 0 picks a free one. TLS belongs to the proxy in front."""
    public_url: str = ""
    """How clients reach the server; empty: as they addressed it."""
    drain_s: float = 30.0
    """For running pushes and requests to finish after a stop signal."""
    heartbeat_s: float = 10.0
    """A push's client hears from the server at least this often."""
    presign_s: int = 3600
    """Life of a signed URL."""
    role: str = "all"
    """``web``: answers clients; ``worker``: does jobs and answers ``/livez`` and ``/readyz`` only; ``all``: both."""


@dataclass(frozen=True, slots=True)
class DatabaseConfig:
    """``[database]``."""

    url: str = ""
    """A PostgreSQL connection string or URL; empty: the embedded PostgreSQL under ``data_dir``."""
    pool_size: int = 8
    """Connections of one daemon; each is held for milliseconds."""
    statement_timeout_s: float = 60.0
    """For one statement, enforced by PostgreSQL; at most 120."""
    lock_timeout_s: float = 10.0
    """For a row another transaction holds, enforced by PostgreSQL."""
    auto_migrate: bool = True
    """Bring the schema up to date at start. Several versions side by side: switch off and run ``migrate``."""


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """``[store]``."""

    url: str = ""
    """``s3://bucket/prefix``: keep objects in an S3-compatible store; empty: in the directory ``path``."""
    endpoint: str = ""
    """``http(s)://host[:port]`` of the S3 service as the daemon reaches it; empty: Amazon's, of the region."""
    public_endpoint: str = ""
    """The same as clients reach it, for signed URLs; empty: ``endpoint``."""
    region: str = "us-east-1"
    """The S3 service's region; many take any."""
    addressing: Addressing = Addressing.PATH
    """Where the bucket's name stands in URLs: ``path`` or ``host``."""
    credentials_file: Path = Path()
    """File in the AWS form with the S3 keys. Empty: systemd's credential ``s3``, or the variables ``AWS_*``."""
    ca_file: Path = Path()
    """PEM certificates to trust for S3 beside the system's."""
    path: Path = Path()
    """Directory of the object store; empty: ``data_dir``/store."""
    sync: Durability = Durability.GROUP
    """``group``: one syncfs per batch; ``each``: one fdatasync per file (a disk shared with heavy writers)."""
    parallel_puts: int = 100
    """Objects of one daemon being written at once."""
    parallel_gets: int = 64
    """Reads of one daemon under way at once."""
    call_timeout_s: float = 60.0
    """For one call on small contents; large files get a second more for each MiB."""
    retry_s: float = 30.0
    """How long temporary failures of the store are tried again."""
    direct: bool = True
    """Let clients send bytes to the store itself and get them from it, where it has an address (S3); false: all bytes
    pass the daemon, and the store needs to be reached by nobody else."""


@dataclass(frozen=True, slots=True)
class LogConfig:
    """``[log]``."""

    level: str = "info"
    """``debug``, ``info``, ``warning`` or ``error``."""
    format: str = "auto"
    """``json``, ``console``, or ``auto``: console on a terminal."""


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    """``[metrics]``."""

    bind: str = ""
    """Host and port where Prometheus finds ``/metrics``; empty: nowhere. Whoever reaches it may read it."""


@dataclass(frozen=True, slots=True)
class Config:
    """Everything that can be set."""

    data_dir: Path = Path("var")
    """Where the embedded database, the filesystem store and temporary files live."""
    server: ServerConfig = field(default_factory=ServerConfig)
    database: DatabaseConfig = field(default_factory=DatabaseConfig)
    store: StoreConfig = field(default_factory=StoreConfig)
    limits: Limits = field(default_factory=Limits)
    log: LogConfig = field(default_factory=LogConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    jobs: JobSettings = field(default_factory=JobSettings)

    @property
    def bind_address(self) -> tuple[str, int]:
        """Host and port to listen on."""
        return address(self.server.bind)

    @property
    def store_path(self) -> Path:
        """The object store's directory."""
        return self.store.path if self.store.path != Path() else self.data_dir / "store"

    @property
    def s3(self) -> S3Settings | None:
        """The S3-compatible store; ``None`` when objects are kept in a directory. ``ValueError`` when it cannot be."""
        store = self.store
        if not store.url:
            return None
        bucket, prefix = parse_url(store.url)
        return S3Settings(
            bucket, prefix, store.endpoint, store.public_endpoint, store.region, store.addressing,
            store.ca_file if store.ca_file != Path() else None, store.call_timeout_s,
        )  # fmt: skip


def address(bind: str) -> tuple[str, int]:
    """Read host and port."""
    host, _, port = bind.rpartition(":")
    return host.strip("[]"), int(port)


@dataclass(frozen=True, slots=True)
class Setting:
    """One value with its origin."""

    key: str
    value: object
    origin: str

    @property
    def shown(self) -> object:
        """The value as it may be shown."""
        if self.key in SECRETS and isinstance(self.value, str):
            return without_password(self.value)
        if isinstance(self.value, Durability | Addressing):
            return self.value.value
        return str(self.value) if isinstance(self.value, Path) else self.value


def load(
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, str] | None = None,
) -> tuple[Config, list[Setting]]:
    """Put the configuration together.

    Args:
        file: a TOML file that must exist; ``None``: ``$MUSEWORKD_CONFIG``, or the first default file there is.
        environment: the process environment.
        flags: ``section.name`` → text, from the command line.

    Raises:
        ConfigError: for an unknown key, a wrong type, a value out of range or an unreadable file.
    """
    environment = os.environ if environment is None else environment
    found: dict[str, tuple[object, str]] = {key: (default, "default") for key, _, default in _keys()}
    types_of = {key: annotation for key, annotation, _ in _keys()}
    for key, value, origin in _layers(file, environment, flags or {}):
        if key not in types_of:
            raise ConfigError(f"{origin}: unknown setting {key!r}")
        found[key] = (_convert(key, value, types_of[key], origin), origin)
    config = _build({key: value for key, (value, _) in found.items()})
    _check(config)
    return config, [Setting(key, value, origin) for key, (value, origin) in found.items()]


def _layers(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, str]
) -> Iterator[tuple[str, object, str]]:
    path = _config_file(file, environment)
    if path is not None:
        try:
            document = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: {error}") from error
        for section, values in document.items():
            if not isinstance(values, dict):
                yield section, values, str(path)
                continue
            for name, value in values.items():
                yield f"{section}.{name}", value, str(path)
    by_variable = {ENVIRONMENT_PREFIX + key.replace(".", "_").upper(): key for key, _, _ in _keys()}
    for variable, value in environment.items():
        if variable in NOT_SETTINGS or variable.startswith(TEST_PREFIX):
            continue
        if variable.startswith(ENVIRONMENT_PREFIX):
            if variable not in by_variable:
                raise ConfigError(f"environment: unknown setting {variable}")
            yield by_variable[variable], value, f"environment {variable}"
    for key, value in flags.items():
        yield key, value, "flag"


def _config_file(file: Path | None, environment: Mapping[str, str]) -> Path | None:
    if file is not None:
        return file
    named = environment.get("MUSEWORKD_CONFIG")
    if named:
        return Path(named)
    return next((path for path in DEFAULT_FILES if path.is_file()), None)


def _keys() -> Iterator[tuple[str, object, object]]:
    defaults = Config()
    own = typing.get_type_hints(Config)
    for section in fields(Config):
        part = getattr(defaults, section.name)
        if not dataclasses.is_dataclass(part):
            yield section.name, own[section.name], part
            continue
        annotations = typing.get_type_hints(type(part))
        for entry in fields(part):
            yield f"{section.name}.{entry.name}", annotations[entry.name], getattr(part, entry.name)


def _build(values: Mapping[str, object]) -> Config:
    config = Config()
    changes: dict[str, object] = {}
    for section in fields(Config):
        part = getattr(config, section.name)
        if section.name in values:
            changes[section.name] = values[section.name]
        else:
            changed = {entry.name: values[f"{section.name}.{entry.name}"] for entry in fields(part)}
            changes[section.name] = dataclasses.replace(part, **changed)
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def _convert(key: str, value: object, wanted: object, origin: str) -> object:
    try:
        return _converted(value, wanted)
    except (ValueError, TypeError, KeyError):
        name = wanted.__name__ if isinstance(wanted, type | types.GenericAlias) else str(wanted)
        raise ConfigError(f"{origin}: {key} is not a {name}: {value!r}") from None


def _converted(value: object, wanted: object) -> object:
    if wanted is bool:
        if isinstance(value, bool):
            return value
        return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[str(value).lower()]
    if wanted is int:
        if isinstance(value, bool | float):
            raise TypeError
        return int(str(value))
    if wanted is float:
        if isinstance(value, bool):
            raise TypeError
        return float(str(value))
    if not isinstance(value, str):
        raise TypeError
    if wanted is Path:
        return Path(value).expanduser()
    if wanted is Durability or wanted is Addressing:
        return Durability(value) if wanted is Durability else Addressing(value)
    return value


def _check(config: Config) -> None:
    for key, _, _ in _keys():
        value: object = config
        for name in key.split("."):
            value = getattr(value, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value > 0:
            continue
        if value != 0 or key not in MAY_BE_ZERO:
            raise ConfigError(f"{key} must be greater than 0, not {value}")
    if config.database.url and without_password(config.database.url) is None:
        raise ConfigError("database.url is neither a URL nor a connection string of PostgreSQL")
    if config.database.statement_timeout_s > STATEMENT_MOST_S:
        raise ConfigError(
            f"database.statement_timeout_s is at most {STATEMENT_MOST_S:.0f} seconds, well below the {LEASE_S:.0f} for "
            "which a push is held without a sign of life: a longer statement would lose it"
        )
    for key, bind in (("server.bind", config.server.bind), ("metrics.bind", config.metrics.bind)):
        host, _, port = bind.rpartition(":")
        if (bind or key == "server.bind") and (not host or not port.isdigit() or int(port) > 65535):
            raise ConfigError(f"{key} is not host:port: {bind!r}")
    if config.server.public_url:
        parts = urlsplit(config.server.public_url)
        if parts.scheme not in {"http", "https"} or not parts.netloc or config.server.public_url.endswith("/"):
            raise ConfigError("server.public_url is http(s)://host[:port][/prefix], without a slash at the end")
    _check_store(config)
    if config.server.role not in ROLES:
        raise ConfigError(f"server.role is web, worker or all, not {config.server.role!r}")
    if config.log.level not in {"debug", "info", "warning", "error"}:
        raise ConfigError(f"log.level is debug, info, warning or error, not {config.log.level!r}")
    if config.log.format not in {"auto", "json", "console"}:
        raise ConfigError(f"log.format is auto, json or console, not {config.log.format!r}")


def _check_store(config: Config) -> None:
    try:
        s3 = config.s3
    except ValueError as error:
        raise ConfigError(f"[store] {error}") from None
    if s3 is None and (config.store.endpoint or config.store.public_endpoint):
        raise ConfigError("store.endpoint is of an S3 store, and store.url names none")
    if s3 is not None and config.store.path != Path():
        raise ConfigError("store.url and store.path name two stores: there is one")
