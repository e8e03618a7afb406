"""What a git client says for a clone, by hand: version 2 of its protocol over HTTP, without a process for each client.

It asks for what there is, then for everything, and proves the pack that comes: its trailer and its number of objects.
"""

from __future__ import annotations

import hashlib
import struct

from bench.peers import BenchError

ADVERTISED = "info/refs?service=git-upload-pack"
UPLOAD_PACK = "git-upload-pack"
HEADERS = {
    "git-protocol": "version=2", "content-type": "application/x-git-upload-pack-request",
    "accept": "application/x-git-upload-pack-result",
}  # fmt: skip
PACK_MAGIC = b"PACK"
_LENGTH = 4
_DELIMITER, _END = b"0001", b"0000"
_BAND_PACK = 1
_TRAILER = 20


def line(text: str) -> bytes:
    """Give a line as it travels: its length first."""
    data = text.encode() + b"\n"
    return b"%04x" % (len(data) + _LENGTH) + data


LIST_REFS = line("command=ls-refs") + _DELIMITER + line("peel") + line("symrefs") + _END


def want(head: str) -> bytes:
    """Ask for a commit with everything below it."""
    options = ("thin-pack", "no-progress", "ofs-delta", f"want {head}", "done")
    return line("command=fetch") + _DELIMITER + b"".join(map(line, options)) + _END


def check_pack(answer: bytes, objects: int) -> None:
    """Hold an answer to :func:`want` against what has to come; raises :class:`BenchError`."""
    pack = _pack_of(answer)
    if pack[:4] != PACK_MAGIC or hashlib.sha1(pack[:-_TRAILER], usedforsecurity=False).digest() != pack[-_TRAILER:]:
        raise BenchError(f"git sent no sound pack: {answer[:200]!r}")
    (found,) = struct.unpack_from(">I", pack, 8)
    if found != objects:
        raise BenchError(f"git's pack has {found} objects, not {objects}")


def _pack_of(answer: bytes) -> bytes:
    at, pack, began = 0, [], False
    while at + _LENGTH <= len(answer):
        try:
            length = int(answer[at : at + _LENGTH], 16)
        except ValueError:
            break
        data = answer[at + _LENGTH : at + length]
        if began and data and data[0] == _BAND_PACK:
            pack.append(data[1:])
        began = began or data == b"packfile\n"
        at += max(length, _LENGTH)
    return b"".join(pack)
