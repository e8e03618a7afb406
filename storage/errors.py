"""What can go wrong below: broken infrastructure and damaged bytes, never a client's mistake.

Each backend says which of its errors are temporary; only those may be retried. An absent object is its own
class and is never made out of another error.
"""

from __future__ import annotations


class StorageError(Exception):
    """Base of everything the storage floor raises on its own."""

    temporary = False
    """Whether the same call may succeed a moment later."""


class ObjectMissing(StorageError):
    """The store answered, and it does not have this key."""


class ObjectDamaged(StorageError):
    """The bytes are there and are not what was written: torn, cut or flipped."""


class SnapshotDamaged(ObjectDamaged):
    """The index lacks a snapshot, or has another content for it than its id says."""

    def __init__(self, snapshot_id: bytes, what: str) -> None:
        super().__init__(f"snapshot {snapshot_id.hex()} in the index {what}")
        self.snapshot_id = snapshot_id


class ObjectMended(StorageError):
    """The bytes were not what was written, and another copy has taken their place since: read them again."""

    temporary = True


class StoreUnavailable(StorageError):
    """The object store could not do it: timeout, throttling, I/O error, missing rights."""

    def __init__(self, message: str, *, temporary: bool = True) -> None:
        super().__init__(message)
        self.temporary = temporary


class ObjectUnreadable(StoreUnavailable):
    """The store answers, but not with this content: a bad block, a file without rights. Another copy may be read."""

    def __init__(self, message: str) -> None:
        super().__init__(message, temporary=False)


class StoreFull(StorageError):
    """The object store has no room."""


class IndexUnavailable(StorageError):
    """The index could not do it now: connection lost, pool exhausted, statement timeout, fail-over."""

    temporary = True


class SchemaMismatch(StorageError):
    """The database's schema is not one this version can work with."""


class DeploymentMismatch(SchemaMismatch):
    """The database and the object store do not belong together; the message says what to do."""


class QuotaExceeded(StorageError):
    """An owner may not store that much: ``used`` and ``reserved`` bytes beside what was asked for, of ``quota``."""

    def __init__(self, used: int, reserved: int, quota: int) -> None:
        super().__init__(f"{used} bytes are used and {reserved} on their way, the quota is {quota}")
        self.used = used
        self.reserved = reserved
        self.quota = quota


class StaleTicket(StorageError):
    """A newer attempt of the same push has begun, or the push has its verdict."""


class Tombstoned(StorageError):
    """What is to be recorded is being collected: it has to be stored again, after that."""


class LeaseLost(StorageError):
    """What somebody relied on may have been collected: they were not heard of for too long."""
