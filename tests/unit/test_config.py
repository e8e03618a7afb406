"""Configuration: four layers in order, nothing unknown, every value with its origin."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.heartbeat import LEASE_S
from museworkd.config import Config, ConfigError, load
from storage.objects.durability import Durability


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "museworkd.toml"
        path.write_text(text)
        return path

    return write


def origin(settings, key: str) -> str:
    return next(s.origin for s in settings if s.key == key)


def test_without_anything_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config, settings = load(None, {}, {})
    assert config == Config()
    assert {s.origin for s in settings} == {"default"}


def test_flags_win_over_environment_over_file_over_defaults(file) -> None:
    path = file("[server]\nbind = '0.0.0.0:1'\ndrain_s = 5\nheartbeat_s = 3\n")
    environment = {"MUSEWORKD_SERVER_BIND": "0.0.0.0:2", "MUSEWORKD_SERVER_DRAIN_S": "6"}
    config, settings = load(path, environment, {"server.bind": "0.0.0.0:3"})
    assert (config.server.bind, config.server.drain_s, config.server.heartbeat_s) == ("0.0.0.0:3", 6.0, 3.0)
    assert origin(settings, "server.bind") == "flag"
    assert origin(settings, "server.drain_s") == "environment MUSEWORKD_SERVER_DRAIN_S"
    assert origin(settings, "server.heartbeat_s") == str(path)
    assert origin(settings, "log.level") == "default"


@pytest.mark.parametrize(
    "text",
    [
        "[server]\nbindd = 'x'\n",
        "[servre]\nbind = 'x'\n",
        "bind = 'x'\n",
        "server = 1\n",
        "[data_dir]\nx = 1\n",
        "[limits]\nobjects = 1\n",
    ],
)
def test_an_unknown_key_in_the_file_is_an_error(file, text: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting"):
        load(file(text), {}, {})


def test_an_unknown_variable_is_an_error() -> None:
    with pytest.raises(ConfigError, match="unknown setting MUSEWORKD_SERVER_BINDD"):
        load(None, {"MUSEWORKD_SERVER_BINDD": "x"}, {})


def test_an_unknown_flag_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"flag: unknown setting 'server\.bindd'"):
        load(None, {}, {"server.bindd": "x"})


def test_other_programs_variables_and_the_clients_token_are_left_alone() -> None:
    load(None, {"MUSE_HOME": "/", "MUSEWORKD_TOKEN": "secret", "PATH": "/bin"}, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("server.max_connections", "many"), ("server.max_connections", "1.5"), ("server.drain_s", "soon"),
        ("database.auto_migrate", "perhaps"), ("store.sync", "sometimes"), ("server.max_connections", "0"),
        ("server.drain_s", "-1"), ("server.bind", "1337"), ("server.bind", "localhost:http"),
        ("server.bind", "localhost:70000"), ("server.public_url", "ftp://x"), ("server.public_url", "https://x/"),
        ("log.level", "loud"), ("log.format", "xml"), ("server.role", "both"), ("jobs.at_once", "0"),
        ("jobs.stale_s", "0"), ("jobs.gc_every_s", "-1"),
    ],
)  # fmt: skip
def test_a_value_that_makes_no_sense_is_an_error_that_names_the_key(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=key.replace(".", r"\.")):
        load(None, {}, {key: value})


def test_a_statement_ends_well_before_the_lease_of_its_push() -> None:
    """Otherwise what a push waits for outlives its claim to the rows."""
    assert load(None, {}, {"database.statement_timeout_s": "120"})[0].database.statement_timeout_s < LEASE_S / 2
    for value in ("120.5", "300", "inf", "nan"):
        with pytest.raises(ConfigError, match=r"database\.statement_timeout_s"):
            load(None, {}, {"database.statement_timeout_s": value})


def test_a_file_that_is_named_must_exist_and_be_toml(file, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        load(tmp_path / "nowhere.toml", {}, {})
    with pytest.raises(ConfigError):
        load(file("[server"), {}, {})


def test_the_environment_can_name_the_file(file) -> None:
    config, _ = load(None, {"MUSEWORKD_CONFIG": str(file("[log]\nlevel = 'debug'\n"))}, {})
    assert config.log.level == "debug"


def test_toml_types_are_checked_like_text(file) -> None:
    config, _ = load(
        file("[store]\nsync = 'each'\n[database]\nauto_migrate = false\n[limits]\nmpack_bytes = 7\n"), {}, {}
    )
    assert config.store.sync is Durability.EACH
    assert config.database.auto_migrate is False
    assert config.limits.mpack_bytes == 7
    with pytest.raises(ConfigError, match=r"limits\.mpack_bytes"):
        load(file("[limits]\nmpack_bytes = true\n"), {}, {})


@pytest.mark.parametrize(
    "url", ["postgresql://ada:hunter2@db:5432/muse", "postgresql://ada:hunter2@db/muse", "host=db password=hunter2"]
)
def test_a_password_is_never_shown(url: str) -> None:
    _, settings = load(None, {}, {"database.url": url})
    shown = str(next(s.shown for s in settings if s.key == "database.url"))
    assert "hunter2" not in shown
    assert "***" in shown
