"""A push under way: what is sent, where to, and what became of it so far; and how the ways of sending it look."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from actors.spool import SpoolDirectory
from museworkd.client.outgoing import Outgoing
from museworkd.client.progress import Meter
from museworkd.client.remote import Remote
from museworkd.client.repository import LocalRepository


@dataclass(slots=True)
class Delivery:
    """One push, whatever way it travels."""

    repository: LocalRepository
    remote: Remote
    outgoing: Outgoing
    header: Mapping[str, object]
    """The members every way of pushing has in common: branch, head, force, push id, expected head."""
    spools: SpoolDirectory
    meter: Meter
    sent_bytes: int = 0
    """Of bodies, all attempts together."""
    spared: set[bytes] = field(default_factory=set)
    """Blobs that were not sent again: an earlier attempt had brought them."""

    @property
    def push_id(self) -> str:
        """The id all attempts share."""
        return str(self.header["push_id"])

    def spare(self, blob_ids: Collection[bytes]) -> None:
        """Note blobs that need not be sent."""
        self.spared.update(blob_ids)


class Sending(Protocol):
    """A way of sending a push."""

    @property
    def said_everything(self) -> bool:
        """Whether the server may be finishing the push, although its answer was lost."""

    async def send(self, *, again: bool) -> Mapping[str, object]:
        """Send the push, or with ``again`` what the server lacks of it; gives the server's result.

        Raises:
            ClientError: refused. TransferError: lost or refused for now; it may be sent again.
        """
