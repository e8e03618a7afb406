"""The command line as an operator and a user meet it: results on stdout, words on stderr, exit codes as documented."""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path

import httpx
import psycopg
import pytest

from storage.postgres.embedded import EmbeddedPostgres
from tests.git_histories import ordinary
from tests.servers import daemon, museworkd


@pytest.fixture
def options(tmp_path: Path, database_url: str) -> list[str]:
    return ["--data-dir", str(tmp_path / "data"), "--database-url", database_url]


def as_json(*arguments: str, **more) -> dict:
    return json.loads(museworkd(*arguments, "--json", **more).stdout)


def test_help_names_every_command_and_the_exit_codes() -> None:
    text = museworkd("--help").stdout
    for command in ("serve", "migrate", "repo", "token", "config", "git-import", "push", "clone", "fetch", "verify"):
        assert f"\n  {command} " in text
    assert "Exit codes" in text


def test_a_repository_is_made_listed_and_deleted(options: list[str]) -> None:
    made = as_json("repo", "create", "ada/engine", "--public", "--default-branch", "trunk", *options)
    assert (made["owner"], made["slug"], made["visibility"], made["default_branch"]) == (
        "ada", "engine", "public", "trunk",
    )  # fmt: skip
    museworkd("repo", "create", "bob/engine", *options)
    assert [r["owner"] for r in as_json("repo", "list", *options)["repositories"]] == ["ada", "bob"]
    assert [r["owner"] for r in as_json("repo", "list", "--owner", "bob", *options)["repositories"]] == ["bob"]
    assert "ada/engine" in museworkd("repo", "list", *options).stdout

    twice = museworkd("repo", "create", "ada/engine", *options, check=1)
    assert "already" in twice.stderr
    museworkd("repo", "delete", "ada/engine", "--yes", *options)
    museworkd("repo", "delete", "ada/engine", "--yes", *options, check=1)
    again = as_json("repo", "create", "ada/engine", *options)
    assert again["repo_id"] != made["repo_id"]


@pytest.mark.parametrize("name", ["engine", "ada/", "/engine", "a/b/c", "ada/..", "api/engine", "ada/.hidden"])
def test_a_name_that_cannot_be_is_refused(options: list[str], name: str) -> None:
    assert museworkd("repo", "create", name, *options, check=1).stderr.startswith("error: ")


def test_a_token_works_until_it_is_revoked(options: list[str], tmp_path: Path, database_url: str) -> None:
    museworkd("repo", "create", "ada/engine", *options)
    token = as_json("token", "create", "ada", "--scope", "read", "--expires", "1h", *options)
    with daemon(tmp_path / "data", database_url) as server:
        headers = {"authorization": f"Bearer {token['token']}"}
        assert httpx.get(f"{server.url}/ada/engine/refs", headers=headers).status_code == 200
        assert as_json("token", "revoke", token["token_id"], *options) == {"revoked": True}
        assert httpx.get(f"{server.url}/ada/engine/refs", headers=headers).status_code == 401
    museworkd("token", "revoke", token["token_id"], *options, check=1)
    museworkd("token", "revoke", "not-an-id", *options, check=1)
    (listed,) = as_json("token", "list", *options)["tokens"]
    assert listed["revoked_at"] is not None
    assert token["token"] not in museworkd("token", "list", *options).stdout


def test_T20_a_secret_is_stored_hashed_only(options: list[str], database_url: str) -> None:
    token = museworkd("token", "create", "ada", "--expires", "never", *options).stdout.strip()
    with psycopg.connect(database_url) as connection:
        rows = connection.execute("SELECT * FROM tokens").fetchall()
    assert len(rows) == 1
    assert token.encode() not in repr(rows).encode()


def test_migrate_says_what_it_did(tmp_path: Path, empty_database: str) -> None:
    options = ["--data-dir", str(tmp_path / "data"), "--database-url", empty_database]
    assert as_json("migrate", *options)["applied"][0] == "0001_foundation.sql"
    assert as_json("migrate", *options)["applied"] == []
    assert "up to date" in museworkd("migrate", *options).stdout


