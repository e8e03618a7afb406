"""Opening a git bundle: its pack is indexed in a fresh repository and its refs are set there.

It is neither cloned nor fetched, so no transport is begun and a file that is not a bundle, such as one that leads to
somebody's repository, is never followed.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from museworkd.client.errors import ClientError
from museworkd.client.git_process import make_repository, run_git

_SIGNATURES = {b"# v2 git bundle\n", b"# v3 git bundle\n"}
_HEADER_LINE_BYTES = 64 * 1024
_USUAL = (b"refs/heads/main", b"refs/heads/master")
"""Where a bundle's HEAD is when several of its branches are at HEAD's commit: it says the commit only."""


@dataclass(slots=True)
class _Header:
    object_format: str = "sha1"
    filtered: bool = False


def open_bundle(source: Path, directory: Path) -> None:
    """Make a bare repository out of a bundle with all its branches and tags.

    Raises:
        ClientError: it is not a bundle, or not a whole one.
    """
    header = _read_header(source)
    if header.filtered:
        raise ClientError(f"{source} holds only a part of its repository; make a bundle without a filter")
    make_repository(directory, header.object_format)
    try:
        out = run_git(directory, "bundle", "unbundle", str(source.absolute()))
    except ClientError as error:
        raise ClientError(f"{source} is not a whole git bundle: {error}") from error
    refs: dict[bytes, bytes] = {}
    for line in (out or b"").splitlines():
        sha, _, name = line.partition(b" ")
        refs[name] = sha
    _set_refs(directory, refs)


def _read_header(source: Path) -> _Header:
    header = _Header()
    with source.open("rb") as file:
        if file.readline(_HEADER_LINE_BYTES) not in _SIGNATURES:
            raise ClientError(f"{source} is not a git bundle")
        while (line := file.readline(_HEADER_LINE_BYTES)).startswith(b"@"):
            name, _, value = line[1:].rstrip(b"\n").partition(b"=")
            if name == b"object-format" and value in {b"sha1", b"sha256"}:
                header.object_format = value.decode()
            elif name == b"filter":
                header.filtered = True
            else:
                raise ClientError(f"{source} is a git bundle of a kind this client does not know")
    return header


def _set_refs(directory: Path, refs: dict[bytes, bytes]) -> None:
    """Set branches and tags; nothing else a bundle may name is a ref here."""
    with tempfile.TemporaryFile() as wanted:
        for name, sha in refs.items():
            if name.startswith((b"refs/heads/", b"refs/tags/")):
                wanted.write(b"create %b\0%b\0" % (name, sha))
        wanted.seek(0)
        run_git(directory, "update-ref", "--no-deref", "-z", "--stdin", stdin=wanted)
    head = refs.get(b"HEAD")
    if head is not None:
        branches = [name for name in (*_USUAL, *refs) if name.startswith(b"refs/heads/") and refs.get(name) == head]
        (directory / "HEAD").write_bytes(b"ref: %b\n" % branches[0] if branches else b"%b\n" % head)
