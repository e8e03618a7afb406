"""Commit, snapshot, delta and tag records, parsed once at the edge (protocol §1).

A parsed record keeps the whole map as received (``raw``): fields the id does not cover and fields this version
does not know are stored and returned as they came. What an id covers is checked strictly; the rest only has to
be storable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wire.canonical import canonical_bytes, check_plain_value
from wire.errors import Code, Refusal, malformed
from wire.ids import Kind, Scheme, format_id, hash_bytes, parse_id, parse_ids
from wire.limits import DEFAULT_LIMITS, Limits
from wire.path_map import BlobMap, PathMap

Record = Mapping[str, object]

_DELTA_MEMBERS = ("delta_upsert", "delta_add", "delta_remove")


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit whose id has been recomputed, unless it was to be taken as it is; ids are digests."""

    commit_id: bytes
    parents: tuple[bytes, ...]
    """First parent first; at most two."""
    snapshot_id: bytes
    raw: Record
    canonical: bytes
    """The stored form of ``raw`` (``wire.canonical``)."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A full snapshot as received; its id is checked when the manifest is built."""

    snapshot_id: bytes
    manifest: Mapping[str, bytes]
    directories: tuple[str, ...]
    extras: Record
    """All fields the id does not cover: created_at, note, schema_version and unknown ones."""


