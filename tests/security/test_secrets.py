"""Tokens, signatures and passwords are in no log, no answer and no output, and go to nobody else."""

from __future__ import annotations

import hmac

import click.testing
import pytest

from museworkd.cli.main import main
from museworkd.client.errors import ClientError
from museworkd.client.fetch import clone as client_clone
from museworkd.client.progress import Quiet
from museworkd.client.transport import Api, Remote
from museworkd.http import signed_urls
from museworkd.telemetry.logs import configure
from storage.memory.index import MemoryIndex
from storage.objects.memory import MemoryStore
from storage.rows import Right
from tests.clones import fetch, target_of
from tests.deployments import bearer, with_history
from tests.http_client import ask
from tests.refused_pushes import X
from tests.scripted import scripted
from tests.servers import TOKENS, serving


@pytest.mark.usefixtures("expected_errors")
async def test_T20_a_token_is_in_no_log_and_in_no_answer(server, logs):
    history = await with_history(server)
    made, headers = await bearer(server, "alice", Right.ADMIN)
    secret = headers["authorization"].removeprefix("Bearer ")
    wrong = "mwt_this-one-is-not-known-to-anybody"
    said = []
    for value in (f"Bearer {secret}", f"Bearer {wrong}", f"Basic {wrong}", wrong, f"Bearer {secret} {wrong}"):
        for method, target in [
            ("GET", "/alice/x/refs"), ("GET", "/alice/nothing/refs"), ("GET", "/alice/x/o/bad"), ("POST", "/api/repos"),
            ("POST", "/alice/x/push/stream"), ("POST", "/alice/x/fetch"), ("DELETE", "/alice/x/refs"), ("GET", "/%ff"),
        ]:  # fmt: skip
            said.append(await ask(server, method, target, headers={"authorization": value}, body=b"{"))
    await server.services.index.revoke_token(made.token_id, server.services.environment.now())
    said.append(await ask(server, "GET", "/alice/x/refs", headers=headers))
    said.append(await fetch(server, [history.head]))
    assert {answer.status for answer in said} >= {200, 401, 404, 405, 422}
    seen = repr(logs) + repr(said)
    assert len([entry for entry in logs if entry["event"] == "request"]) > 30
    for hidden in (secret, wrong, *TOKENS.values()):
        assert hidden not in seen


@pytest.mark.usefixtures("expected_errors")
async def test_T20_the_signature_of_a_url_is_in_no_log(server, logs):
    history = await with_history(server)
    target = target_of((await fetch(server, [history.head])).value)
    for asked in (target, target[:-1]):
        await ask(server, "GET", asked)
    assert "/mpack/" in repr(logs)
    assert target.rpartition("=")[2][:-1] not in repr(logs)


async def test_T20_a_signature_is_compared_in_constant_time(twin, monkeypatch):
    compared: list[tuple[bytes, bytes]] = []

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    compare = hmac.compare_digest
    history = await with_history(twin)
    target = target_of((await fetch(twin, [history.head])).value)
    monkeypatch.setattr(signed_urls.hmac, "compare_digest", watched)
    wrong = target[:-8] + "0" * 8
    for asked, status in ((target, 200), (wrong, 403)):
        assert (await ask(twin, "GET", asked)).status == status
    sent = [asked.rpartition("=")[2].encode() for asked in (target, wrong)]
    assert [set(pair) for pair in compared] == [{sent[0]}, {sent[0], sent[1]}]


class BrokenIndex(MemoryIndex):
    """Fails while a request's secrets are in the frames above it."""

    async def find_access(self, *_: object) -> None:
        raise RuntimeError("a bug")


@pytest.mark.parametrize("style", ["json", "console"])
async def test_T20_the_trace_of_a_bug_has_no_secret_in_it(tmp_path, capsys, restored_logging, style):
    async with serving(BrokenIndex(), MemoryStore(), tmp_path) as server:
        configure("info", style)
        answer = await ask(server, "GET", "/alice/x/refs", token="alice")
    assert (answer.status, answer.error) == (500, "internal")
    shown = capsys.readouterr().err
    assert "a bug" in shown
    assert TOKENS["alice"] not in shown


PASSWORDS = {
    "in a URL": "postgresql://user:{}@host/db",
    "as a parameter of a URL": "postgresql://host/db?user=u&password={}",
    "as a keyword": "host=h password={} dbname=d",
    "with spaces around the sign": "host=h password = {}",
    "after a tab": "host=h\tpassword={}",
    "in quotes, with a space": "host=h password='a {}'",
    "of several hosts": "postgresql://user:{}@one:1,two:2/db",
}


@pytest.mark.parametrize("form", PASSWORDS)
def test_T20_a_shown_configuration_has_no_password(form):
    arguments = ["config", "show", "--database-url", PASSWORDS[form].format("open-sesame"), "--json"]
    result = click.testing.CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "database.url" in result.output
    assert "open-sesame" not in result.output


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_T20_a_client_takes_its_token_nowhere_a_server_sends_it(status):
    async with scripted() as server, scripted() as elsewhere:
        remote = Remote(f"{server.url}/alice/x", "a-token")
        server.say({}, status, location=f"{elsewhere.url}/alice/x/refs")
        async with Api(remote) as api:
            with pytest.raises(ClientError):
                await api.get("refs")
        assert server.heads[0][1]["authorization"] == "Bearer a-token"
        assert elsewhere.heads == []


async def test_T20_a_client_downloads_without_its_token(tmp_path):
    async with scripted() as server, scripted() as elsewhere:
        refs = {"domain": "code", "default_branch": "main", "branch_heads": {"main": "sha256:" + "5e" * 32}}
        for _ in range(2):
            server.say(refs)
        server.say({
            "mpack_id": X, "mpack_url": f"{elsewhere.url}/p", "size_bytes": 3, "commit_count": 1, "object_count": 0,
        })  # fmt: skip
        elsewhere.say(b"abc")
        with pytest.raises(ClientError):
            await client_clone(Remote(f"{server.url}/alice/x", "a-token"), tmp_path / "clone", Quiet())
        assert [target for target, _ in elsewhere.heads] == ["/p"]
        assert "a-token" not in repr(elsewhere.heads)
        assert server.heads[2][1]["authorization"] == "Bearer a-token"
