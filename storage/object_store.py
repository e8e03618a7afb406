"""The ``ObjectStore`` port: immutable byte strings under keys.

Contract, kept by every implementation and wrapper (``tests/behaviour/test_object_store.py``):

* A put is atomic and durable when it returns; a reader sees the old whole content or the new one, never a part.
* A put over an existing key replaces it, so that a damaged file is mended by writing it again.
* Every call may be repeated, also after an answer that was lost: a file that an earlier ``put_file`` has consumed
  is no error while its key is there.
* A batch is not atomic: after a failure any subset of its items may be there.
* A key that ``storage.layout`` could not have made is refused with ``ValueError`` by every operation.
* An absent key raises ``ObjectMissing`` and nothing else does; a store that cannot answer raises
  ``StoreUnavailable``.
* Every call is a checkpoint and may be cancelled; a cancelled put may or may not have happened.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True, slots=True)
class ReadRange:
    """One ranged read of a batch; ``size`` in bytes."""

    key: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One row of a listing."""

    key: str
    size: int
    modified: float
    """Seconds since the epoch, by the store's clock."""


@dataclass(slots=True)
class StoreStatistics:
    """Counters of one store, for metrics and tests."""

    puts: int = 0
    put_bytes: int = 0
    gets: int = 0
    get_bytes: int = 0
    deletes: int = 0
    retries: int = 0
    waiting: int = 0
    running: int = 0


@dataclass(frozen=True, slots=True)
class SignedUrl:
    """A URL that allows one request to the store, without further credentials, for a while."""

    url: str
    headers: Mapping[str, str]
    """Headers the requester must send as given; empty for a GET."""


class UrlSigning(Protocol):
    """Makes URLs by which clients reach the store themselves, at its public address; nothing is asked of the store."""

    def put_url(self, key: str, size: int, expires_s: int) -> SignedUrl:
        """Allow one content of exactly ``size`` bytes to be put under a key."""

    def get_url(self, key: str, expires_s: int) -> SignedUrl:
        """Allow a key to be read, whole or by range."""


class ObjectStore(Protocol):
    """Keeps bytes. Sizes and offsets in bytes; keys as made by ``storage.layout``."""

    async def put_batch(self, items: Sequence[tuple[str, bytes]]) -> None:
        """Store small contents, each under its key; the batch costs as few durable writes as it can."""

    async def put_file(self, key: str, path: Path) -> None:
        """Store a local file's content and consume the file: it may be moved or copied.

        Raises:
            StoreUnavailable: also when the file is not there, and neither is the key.
        """

    async def copy(self, source: str, target: str) -> None:
        """Store the content of one key under another, within the store: no bytes travel."""

    async def get(self, key: str, most: int) -> bytes:
        """Read a whole small content of at most ``most`` bytes; a larger one raises ``ValueError``."""

    async def get_ranges(self, ranges: Sequence[ReadRange]) -> list[bytes]:
        """Read many ranges, in order; a range that is not wholly there raises ``ObjectDamaged``."""

    def stream(
        self, key: str, offset: int = 0, size: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Read a content of any size in pieces of at most 256 KiB; one that is shorter raises ``ObjectDamaged``."""

    async def size(self, key: str) -> int:
        """Give a content's length."""

    async def delete(self, keys: Iterable[str]) -> None:
        """Remove keys; absent ones are no error."""

    def scan(self, prefix: str) -> AsyncIterator[StoredObject]:
        """List keys under a prefix, whole path segments or ``""`` for all, in any order."""

    async def sweep_temporary(self, older_than_s: float) -> int:
        """Remove what puts of so long ago have left half done, nobody having ended them; gives how many."""

    def statistics(self) -> StoreStatistics:
        """Give a copy of the counters."""

    def signing(self) -> UrlSigning | None:
        """Give what signs URLs to this store; ``None`` when it has no address clients could reach."""
