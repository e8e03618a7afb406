"""The blobs of an answer, each once and in order, in little memory."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from wire.ids import DIGEST_BYTES


class BlobList:
    """Distinct blob ids in the order they were added, in some 40 bytes each."""

    def __init__(self) -> None:
        self._ids = bytearray()
        self._slots = array("I", bytes(4 * 1024))
        """A hash table of numbers of ids, from 1."""
        self._excluded = 0

    def __len__(self) -> int:
        return len(self._ids) // DIGEST_BYTES - self._excluded

    def exclude(self, blob_id: bytes) -> None:
        """Never add this one: the client has it. Comes before the first :meth:`add`."""
        assert not len(self)
        self._excluded += self._put(blob_id)

    def add(self, blob_id: bytes) -> None:
        """Add an id that is new."""
        self._put(blob_id)

    def add_all(self, blob_ids: Iterable[bytes]) -> None:
        """Add those that are new."""
        for blob_id in blob_ids:
            self._put(blob_id)

    def exclude_all(self, blob_ids: Iterable[bytes]) -> None:
        """Exclude many."""
        for blob_id in blob_ids:
            self.exclude(blob_id)

    def finish(self) -> None:
        """Forget what was excluded and seen; nothing is added any more."""
        del self._ids[: self._excluded * DIGEST_BYTES]
        self._excluded, self._slots = 0, array("I")

    def parts(self, size: int) -> Iterator[list[bytes]]:
        """Give the ids in lists of at most ``size``."""
        for start in range(self._excluded * DIGEST_BYTES, len(self._ids), size * DIGEST_BYTES):
            part = bytes(self._ids[start : start + size * DIGEST_BYTES])
            yield [part[at : at + DIGEST_BYTES] for at in range(0, len(part), DIGEST_BYTES)]

    def _put(self, blob_id: bytes) -> bool:
        slots, ids = self._slots, self._ids
        mask = len(slots) - 1
        at = hash(blob_id) & mask
        while number := slots[at]:
            if ids[(number - 1) * DIGEST_BYTES : number * DIGEST_BYTES] == blob_id:
                return False
            at = (at + 1) & mask
        ids += blob_id
        count = len(ids) // DIGEST_BYTES
        slots[at] = count
        if count * 3 > len(slots) * 2:
            self._grow()
        return True

    def _grow(self) -> None:
        slots = array("I", bytes(8 * len(self._slots)))
        mask = len(slots) - 1
        for number, start in enumerate(range(0, len(self._ids), DIGEST_BYTES), 1):
            at = hash(bytes(self._ids[start : start + DIGEST_BYTES])) & mask
            while slots[at]:
                at = (at + 1) & mask
            slots[at] = number
        self._slots = slots
