"""A local Muse repository: the ``.muse`` directory of a work tree.

::

    repo.json       id scheme, domain and format version
    refs/heads/…    one file a branch; names are percent-encoded, so that no file system confuses two of them
    refs/remotes/<remote>/…
    refs/tags/…
    HEAD            the branch the work tree is on
    remotes.json    name → URL
    packs/          blobs: pack files with an index each
    index.sqlite    commits, snapshots and where blobs lie

Refs are written last and atomically, so whatever a ref names is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import quote, unquote

from museworkd.client.blob_packs import PackFiles
from museworkd.client.errors import ClientError, IntegrityError
from museworkd.client.local_index import LocalIndex
from storage.objects.durability import sync_directory
from wire.errors import Refusal
from wire.ids import Scheme, format_id, parse_id

FORMAT = 1
_DIRECTORY = ".muse"
_UNESCAPED = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-_")
_NAME_MOST = 200
_LONG = "%long-"


class RepositoryExists(ClientError):
    """There is one already, and it is not ours to touch."""


class LocalRepository:
    """Open with :meth:`init` or :meth:`open`; close when done."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.directory = root / _DIRECTORY
        try:
            facts = json.loads((self.directory / "repo.json").read_text("utf-8"))
            if facts["format"] != FORMAT:
                raise ClientError(f"{self.directory} has format {facts['format']}, this client knows {FORMAT}")
            self.scheme = Scheme(facts["scheme"])
            self.domain = str(facts["domain"])
        except FileNotFoundError:
            raise ClientError(f"{root} is not a Muse repository") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise IntegrityError(f"{self.directory}/repo.json is damaged: {error}") from error
        self.packs = self.directory / "packs"
        self.index = LocalIndex(self.directory / "index.sqlite")
        self.files = PackFiles(self.packs, self.scheme)

    @classmethod
    def init(cls, root: Path, domain: str = "code", default_branch: str = "main") -> Self:
        """Make an empty repository; the directory may exist, a repository in it may not."""
        directory = root / _DIRECTORY
        if (directory / "repo.json").exists():
            raise RepositoryExists(f"{root} is a Muse repository already")
        for part in ("packs", "refs/heads", "refs/remotes", "refs/tags"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        _write(directory / "HEAD", f"{default_branch}\n")
        _write(directory / "remotes.json", "{}\n")
        facts = {"format": FORMAT, "scheme": Scheme.TYPED.value, "domain": domain}
        _write(directory / "repo.json", json.dumps(facts, indent=1) + "\n")
        return cls(root)

    @classmethod
    @contextmanager
    def fresh(cls, root: Path, domain: str = "code") -> Iterator[Self]:
        """Make a repository for a block that fills it; one that fails leaves nothing behind."""
        existed = root.exists()
        try:
            with cls.init(root, domain) as repository:
                yield repository
        except RepositoryExists:
            raise
        except BaseException:
            shutil.rmtree(root / _DIRECTORY if existed else root, ignore_errors=True)
            raise

    @classmethod
    def find(cls, start: Path) -> LocalRepository:
        """Open the repository a directory lies in."""
        for root in [start.absolute(), *start.absolute().parents]:
            if (root / _DIRECTORY / "repo.json").exists():
                return cls(root)
        raise ClientError(f"neither {start} nor a directory above it is a Muse repository")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all files."""
        self.files.close()
        self.index.close()

    @property
    def head_branch(self) -> str:
        """The branch the work tree is on."""
        return (self.directory / "HEAD").read_text("utf-8").strip()

    def set_head_branch(self, branch: str) -> None:
        """Put the work tree on a branch."""
        _write(self.directory / "HEAD", branch + "\n")

    def branches(self) -> dict[str, bytes]:
        """Give the local branches with their heads."""
        return self._refs("heads")

    def remote_branches(self, remote: str) -> dict[str, bytes]:
        """Give what is known of a remote's branches."""
        return self._refs(f"remotes/{quote(remote, safe='')}")

    def tags(self) -> dict[str, bytes]:
        """Give the tags."""
        return self._refs("tags")

    def set_branch(self, branch: str, head: bytes) -> None:
        """Move a local branch."""
        self._set_ref("heads", branch, head)

    def set_remote_branch(self, remote: str, branch: str, head: bytes | None) -> None:
        """Note where a remote's branch is; ``None``: it is gone."""
        self._set_ref(f"remotes/{quote(remote, safe='')}", branch, head)

    def set_tag(self, tag: str, head: bytes) -> None:
        """Set a tag."""
        self._set_ref("tags", tag, head)

    def remotes(self) -> dict[str, str]:
        """Give the remotes' URLs by name."""
        try:
            found = json.loads((self.directory / "remotes.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise IntegrityError(f"{self.directory}/remotes.json is damaged: {error}") from error
        return {str(name): str(url) for name, url in found.items()}

    def set_remote(self, name: str, url: str) -> None:
        """Name a remote."""
        _write(self.directory / "remotes.json", json.dumps({**self.remotes(), name: url}, indent=1) + "\n")

    def _refs(self, kind: str) -> dict[str, bytes]:
        directory = self.directory / "refs" / kind
        found = {}
        for path in sorted(directory.iterdir()) if directory.is_dir() else []:
            if path.name.startswith("."):
                continue
            try:
                head, _, name = path.read_text("utf-8").rstrip("\n").partition("\n")
                found[name or unquote(path.name)] = parse_id(head, self.scheme)
            except (Refusal, OSError, UnicodeDecodeError) as error:
                raise IntegrityError(f"{path} is damaged") from error
        return found

    def _set_ref(self, kind: str, name: str, head: bytes | None) -> None:
        directory = self.directory / "refs" / kind
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / encode_ref(name)
        if head is None:
            path.unlink(missing_ok=True)
        else:
            named = f"{name}\n" if path.name.startswith(_LONG) else ""
            _write(path, f"{format_id(head, self.scheme)}\n{named}")


def encode_ref(name: str) -> str:
    """Give a file name for a ref: upper case is escaped too, for file systems that ignore case.

    A name too long for a file is replaced by its hash, and stands in the file's second line.
    """
    escaped = "".join(c if c in _UNESCAPED else "".join(f"%{byte:02X}" for byte in c.encode()) for c in name)
    return escaped if len(escaped) <= _NAME_MOST else _LONG + hashlib.sha256(name.encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    """Replace a small file atomically and durably."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    with fresh.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
    sync_directory(path.parent)
