"""The ids of pushes whose verdict is not known: kept in the local repository, so that another process can go on.

What was sent under an id counts for whoever sends the rest under the same id. A file holds one id; it is for one
remote, branch, head and set of rules, is written before anything is sent and removed when the server has decided.
Losing one loses nothing but time, so nothing is flushed to the disk for it.
"""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping
from pathlib import Path

from museworkd.client.blob_packs import open_anew
from museworkd.client.repository import LocalRepository
from storage.environment import Environment

KEPT_S = 7 * 86_400
"""What nobody has taken up for so long is forgotten; the server has let go of it before."""
_DIRECTORY = "unfinished"


class UnfinishedPush:
    """The record of one push in the local repository."""

    def __init__(
        self, repository: LocalRepository, url: str, rules: Mapping[str, object], environment: Environment
    ) -> None:
        """Take a push's URL and the members of its header, without its id."""
        self._environment = environment
        named = json.dumps([url, sorted(rules.items())], ensure_ascii=True)
        self._directory = repository.directory / _DIRECTORY
        self._path = self._directory / hashlib.sha256(named.encode()).hexdigest()

    def find(self, way: str) -> uuid.UUID | None:
        """Give the id under which this push was begun before by a way; ``None``: it was not, or not lately."""
        try:
            push_id, begun_by = self._path.read_text("ascii").split()
            return uuid.UUID(push_id) if begun_by == way and self._age_s(self._path) <= KEPT_S else None
        except (OSError, ValueError):
            return None

    def begin(self, push_id: uuid.UUID, way: str) -> None:
        """Keep the id; what is too old goes."""
        self._directory.mkdir(exist_ok=True)
        for path in self._directory.iterdir():
            if self._age_s(path) > KEPT_S:
                path.unlink(missing_ok=True)
        fresh = self._path.with_name(f".{push_id}")
        with open_anew(fresh) as file:
            file.write(f"{push_id} {way}\n".encode("ascii"))
        fresh.replace(self._path)

    def end(self) -> None:
        """The server has decided."""
        self._path.unlink(missing_ok=True)

    def _age_s(self, path: Path) -> float:
        try:
            return self._environment.now().timestamp() - path.lstat().st_mtime
        except FileNotFoundError:
            return 0.0
