"""One large file put into the store over one connection, beside what hashing it takes one core."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from bench.muse_daemon import MuseDaemon
from bench.peers import BenchError, Sample
from bench.targets import MB_S, OF_SHA256, SHA256_MB_S

REPOSITORY = "file"
PIECE_BYTES = 1024 * 1024
PIECES = 256


def random_pieces(number: int, count: int = PIECES, size: int = PIECE_BYTES) -> list[bytes]:
    """Give a content in pieces, from a seed; another for each number."""
    return [hashlib.shake_256(f"upload {number} {at}".encode()).digest(size) for at in range(count)]


def hash_alone(pieces: Sequence[bytes]) -> tuple[str, float]:
    """Hash on one core, with nothing else to do; gives the id and the seconds."""
    began = time.perf_counter()
    hasher = hashlib.sha256()
    for piece in pieces:
        hasher.update(piece)
    return f"sha256:{hasher.hexdigest()}", time.perf_counter() - began


def upload(daemon: MuseDaemon, pieces: Sequence[bytes]) -> Sample:
    """Upload to a presigned URL; the repository is there. Afterwards the server has to say that it has the file."""
    size = sum(map(len, pieces))
    key, hashed_s = hash_alone(pieces)
    path = f"{daemon.path_of(REPOSITORY)}/push/mpack-presign"
    told = daemon.ask("POST", path, body={"mpack_key": key, "size_bytes": size})
    url = urlsplit(str(told["upload_url"]))
    connection = daemon.connect()
    connection.connect()
    measuring = daemon.measure()
    cpu_s, began = time.process_time(), time.perf_counter()
    headers = {"content-type": "application/x-muse-pack", "content-length": str(size)}
    connection.request("PUT", f"{url.path}?{url.query}", iter(pieces), headers)
    answer = connection.getresponse()
    said = answer.read()
    wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    connection.close()
    if answer.status not in {200, 204}:
        raise BenchError(f"the upload was answered {answer.status}: {said[:300]!r}")
    sample = measuring.end(Sample(wall_s, client_cpu_s=cpu_s), f"{daemon.path_of(REPOSITORY)}/upload/")
    if daemon.ask("POST", path, body={"mpack_key": key, "size_bytes": size})["upload_url"] is not None:
        raise BenchError("the server does not have what was uploaded")
    hashed_s = min(hashed_s, hash_alone(pieces)[1])
    sample.figures |= {
        MB_S: size / wall_s / 1e6, SHA256_MB_S: size / hashed_s / 1e6, OF_SHA256: hashed_s / wall_s,
    }  # fmt: skip
    return sample
