"""What the HTTP floor works with: the ports, the supervisor and the settings."""

from __future__ import annotations

from dataclasses import dataclass

from actors.fetch.assemble import FetchServices
from actors.push.context import PushServices
from actors.supervisor import Supervisor
from museworkd.http.settings import HttpSettings
from museworkd.http.signed_urls import UrlSigner
from museworkd.http.uploads import Uploads
from storage.environment import Environment
from storage.index import Index
from storage.object_store import ObjectStore
from storage.slots import Slots
from wire.limits import Limits


@dataclass(frozen=True, slots=True)
class HttpServices:
    """Made once, when the daemon starts."""

    index: Index
    store: ObjectStore
    environment: Environment
    supervisor: Supervisor
    push: PushServices
    fetch: FetchServices
    large_bodies: Slots
    """For control bodies that are not small, of all connections together."""
    signer: UrlSigner
    uploads: Uploads
    limits: Limits
    settings: HttpSettings
    public_url: str | None
    """How clients reach the server, without a slash at the end; ``None``: as they addressed it."""
    presign_s: int
    """How long a signed URL lives."""