@dataclass(frozen=True, slots=True)
class SnapshotDelta:
    """A snapshot as changes to a base (``None``: the empty manifest)."""

    snapshot_id: bytes
    parent_snapshot_id: bytes | None
    upsert: Mapping[str, bytes]
    remove: tuple[str, ...]
    directories: tuple[str, ...]
    extras: Record


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag record (0.1.x and mpack TAGS)."""

    commit_id: bytes
    tag: str
    raw: Record


def parse_commit(record: object, scheme: Scheme, limits: Limits = DEFAULT_LIMITS, *, recompute: bool = True) -> Commit:
    """Read a commit record and recompute its id, unless it may be any (the setting ``verify`` of a repository).

    Raises:
        Refusal: ``malformed`` for a wrong shape, ``bad_record_id`` when the id is not that of the fields.
    """
    raw = _map(record, "commit")
    commit_id = parse_id(raw.get("commit_id"), scheme, "commit_id")
    parents = tuple(
        parse_id(raw[key], scheme, key) for key in ("parent_commit_id", "parent2_commit_id") if raw.get(key) is not None
    )
    snapshot_id = parse_id(raw.get("snapshot_id"), scheme, "snapshot_id")
    text = commit_text(raw, parents, snapshot_id, scheme)
    if recompute and hash_bytes(Kind.COMMIT, text, scheme) != commit_id:
        raise Refusal(
            Code.BAD_RECORD_ID,
            f"commit {format_id(commit_id, scheme)} does not hash to its id",
            id=format_id(commit_id, scheme),
        )
    return Commit(commit_id, parents, snapshot_id, raw, canonical_bytes(Kind.COMMIT, raw, limits))


def commit_text(record: Record, parents: tuple[bytes, ...], snapshot_id: bytes, scheme: Scheme) -> bytes:
    """Build the bytes a commit id is the hash of.

    A NUL inside a hashed field would let two different records share an id, so it is refused.
    """
    fields = ["\0".join(sorted(p.hex() for p in parents)), snapshot_id.hex()]
    fields += [_hashed_text(record, "message"), _hashed_text(record, "committed_at")]
    if scheme is Scheme.TYPED:
        fields += [_hashed_text(record, "author", optional=True)]
        fields += [_hashed_text(record, "signer_public_key", optional=True)]
    return "\0".join(fields).encode("utf-8")


def parse_snapshot(record: object, scheme: Scheme, limits: Limits = DEFAULT_LIMITS) -> Snapshot:
    """Read a full snapshot record; paths are checked when the manifest is built."""
    raw = _map(record, "snapshot")
    if any(raw.get(key) is not None for key in _DELTA_MEMBERS):
        raise malformed("a snapshot record has a manifest and changes to a base")
    return Snapshot(
        parse_id(raw.get("snapshot_id"), scheme, "snapshot_id"),
        _oids(raw.get("manifest"), "manifest", scheme, limits),
        _paths(raw.get("directories"), "directories", limits),
        _extras(raw, {"snapshot_id", "manifest", "directories", *_DELTA_MEMBERS}, limits),
    )


def parse_snapshot_delta(record: object, scheme: Scheme, limits: Limits = DEFAULT_LIMITS) -> SnapshotDelta:
    """Read a snapshot delta; ``delta_add`` of older senders means ``delta_upsert``."""
    raw = _map(record, "snapshot delta")
    if raw.get("manifest") is not None:  # kept as an unknown field it would turn the record into a full one
        raise malformed("a snapshot delta has a manifest")
    if "delta_upsert" in raw and "delta_add" in raw:
        raise malformed("a snapshot delta has both delta_upsert and delta_add")
    upsert = raw.get("delta_upsert", raw.get("delta_add"))
    base = raw.get("parent_snapshot_id")
    if base is not None and base == raw.get("snapshot_id"):
        raise malformed("a snapshot delta builds on itself")
    return SnapshotDelta(
        parse_id(raw.get("snapshot_id"), scheme, "snapshot_id"),
        None if base is None else parse_id(base, scheme, "parent_snapshot_id"),
        _oids({} if upsert is None else upsert, "delta_upsert", scheme, limits),
        _paths(raw.get("delta_remove"), "delta_remove", limits),
        _paths(raw.get("directories"), "directories", limits),
        _extras(
            raw,
            {"snapshot_id", "parent_snapshot_id", "manifest", "directories", *_DELTA_MEMBERS},
            limits,
        ),
    )


def parse_snapshot_either(record: object, scheme: Scheme, limits: Limits = DEFAULT_LIMITS) -> Snapshot | SnapshotDelta:
    """Read a record of a SNAPSHOTS section: full or delta, told apart by ``manifest`` (protocol §3)."""
    raw = _map(record, "snapshot")
    if raw.get("manifest") is not None:
        return parse_snapshot(raw, scheme, limits)
    return parse_snapshot_delta(raw, scheme, limits)


def parse_tag(record: object, scheme: Scheme, limits: Limits = DEFAULT_LIMITS) -> Tag:
    """Read a tag record."""
    raw = _map(record, "tag")
    name = raw.get("tag")
    if not isinstance(name, str) or not name:
        raise malformed("a tag record has no tag")
    check_plain_value(raw, limits)
    return Tag(parse_id(raw.get("commit_id"), scheme, "commit_id"), name, raw)


def snapshot_record(snapshot: Snapshot, scheme: Scheme) -> dict[str, object]:
    """Write a full snapshot record for the wire or the store."""
    return {
        **snapshot.extras,
        "snapshot_id": format_id(snapshot.snapshot_id, scheme),
        "manifest": {path: format_id(oid, scheme) for path, oid in snapshot.manifest.items()},
        "directories": list(snapshot.directories),
    }


def delta_record(delta: SnapshotDelta, scheme: Scheme) -> dict[str, object]:
    """Write a snapshot delta record for the wire or the store."""
    base = delta.parent_snapshot_id
    record: dict[str, object] = {
        **delta.extras,
        "snapshot_id": format_id(delta.snapshot_id, scheme),
        "parent_snapshot_id": None if base is None else format_id(base, scheme),
        "delta_upsert": {path: format_id(oid, scheme) for path, oid in delta.upsert.items()},
        "delta_remove": list(delta.remove),
    }
    if delta.directories:
        record["directories"] = list(delta.directories)
    return record


def _map(record: object, what: str) -> Record:
    if not isinstance(record, Mapping):
        raise malformed(f"a {what} record is not a map")
    return record


def _hashed_text(record: Record, key: str, *, optional: bool = False) -> str:
    value = record.get(key)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise malformed(f"the commit's {key} is not text")
    if "\0" in value:
        raise malformed(f"the commit's {key} holds a NUL")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise malformed(f"the commit's {key} is not valid UTF-8") from None
    return value


def _oids(value: object, what: str, scheme: Scheme, limits: Limits) -> Mapping[str, bytes]:
    if not isinstance(value, Mapping):
        raise malformed(f"{what} is not a map of path to object id")
    if len(value) > limits.manifest_entries:
        raise Refusal(Code.TOO_LARGE, f"{what} has {len(value)} entries, the limit is {limits.manifest_entries}")
    if isinstance(value, PathMap):
        return BlobMap(value, scheme)
    if set(map(type, value)) - {str}:
        raise malformed(f"a path in {what} is not text")
    digests = parse_ids(list(value.values()), scheme)
    if digests is None:  # one by one, to say which is none
        digests = [parse_id(oid, scheme, "object id") for oid in value.values()]
    return dict(zip(value, digests, strict=True))


def _paths(value: object, what: str, limits: Limits) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list | tuple) or not all(isinstance(path, str) for path in value):
        raise malformed(f"{what} is not a list of paths")
    if len(value) > limits.manifest_entries:
        raise Refusal(Code.TOO_LARGE, f"{what} has {len(value)} entries, the limit is {limits.manifest_entries}")
    if len(set(value)) != len(value):
        raise malformed(f"{what} names a path twice")
    return tuple(value)


def _extras(raw: Record, covered: set[str], limits: Limits) -> dict[str, object]:
    extras = {key: value for key, value in raw.items() if key not in covered}
    check_plain_value(extras, limits)
    return extras
