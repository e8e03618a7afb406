"""The part of the ``Index`` port that mends what it says of a pack's objects, after the pack itself.

A push records every object it brings in the transactions that make it visible. What is mended here is what got lost or
wrong later; of an index that is whole, nothing is changed, and little is read.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from storage.rows import StoredBlob
from wire.ids import Scheme


@dataclass(frozen=True, slots=True)
class PackRepair:
    """How many rows were not as they should be, and are now."""

    rows: int = 0
    """Objects the index did not know."""
    ranges: int = 0
    """Objects it believed elsewhere in this pack."""
    promoted: int = 0
    """Pending ones, which are read from the pack from now on."""
    refs: int = 0
    """Objects the repository did not hold, although a push of it has brought them."""

    def __add__(self, other: PackRepair) -> PackRepair:
        return PackRepair(
            self.rows + other.rows, self.ranges + other.ranges, self.promoted + other.promoted, self.refs + other.refs
        )


class PackRepairs(Protocol):
    """Mending rows by packs."""

    async def complete_pack(
        self, repo: int, scheme: Scheme, objects: Sequence[StoredBlob], *, brought_by: uuid.UUID | None,
        lease: uuid.UUID | None = None,
    ) -> PackRepair:  # fmt: skip
        """Complete and mend the rows of some objects of one pack, each of them once, at once.

        ``brought_by`` is the id of the push of this repository that has brought the very pack, where that is known: an
        object in a pack gives nobody a right to it. The repository holds them all afterwards, if that push was accepted
        and nothing was collected from the repository since it began: what was taken away must not come back.

        The pack was looked at by somebody who had taken that lease.

        Raises:
            LeaseLost, Tombstoned: it may have been collected; nothing was changed.
        """

    async def held_packs(self, repo: int, scheme: Scheme, after: bytes, most: int) -> tuple[set[bytes], bytes | None]:
        """Give in which packs the next ``most`` blobs lie that a repository holds, and the last of these blobs' id.

        It is ``None`` when there are no more.
        """
