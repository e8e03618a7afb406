"""Histories of many small objects: how the time of a push grows with them, and questions about thousands of ids."""

from __future__ import annotations

import hashlib
import http.client
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgpack

from bench.figures import median, steepest
from bench.muse_daemon import MuseDaemon
from bench.muse_peer import MusePeer
from bench.peers import SETTLE_S, BenchError, Content, Sample
from bench.targets import KNOWN_FEW, KNOWN_MANY, MPACK, NEGOTIATE, SERVER_SLOPE, SLOPE, UNKNOWN, WAYS
from bench.workloads import BRANCH
from museworkd.client.repository import LocalRepository
from wire.ids import format_id

REPOSITORY = "many"
FEW_IDS, MANY_IDS = 1_000, 50_000
FEW_TIMES, MANY_TIMES, UNKNOWN_TIMES = 50, 10, 5
"""Questions a run."""
STARTS = 3
_UNKNOWN_BYTES = 1024
_PACKED = "application/x-msgpack"


@dataclass(frozen=True, slots=True)
class Ids:
    """What a history holds."""

    blobs: Mapping[str, int]
    """With their sizes."""
    commits: Sequence[str]


def read_ids(content: Content) -> Ids:
    """Read the ids of all blobs and commits of a history."""
    with LocalRepository.find(content.muse) as local:
        shown = {
            format_id(blob, local.scheme): size
            for pack_id in local.index.pack_ids()
            for blob, (_, size) in local.index.pack_places(pack_id).items()
        }
        return Ids(shown, [format_id(commit, local.scheme) for commit in local.index.commit_ids()])


def unknown_ids(count: int) -> dict[str, int]:
    """Give ids of objects that nobody has, with sizes."""
    ids = (hashlib.sha256(b"nobody has %d" % number).hexdigest() for number in range(count))
    return {f"sha256:{text}": _UNKNOWN_BYTES for text in ids}


def push_all(peer: MusePeer, content: Content) -> Sample:
    """Push a history by one file, whatever its size, into an empty index."""
    peer.create(REPOSITORY)
    return peer.push_by(content, REPOSITORY, WAYS[MPACK])


def growth(peer: MusePeer, pushes: Mapping[int, Sample]) -> Sample:
    """Tell how the time grew with the objects: the whole push but for the client's start, and the server's part."""
    start_s = median([sample.wall_s for _ in range(STARTS) if (sample := peer.start_up()).wall_s is not None])
    walls = [(n, s.wall_s - start_s) for n, s in pushes.items() if s.wall_s is not None and s.wall_s > start_s]
    served = [(n, s.server_ms) for n, s in pushes.items() if s.server_ms]
    return Sample(figures={"start_up_s": start_s, SLOPE: steepest(walls), SERVER_SLOPE: steepest(served)})


def ask_about(daemon: MuseDaemon, ids: Ids, wanted: frozenset[str]) -> dict[str, list[Sample]]:
    """Ask over one connection, as often as it takes for a median; every answer is checked."""
    few = dict(list(ids.blobs.items())[:FEW_IDS])
    many = dict(list(ids.blobs.items())[:MANY_IDS])
    none = unknown_ids(MANY_IDS)
    questions = [
        (KNOWN_FEW, FEW_TIMES, few, len(few)),
        (KNOWN_MANY, MANY_TIMES, many, len(many)),
        (UNKNOWN, UNKNOWN_TIMES, none, 0),
    ]
    asking = _Asking(daemon)
    found: dict[str, list[Sample]] = {}
    for operation, times, asked, known in questions:
        if operation in wanted:
            body = msgpack.packb({"object_ids": list(asked), "sizes": asked})
            found[operation] = asking.ask("push/presign", body, times, _Presigned(len(asked), known))
    if NEGOTIATE in wanted:
        head = str(dict(daemon.heads(REPOSITORY))[BRANCH])  # type: ignore[call-overload]
        have = list(ids.commits[:FEW_IDS])
        found[NEGOTIATE] = asking.ask(
            "negotiate", msgpack.packb({"want": [head], "have": have}), FEW_TIMES, _Negotiated(have)
        )
    asking.close()
    return found


class _Presigned:
    def __init__(self, asked: int, known: int) -> None:
        self._expected = (known, asked - known)

    def __call__(self, answer: Mapping[str, list[object]]) -> bool:
        return (len(answer["already_stored"]), len(answer["presigned_urls"])) == self._expected


class _Negotiated:
    def __init__(self, have: Sequence[str]) -> None:
        self._have = have

    def __call__(self, answer: Mapping[str, list[object]]) -> bool:
        return answer["ack"] == self._have and bool(answer["ready"])


class _Asking:
    """One connection that is kept."""

    def __init__(self, daemon: MuseDaemon) -> None:
        self._daemon = daemon
        self._connection: http.client.HTTPConnection = daemon.connect()
        self._headers = {
            "authorization": f"Bearer {daemon.token('bench')}", "content-type": _PACKED, "accept": _PACKED,
        }  # fmt: skip

    def ask(self, path: str, body: bytes, times: int, right: _Presigned | _Negotiated) -> list[Sample]:
        """Ask a few times, once before that is not measured."""
        whole = f"{self._daemon.path_of(REPOSITORY)}/{path}"
        self._once(whole, body, right)
        time.sleep(SETTLE_S)
        self._daemon.requests()
        walls = [self._once(whole, body, right) for _ in range(times)]
        time.sleep(SETTLE_S)
        return [
            Sample(wall, server_ms=request.ms, sent_bytes=request.received_bytes, received_bytes=request.sent_bytes)
            for wall, request in zip(walls, self._daemon.requests(), strict=True)
        ]

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def _once(self, path: str, body: bytes, right: _Presigned | _Negotiated) -> float:
        began = time.perf_counter()
        self._connection.request("POST", path, body, self._headers)
        answer = self._connection.getresponse()
        data = answer.read()
        wall_s = time.perf_counter() - began
        if answer.status != 200 or not right(msgpack.unpackb(data)):
            raise BenchError(f"POST {path}: {answer.status}: {data[:300]!r}")
        return wall_s
