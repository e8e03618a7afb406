"""Every limit of the protocol, named (protocol §12). Each is a setting of the same name under ``[limits]``.

Sizes are in bytes, counts are plain numbers. A comment gives the precedent where the number is not
protocol §12's own.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(frozen=True, slots=True)
class Limits:
    """What one peer may ask of the other. The defaults are those of protocol §12."""

    object_frame_bytes: int = 50 * MIB
    """Largest object in one ``O`` frame, on the wire and inflated; a larger one travels by ``OC``."""
    object_bytes: int = 5 * GIB
    """Largest object by ``OC`` chunks or mpack, inflated."""
    object_chunk_bytes: int = MIB
    """Largest content of one ``OC`` frame (protocol §5)."""
    mpack_bytes: int = 512 * MIB
    """Largest mpack or bundle."""
    objects_per_push: int = 500_000
    """Objects of one push, whether the server has them or not."""
    commits_per_push: int = 50_000
    """Commits of one push."""
    snapshots_per_push: int = 50_000
    """Snapshot records of one push: as many as it may have commits."""
    snapshot_push_bytes: int = 2 * GIB
    """All bytes the snapshots of one push may make the server write: 200 bytes received may stand for a large tree."""
    manifest_entries: int = 1_000_000
    """Paths of one snapshot."""
    manifest_text_bytes: int = 128 * MIB
    """Path bytes of one manifest: a million paths of ordinary length (git's own trees average under 60)."""
    manifest_directories: int = 100_000
    """Entries of a snapshot's ``directories``: unlike paths they are kept one by one."""
    content_cache_object_bytes: int = MIB
    """Largest object of a small push that is answered from the index until it is in the store; 0: none is."""
    content_cache_push_bytes: int = 4 * MIB
    """Objects of one push together, for it to be a small one."""
    inflated_push_bytes: int = 4 * GIB
    """All inflated object bytes of one push."""
    delta_bytes: int = 16 * MIB
    """Largest base and result of a ``delta+…`` object: the base and the delta are held in memory."""
    delta_instructions: int = 262_144
    """Instructions of one such delta: inserting 16 MiB takes half of them."""
    delta_push_instructions: int = 20_000_000
    """Instructions of all deltas of one push: some ten seconds of work, and 40 for each of 500,000 objects."""
    zstd_window_bytes: int = 8 * MIB
    """RFC 8878 §3.1.1.1.2 asks decoders to support 8 MiB and lets them refuse more."""
    record_bytes: int = MIB
    """One commit record, or all that a frame or snapshot record holds outside its lists and content."""
    value_containers: int = 65_536
    """Lists and maps within one such value: each costs the decoder some 60 bytes for one byte received."""
    path_bytes: int = 4096
    """PATH_MAX of Linux."""
    path_component_bytes: int = 255
    """NAME_MAX of Linux, NTFS and APFS."""
    branch_name_bytes: int = 255
    """The whole name, slashes included (protocol §1)."""
    owner_quota_bytes: int = 0
    """All bytes the repositories of one owner may hold, unless `museworkd quota` says otherwise; 0 for no limit."""
    negotiate_ids: int = 1_000
    """``want`` or ``have`` ids of one request by a current client."""
    nesting_depth: int = 64
    """Depth of free-form values (``structured_delta``, unknown fields)."""


DEFAULT_LIMITS = Limits()
