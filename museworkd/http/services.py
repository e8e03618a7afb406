"""What the HTTP floor works with: the ports, the supervisor and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from actors.fetch.assemble import FetchServices
from actors.push.confirm import ConfirmSlots
from actors.push.context import PushServices
from actors.supervisor import Supervisor
from museworkd.http.access import Identity, admit
from museworkd.http.exchange import Exchange
from museworkd.http.recent_repositories import RecentRepositories
from museworkd.http.settings import HttpSettings
from museworkd.http.signed_urls import UrlSigner
from museworkd.http.small_uploads import SmallUploads
from museworkd.http.uploads import Uploads
from storage.environment import Environment
from storage.index import Index
from storage.object_store import ObjectStore, UrlSigning
from storage.rows import Repository, Right
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
    id_lists: Slots
    """For long lists of ids, one for each MiB of a body."""
    confirms: ConfirmSlots
    signer: UrlSigner
    uploads: Uploads
    small_uploads: SmallUploads
    recent: RecentRepositories
    limits: Limits
    settings: HttpSettings
    public_url: str | None
    """How clients reach the server, without a slash at the end; ``None``: as they addressed it."""
    presign_s: int
    """How long a signed URL lives."""
    direct: UrlSigning | None = None
    """Signs URLs that lead to the store itself; ``None``: all bytes pass the daemon."""


async def admit_to(
    services: HttpServices, exchange: Exchange, names: Mapping[str, str], needed: Right
) -> tuple[Identity | None, Repository, Right]:
    """Authenticate a request to the repository its path names; raises as :func:`museworkd.http.access.admit`."""
    authorization = exchange.headers.get("authorization")
    return await admit(services.index, services.environment, authorization, names["owner"], names["slug"], needed)


async def admit_writer(
    services: HttpServices, exchange: Exchange, names: Mapping[str, str]
) -> tuple[Repository, Identity]:
    """Like :func:`admit_to`, for who wants to write: never anonymous."""
    identity, repository, _ = await admit_to(services, exchange, names, Right.WRITE)
    assert identity is not None
    return repository, identity
