"""Confirming uploaded objects: presence, size and hash, then rows that hold them for their repository (protocol §6).

What was verified is what is stored, whatever is uploaded in the meantime through a URL that is still valid (threat
T5): a small content is read once, hashed, and those very bytes are put under its id; a large one is copied out of the
uploader's reach first. Steps for each section of the request, and what is left if the process dies after each:

1. what the repository has already is confirmed — nothing;
2. small contents are read, hashed and put in batches, large ones copied, hashed in a stream and copied into their
   place — whole objects no row names, and copies nobody names; collected;
3. one transaction records the section — uploads that are confirmed already; they expire;
4. uploads and copies are removed, rejected ones too, so that they can be sent again.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from actors.leases import leased
from actors.push.context import BATCH_BYTES, BATCH_OBJECTS, BATCHES_PER_PUSH, PushServices
from storage.errors import ObjectMissing, StorageError
from storage.layout import confirming_key, loose_key, staged_object_key
from storage.rows import HELD_S, StoredBlob
from storage.slots import Slots
from wire.errors import Code
from wire.ids import Kind, Scheme, hash_bytes, hasher_for

SECTION_OBJECTS = 1_000
"""Objects per transaction."""
GROUPS_IN_ALL = 16
"""Groups of small contents in memory, of all confirmations of a daemon together: 32 MiB."""
LARGE_IN_ALL = 16
"""Large contents being read, of all confirmations together; each takes a piece of memory."""
LONG_IN_ALL = 4
"""Confirmations of long lists at once: up to 12 MiB each."""
_GROUPS = [(BATCH_BYTES // BATCH_OBJECTS, BATCH_OBJECTS), (8 * BATCH_BYTES // BATCH_OBJECTS, BATCH_OBJECTS // 8)]
"""Contents up to so many bytes, so many at once: a group never has more than ``BATCH_BYTES``."""
_CHECKS = 64
"""Protocol §12: confirm checks at once."""
assert all(size * count <= BATCH_BYTES and count <= _CHECKS for size, count in _GROUPS)


@dataclass(frozen=True, slots=True)
class Rejected:
    """Why an uploaded object was not taken."""

    code: Code
    detail: str


@dataclass(frozen=True, slots=True)
class ConfirmSlots:
    """What all confirmations of a daemon share."""

    groups: Slots = field(default_factory=lambda: Slots(GROUPS_IN_ALL))
    large: Slots = field(default_factory=lambda: Slots(LARGE_IN_ALL))
    long: Slots = field(default_factory=lambda: Slots(LONG_IN_ALL))


class Confirmation:
    """Confirm uploads of one repository; ids are given once each."""

    def __init__(self, services: PushServices, slots: ConfirmSlots, repo: int, scheme: Scheme) -> None:
        self._services = services
        self._slots = slots
        self._repo = repo
        self._scheme = scheme
        self.rejected: dict[bytes, Rejected] = {}

    async def run(self, object_ids: Sequence[bytes], sizes: Mapping[bytes, int]) -> None:
        """Confirm all but what is then in ``rejected``; ``sizes`` are those the client states, where it does.

        Raises:
            StorageError: the store or the index cannot answer; nothing is said of any object then.
        """
        async with leased(self._services.index, self._services.environment, self._repo) as lease:
            for at in range(0, len(object_ids), SECTION_OBJECTS):
                await self._section(object_ids[at : at + SECTION_OBJECTS], sizes, lease)

    async def _section(self, object_ids: Sequence[bytes], sizes: Mapping[bytes, int], lease: uuid.UUID) -> None:
        index, now = self._services.index, self._services.environment.now()
        there = await index.stored_blobs(self._repo, self._scheme, object_ids, now)
        waiting = [object_id for object_id in object_ids if object_id not in there]
        if not waiting:
            return
        section = _Section(self, sizes)
        for most, together in _GROUPS:
            waiting = await section.take_small(waiting, most, together)
        await section.take_large(waiting)
        if section.proved:
            expires = self._services.environment.now() + dt.timedelta(seconds=HELD_S)
            await index.hold_blobs(self._repo, self._scheme, section.proved, expires, lease)
        await self._clean(section.read)
        await self._forgive(object_ids)

    async def _forgive(self, object_ids: Sequence[bytes]) -> None:
        """Ask once more for what has no upload: a request like this one may have confirmed it meanwhile."""
        rejected = self.rejected
        missing = [i for i in object_ids if i in rejected and rejected[i].code is Code.MISSING_OBJECTS]
        if missing:
            now = self._services.environment.now()
            for object_id in await self._services.index.stored_blobs(self._repo, self._scheme, missing, now):
                del rejected[object_id]

    async def _clean(self, object_ids: Sequence[bytes]) -> None:
        keys = [staged_object_key(self._repo, object_id, self._scheme) for object_id in object_ids]
        with suppress(StorageError):  # what stays expires
            await self._services.store.delete(keys)

    @property
    def parts(self) -> tuple[PushServices, ConfirmSlots, int, Scheme]:
        """What its sections work with."""
        return self._services, self._slots, self._repo, self._scheme


class _Section:
    """Up to ``SECTION_OBJECTS`` objects on their way from upload to proved."""

    def __init__(self, confirmation: Confirmation, sizes: Mapping[bytes, int]) -> None:
        self._services, self._slots, self._repo, self._scheme = confirmation.parts
        self._rejected = confirmation.rejected
        self._sizes = sizes
        self.proved: list[StoredBlob] = []
        self.read: list[bytes] = []
        """Those whose upload has served its purpose."""

    async def take_small(self, waiting: Sequence[bytes], most: int, together: int) -> list[bytes]:
        """Prove and store those of at most ``most`` bytes; gives the larger ones."""
        larger: list[bytes] = []
        groups = iter([waiting[at : at + together] for at in range(0, len(waiting), together)])
        reading = trio.Lock()

        async def work() -> None:
            for group in groups:
                async with self._slots.groups.hold(1):
                    contents: dict[bytes, bytes] = {}
                    async with reading, trio.open_nursery() as checks:
                        for object_id in group:
                            checks.start_soon(self._read_small, object_id, most, contents, larger)
                    await self._put(contents)

        async with trio.open_nursery() as nursery:
            for _ in range(min(BATCHES_PER_PUSH, -(-len(waiting) // together))):
                nursery.start_soon(work)
        return larger

    async def _read_small(self, object_id: bytes, most: int, contents: dict[bytes, bytes], larger: list[bytes]) -> None:
        try:
            content = await self._services.store.get(self._staged(object_id), most)
        except ObjectMissing:
            self._miss(object_id)
        except ValueError:  # see ObjectStore.get
            larger.append(object_id)
        else:
            if self._is_proved(object_id, len(content), hash_bytes(Kind.BLOB, content, self._scheme)):
                contents[object_id] = content

    async def _put(self, contents: dict[bytes, bytes]) -> None:
        if contents:
            items = [(loose_key(object_id, self._scheme), content) for object_id, content in contents.items()]
            await self._services.store.put_batch(items)
            self.proved += [StoredBlob(object_id, len(content)) for object_id, content in contents.items()]

    async def take_large(self, waiting: Sequence[bytes]) -> None:
        """Prove and store contents of any size, a few at a time."""
        ids = iter(waiting)

        async def work() -> None:
            for object_id in ids:
                async with self._slots.large.hold(1):
                    await self._take_large(object_id)

        async with trio.open_nursery() as nursery:
            for _ in range(min(LARGE_IN_ALL, len(waiting))):
                nursery.start_soon(work)

    async def _take_large(self, object_id: bytes) -> None:
        store, copy = self._services.store, confirming_key(self._services.environment.random_bytes(16))
        try:
            await store.copy(self._staged(object_id), copy)  # to where nobody else can write
            size = await store.size(copy)
            hasher = hasher_for(Kind.BLOB, size, self._scheme)
            async with store.stream(copy, 0, size) as pieces:
                async for piece in pieces:
                    hasher.update(piece)
            if self._is_proved(object_id, size, hasher.digest()):
                await store.copy(copy, loose_key(object_id, self._scheme))
                self.proved.append(StoredBlob(object_id, size))
        except ObjectMissing:
            self._miss(object_id)
        finally:
            with trio.CancelScope(shield=True), suppress(StorageError):  # what stays expires
                await store.delete([copy])

    def _is_proved(self, object_id: bytes, size: int, digest: bytes) -> bool:
        self.read.append(object_id)
        stated = self._sizes.get(object_id, size)
        if stated != size:
            self._reject(object_id, Code.BAD_OBJECT_HASH, f"{size} bytes were uploaded, {stated} are stated")
        elif digest != object_id:
            self._reject(object_id, Code.BAD_OBJECT_HASH, "what was uploaded does not hash to this id")
        else:
            return True
        return False

    def _miss(self, object_id: bytes) -> None:
        self._reject(object_id, Code.MISSING_OBJECTS, "it was not uploaded here, or too long ago")

    def _reject(self, object_id: bytes, code: Code, detail: str) -> None:
        self._rejected[object_id] = Rejected(code, detail)

    def _staged(self, object_id: bytes) -> str:
        return staged_object_key(self._repo, object_id, self._scheme)
