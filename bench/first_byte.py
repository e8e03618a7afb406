"""How long a clone waits for the first byte of its content: the requests of a client, without the start of one."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from bench import git_wire
from bench.muse_daemon import MuseDaemon, place_of
from bench.peers import SETTLE_S, BenchError, Sample

TIMES = 5
PREPARING_S = 120.0
"""For so long a server may say that it is still making what is asked for."""
_PIECE_BYTES = 4096


def timed(times: int, once: Callable[[], None]) -> list[Sample]:
    """Do it some times; each ends with the first byte."""
    found = []
    for _ in range(times):
        began = time.perf_counter()
        once()
        found.append(Sample(time.perf_counter() - began))
        time.sleep(SETTLE_S)  # what the server does for an answer that was not read ends
    return found


def of_muse(daemon: MuseDaemon, repository: str) -> None:
    """Ask for the branches and for everything, and wait for the pack to begin."""
    connection = daemon.connect()
    owner, _ = place_of(repository)
    heads = dict(daemon.heads(repository, connection))  # type: ignore[call-overload]
    headers = {"authorization": f"Bearer {daemon.token(owner)}"}
    body = {"want": list(heads.values()), "have": []}
    told = _prepared(daemon, f"{daemon.path_of(repository)}/fetch/mpack", owner, body, connection)
    url = urlsplit(str(told["mpack_url"]))
    connection.request("GET", f"{url.path}?{url.query}", headers=headers)
    _first_byte(connection, 200, b"MUSE")


def of_git(port: int, repository: str, timeout_s: float) -> None:
    """Do the same as git does it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    path = f"/{repository}.git"
    connection.request("GET", f"{path}/{git_wire.ADVERTISED}", headers=git_wire.HEADERS)
    connection.getresponse().read()
    connection.request("POST", f"{path}/{git_wire.UPLOAD_PACK}", git_wire.LIST_REFS, git_wire.HEADERS)
    head = connection.getresponse().read()[4:44].decode()
    connection.request("POST", f"{path}/{git_wire.UPLOAD_PACK}", git_wire.want(head), git_wire.HEADERS)
    _first_byte(connection, 200, git_wire.PACK_MAGIC)


def _first_byte(connection: http.client.HTTPConnection, status: int, magic: bytes) -> None:
    answer = connection.getresponse()
    seen = b""
    while magic not in seen:
        piece = answer.read1(_PIECE_BYTES)
        seen += piece
        if not piece or answer.status != status:
            raise BenchError(f"a clone was answered {answer.status}: {seen[:300]!r}")
    connection.close()


def _prepared(
    daemon: MuseDaemon, path: str, owner: str, body: Mapping[str, object], connection: http.client.HTTPConnection
) -> dict[str, object]:
    """Ask until the pack is made: the waiting counts."""
    began = time.perf_counter()
    while True:
        try:
            return daemon.ask("POST", path, owner, body, over=connection)
        except BenchError as error:
            if "preparing" not in str(error) or time.perf_counter() - began > PREPARING_S:
                raise
            time.sleep(1.0)
