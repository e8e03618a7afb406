"""URLs by which clients move bytes: the store's own where it signs them, the daemon's for everything else.

A store that has an address of its own takes uploads and gives fetch packs itself, and no byte of those passes the
daemon. Uploads go to staging keys, which are never served, and count for nothing before they are confirmed or
unpacked: what was verified then is a copy that no URL reaches (threat T5).

A blob is given by the store itself only where it will lie for as long as the URL lives: one that is loose and too
large to be folded into a pack. Others may move meanwhile, and those inside packs have neighbours that are nobody's
business: their URL is the daemon's, which looks where they are now and gives this one only.
"""

from __future__ import annotations

from dataclasses import dataclass

from actors.collect.fold import OBJECT_MOST_BYTES
from museworkd.http.services import HttpServices
from storage.layout import Place, fetch_pack_key, loose_key, staged_mpack_key, staged_object_key
from storage.rows import Repository
from wire.ids import Scheme

OBJECT_KINDS = {Scheme.TYPED: "object", Scheme.PLAIN: "plain-object"}
"""What stands in the path of an object's URL: the same digits may be an id of either scheme."""


@dataclass(frozen=True, slots=True)
class TransferUrls:
    """The URLs of one answer; each lives ``lifetime_s`` seconds."""

    services: HttpServices
    repository: Repository
    base: str
    """How the client reaches the daemon."""
    lifetime_s: int

    @property
    def resumable(self) -> bool:
        """Whether an upload can be taken up again where it broke off; a store takes it whole or not at all."""
        return self.services.direct is None

    def put_mpack(self, mpack_id: bytes, size: int) -> str:
        """Where to upload one file."""
        direct = self.services.direct
        if direct is not None:
            return direct.put_url(staged_mpack_key(self.repository.number, mpack_id), size, self.lifetime_s).url
        return self._own("PUT", f"upload/mpack/{mpack_id.hex()}/{size}")

    def put_object(self, object_id: bytes, scheme: Scheme, size: int) -> str:
        """Where to upload one object."""
        direct = self.services.direct
        if direct is not None:
            key = staged_object_key(self.repository.number, object_id, scheme)
            return direct.put_url(key, size, self.lifetime_s).url
        return self._own("PUT", f"upload/{OBJECT_KINDS[scheme]}/{object_id.hex()}/{size}")

    def get_mpack(self, mpack_id: bytes) -> str:
        """Where an assembled fetch is."""
        direct = self.services.direct
        if direct is not None:
            return direct.get_url(fetch_pack_key(mpack_id), self.lifetime_s).url
        return self._own("GET", f"mpack/{mpack_id.hex()}")

    def get_blob(self, place: Place, scheme: Scheme) -> str:
        """Where one blob of the repository is."""
        direct = self.services.direct
        if direct is not None and place.pack_id is None and not place.pending and place.size > OBJECT_MOST_BYTES:
            return direct.get_url(loose_key(place.object_id, scheme), self.lifetime_s).url
        return self._own("GET", f"blob/{place.object_id.hex()}")

    def _own(self, method: str, rest: str) -> str:
        expires = int(self.services.environment.now().timestamp()) + self.lifetime_s
        path = f"/{self.repository.owner}/{self.repository.slug}/{rest}"
        return self.base + self.services.signer.sign(method, path, expires)
