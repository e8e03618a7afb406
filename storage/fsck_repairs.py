"""The part of the ``Index`` port that says where blobs are, after they were found to be elsewhere.

Only who has read a copy and proved it may say so. A row is changed by compare-and-swap on where it was believed to be:
whoever moved or collected the blob meanwhile was right.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Protocol

from storage.layout import Place
from wire.ids import Scheme

PlaceCorrection = tuple[Place | None, Place]
"""Where a blob was believed to be, ``None`` when the index knew no place; and where it was found and proved."""


class PlaceCorrections(Protocol):
    """Mending rows of blobs."""

    async def correct_places(
        self, lease: uuid.UUID, scheme: Scheme, corrections: Sequence[PlaceCorrection]
    ) -> set[bytes]:
        """Let blobs that are still where they were believed to be lie elsewhere; gives those that lie there now.

        A correction to the very place a blob had makes sure that it stays there. What a pending blob left in the index
        goes with it. The old places are suspects from then on. All this was found by somebody who had taken that lease.
        Some hundreds at once, each blob once.

        Raises:
            LeaseLost, Tombstoned: the copy may have been collected; nothing was changed.
        """