def test_a_newer_schema_is_refused_with_exit_code_4(tmp_path: Path, database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute("INSERT INTO schema_migrations VALUES (9999, '9999_future.sql', '')")
    options = ["--data-dir", str(tmp_path / "data"), "--database-url", database_url]
    assert "9999_future.sql" in museworkd("migrate", *options, check=4).stderr
    assert "newer" in museworkd("serve", *options, check=4).stderr
    assert "newer" in museworkd("repo", "list", *options, check=4).stderr


def test_an_old_schema_is_refused_when_migrating_is_switched_off(tmp_path: Path, empty_database: str) -> None:
    options = ["--data-dir", str(tmp_path / "data"), "--database-url", empty_database]
    refused = museworkd("serve", "--set", "database.auto_migrate=false", *options, check=4)
    assert "museworkd migrate" in refused.stderr


def test_a_database_that_is_not_there_is_told_with_exit_code_3(tmp_path: Path) -> None:
    options = ["--data-dir", str(tmp_path / "data"), "--database-url", "host=/nowhere dbname=x"]
    assert museworkd("repo", "list", *options, check=3).stderr.startswith("error: ")


def test_config_check_and_show(tmp_path: Path) -> None:
    assert museworkd("config", "check").stdout == "the configuration is sound\n"
    assert "unknown setting" in museworkd("config", "check", "--set", "server.bindd=x", check=4).stderr
    assert "--set takes" in museworkd("config", "check", "--set", "server.bind", check=4).stderr
    shown = as_json("config", "show", "--set", "server.drain_s=5")
    assert shown["server.drain_s"] == {"value": 5.0, "origin": "flag"}
    assert "server.drain_s" in museworkd("config", "show").stdout


def test_the_shipped_configuration_file_is_sound_and_says_every_default() -> None:
    import importlib.resources

    path = importlib.resources.files("conf") / "museworkd.toml"
    museworkd("config", "check", "--config", str(path))
    shown = as_json("config", "show", "--config", str(path))
    defaults = as_json("config", "show")
    assert {key: entry["value"] for key, entry in shown.items()} == {k: e["value"] for k, e in defaults.items()}
    text = path.read_text("utf-8")
    for key in defaults:
        section, _, name = key.rpartition(".")
        assert not section or f"[{section}]" in text
        assert f"\n{name} = " in text or f"\n# {name} = " in text, key


def test_a_user_is_told_what_is_wrong(options: list[str], tmp_path: Path, database_url: str, work: Path) -> None:
    source = ordinary(tmp_path / "git", commits=3)
    museworkd("repo", "create", "ada/engine", *options)
    token = museworkd("token", "create", "ada", *options).stdout.strip()
    reader = museworkd("token", "create", "eve", *options).stdout.strip()
    museworkd("git-import", str(source), str(work / "here"))
    here = ["-C", str(work / "here")]
    with daemon(tmp_path / "data", database_url) as server:
        url = f"{server.url}/ada/engine"
        cases = {
            "is a Muse repository": museworkd("push", url, "-C", str(tmp_path), token=token, check=1),
            "a Muse repository already": museworkd("git-import", str(source), str(work / "here"), check=1),
            "not a git repository": museworkd("git-import", str(work), str(work / "there"), check=1),
            "there is no remote": museworkd("push", *here, token=token, check=1),
            "not a repository URL": museworkd("push", "http://x", *here, token=token, check=1),
            "there is no branch": museworkd("push", url, "-b", "nope", *here, token=token, check=1),
            "not_found": museworkd("push", url, *here, token=reader, check=1),
            "unauthenticated": museworkd("push", url, *here, token="wrong", check=1),
            "cannot reach": museworkd("push", "http://127.0.0.1:9/ada/engine", *here, token=token, check=3),
            "no such repository": museworkd("clone", f"{server.url}/ada/nothing", str(work / "c"), check=1),
            "is not empty": museworkd("clone", url, str(work), token=token, check=1),
        }
        for words, done in cases.items():
            assert words in done.stderr, (words, done.stderr)
            assert "Traceback" not in done.stderr
        assert not (work / "c").exists()
        assert not (work / "there").exists()
        museworkd("push", url, "--set-remote", *here, token=token)
        assert "up to date" in museworkd("push", *here, token=token).stdout


def test_force_and_lease_move_a_branch_as_asked(
    options: list[str], tmp_path: Path, database_url: str, work: Path
) -> None:
    one, two = ordinary(tmp_path / "one", commits=5, seed=1), ordinary(tmp_path / "two", commits=5, seed=2)
    museworkd("repo", "create", "ada/engine", *options)
    token = museworkd("token", "create", "ada", *options).stdout.strip()
    first = as_json("git-import", str(one), str(work / "one"))["branches"]["main"]
    second = as_json("git-import", str(two), str(work / "two"))["branches"]["main"]
    with daemon(tmp_path / "data", database_url) as server:
        url = f"{server.url}/ada/engine"

        def push(name: str, *more: str, check: int = 0):
            return museworkd("push", url, "-b", "main", "-C", str(work / name), *more, token=token, check=check)

        push("one", "--expect", "none")
        assert "non_fast_forward" in push("two", check=1).stderr
        assert "head_moved" in push("two", "--force", "--expect", second, check=1).stderr
        assert "head_moved" in push("two", "--force", "--expect", "none", check=1).stderr
        push("two", "--force", "--expect", first)
        heads = httpx.get(f"{url}/refs", headers={"authorization": f"Bearer {token}"}).json()["branch_heads"]
        assert heads == {"main": second}


@pytest.mark.timeout(200)
def test_a_new_database_says_nothing_where_results_belong_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    where = ["--data-dir", str(tmp_path / "new")]
    try:
        assert re.fullmatch(r"mwt_[A-Za-z0-9_-]+\n", museworkd("token", "create", "ada", *where).stdout)
        assert as_json("repo", "list", *where) == {"repositories": []}
        with daemon(tmp_path / "new", None):
            pass
        ours = (tmp_path / "new" / name for name in ("store", "spool"))
        made = [path for directory in ours if directory.is_dir() for path in [directory, *directory.rglob("*")]]
        assert made
        assert {path for path in made if stat.S_IMODE(path.stat().st_mode) & 0o077} == set()
        assert not stat.S_IMODE((tmp_path / "new").stat().st_mode) & 0o066
    finally:
        EmbeddedPostgres(tmp_path / "new").destroy()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take another's directory")
def test_root_does_not_serve_from_somebody_elses_directory(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    os.chown(tmp_path / "data", 12345, 12345)
    refused = museworkd("serve", "--data-dir", str(tmp_path / "data"), check=4)
    assert "belongs to 12345" in refused.stderr
    assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("lifetime", ["0d", "99999999999d", "soon", "-1d"])
def test_a_lifetime_that_cannot_be_is_wrong_usage(options: list[str], lifetime: str) -> None:
    assert "Traceback" not in museworkd("token", "create", "ada", "--expires", lifetime, *options, check=2).stderr


def test_a_token_list_shows_what_revoke_takes(options: list[str]) -> None:
    made = as_json("token", "create", "ada", *options)
    museworkd("token", "create", "ada", "--expires", "1s", *options)
    assert made["token_id"] in museworkd("token", "list", *options).stdout
    museworkd("token", "revoke", made["token_id"], *options)
    assert "revoked" in museworkd("token", "list", *options).stdout
    unknown = museworkd("token", "revoke", made["token_id"], *options, check=1)
    assert (unknown.stdout, unknown.stderr) == ("", "error: there is no valid token with that id\n")


def test_an_address_that_is_taken_is_named(options: list[str], tmp_path: Path, database_url: str) -> None:
    with daemon(tmp_path / "data", database_url) as server:
        address = server.url.removeprefix("http://")
        refused = museworkd("serve", "--bind", address, *options, check=3)
    assert f"cannot listen on {address}" in refused.stderr


def test_a_connection_string_that_is_none_is_wrong_configuration() -> None:
    refused = museworkd("config", "check", "--database-url", "nonsense", check=4)
    assert "database.url" in refused.stderr
