r"""Canonical stored bytes of commits and snapshots (protocol §2): ``commit <size>\\0<json>``.

JSON cannot say everything msgpack can. A byte string inside a free-form value is written as
``{"$bytes": "<base64>"}``; a real map with one key that starts with ``$`` gets one more ``$``, so that reading
back is exact. What neither can say (NaN, extension types, keys that are not text) is refused at the door.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence

from wire.errors import malformed
from wire.ids import Kind, Scheme, format_id
from wire.limits import DEFAULT_LIMITS, Limits

_BYTES_KEY = "$bytes"
NESTING = 128
"""Depth of anything a peer sends or the store gives, so that code which walks a value may recurse; records are held
to the smaller limit ``nesting_depth``."""
_PLAIN = frozenset((str, bool, type(None)))
"""Types whose values are their own JSON form."""
_LEAST_INTEGER, _MOST_INTEGER = -(2**63), 2**64 - 1
"""What msgpack can say: a record that came as JSON must be able to leave as msgpack."""


def canonical_bytes(kind: Kind, record: Mapping[str, object], limits: Limits = DEFAULT_LIMITS) -> bytes:
    """Write a record in its stored form.

    Raises:
        Refusal: ``malformed`` when a value has no JSON form or is nested deeper than the limit.
    """
    text = _json(_to_json(record, min(limits.nesting_depth, NESTING)))
    return b"%s %d\0" % (kind.value.encode(), len(text)) + text


def canonical_with_map(
    record: Mapping[str, object],
    key: str,
    entries: Mapping[str, bytes],
    scheme: Scheme,
    limits: Limits = DEFAULT_LIMITS,
) -> Iterator[bytes]:
    """Write a snapshot record piece by piece, with a large map of paths to digests as its member ``key``.

    The bytes are those of :func:`canonical_bytes`, if the map gives its paths in order. The length comes first, so it
    is walked twice.
    """
    depth = min(limits.nesting_depth, NESTING) - 1
    members = {name: _to_json(value, depth) for name, value in record.items() if name != key}
    before = _json({name: value for name, value in members.items() if name < key})[1:-1]
    after = _json({name: value for name, value in members.items() if name > key})[1:-1]
    head = b"{" + before + b"," * bool(before) + _json(key) + b":{"
    tail = b"}" + b"," * bool(after) + after + b"}"
    size = len(head) + sum(map(len, _map_pieces(entries, scheme))) + len(tail)
    yield b"%s %d\0" % (Kind.SNAPSHOT.value.encode(), size) + head
    yield from _map_pieces(entries, scheme)
    yield tail


_encoder = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _json(value: object) -> bytes:
    try:
        return _encoder.encode(value).encode("utf-8")
    except UnicodeEncodeError:
        raise malformed("a record holds text that is not valid UTF-8") from None


def _map_pieces(entries: Mapping[str, bytes], scheme: Scheme) -> Iterator[bytes]:
    separator, walk = b"", iter(entries.items())
    while part := list(itertools.islice(walk, 1024)):
        texts = [f'{json.dumps(path, ensure_ascii=False)}:"{format_id(blob, scheme)}"' for path, blob in part]
        yield separator + ",".join(texts).encode()
        separator = b","


def parse_canonical(stored: bytes) -> tuple[Kind, dict[str, object]]:
    """Read stored bytes back to the kind and record; raises ``malformed`` when they are damaged."""
    head, nul, text = stored.partition(b"\0")
    name, _, size = head.partition(b" ")
    try:
        kind = Kind(name.decode("ascii"))
    except (UnicodeDecodeError, ValueError):
        raise malformed("stored record has no known kind") from None
    if not nul or size != str(len(text)).encode():
        raise malformed(f"stored {kind.value} record is cut or padded")
    record = _from_json(parse_json(text, f"stored {kind.value} record"))
    if not isinstance(record, dict):
        raise malformed(f"stored {kind.value} record is not a map")
    return kind, record


def parse_json(text: bytes, what: str, most_items: int | None = None) -> object:
    """Read JSON from a peer: no duplicate keys, no NaN, bounded nesting; raises ``malformed``.

    With ``most_items``, a text that could have more elements than that is refused before it is read:
    two bytes of it can take a hundred of memory. Brackets and commas inside of texts count as well.
    """
    if most_items is not None and text.count(b",") + text.count(b"[") + text.count(b"{") > most_items:
        raise malformed(f"{what} has more than {most_items} elements")
    try:
        # decoded here: json.loads would also take UTF-16 and halves of surrogate pairs
        value: object = json.loads(text.decode("utf-8"), object_pairs_hook=unique_map, parse_constant=_refuse_constant)
        check_nesting(value)
        if b"\\u" in text:  # an escape may spell half a surrogate pair, which is no text
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError):
        raise malformed(f"{what} is not valid JSON") from None
    return value


def check_nesting(value: object, limit: int = NESTING) -> None:
    """Refuse a decoded value whose lists and maps are nested deeper than ``limit`` (threat T9)."""
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(limit):
        if not level:
            return
        level = [
            item
            for container in level
            for item in (container.values() if isinstance(container, dict) else container)
            if isinstance(item, list | dict)
        ]
    if level:
        raise malformed("a value is nested too deeply")


def check_plain_value(value: object, limits: Limits = DEFAULT_LIMITS) -> None:
    """Refuse a free-form value that has no canonical form, before anything is stored."""
    _to_json(value, min(limits.nesting_depth, NESTING))


def unique_map(pairs: Sequence[tuple[object, object]]) -> dict[str, object]:
    """Build a map from decoded pairs; refuses duplicate and non-text keys (threat T9)."""
    result: dict[str, object] = {}
    for key, value in pairs:
        if not isinstance(key, str):
            raise malformed("a map key is not text")
        result[key] = value
    if len(result) != len(pairs):
        raise malformed("a map has the same key twice")
    return result


def _refuse_constant(name: str) -> object:
    raise malformed(f"{name} is not a number that can be stored")


def _to_json(value: object, depth: int) -> object:
    kind = type(value)
    if kind in _PLAIN:
        return value
    if isinstance(value, int):
        if not _LEAST_INTEGER <= value <= _MOST_INTEGER:
            raise malformed("an integer of more than 64 bits cannot be stored")
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise malformed("NaN and infinity cannot be stored")
        return value
    if depth <= 0:
        raise malformed("a value is nested too deeply")
    if isinstance(value, bytes | bytearray | memoryview):
        return {_BYTES_KEY: base64.b64encode(value).decode("ascii")}
    if isinstance(value, list | tuple):
        return [item if type(item) in _PLAIN else _to_json(item, depth - 1) for item in value]
    if isinstance(value, dict) or isinstance(value, Mapping):  # the first is faster  # noqa: SIM101
        result: dict[str, object] = {}
        for key, item in value.items():
            if type(key) is not str:
                raise malformed("a map key is not text")
            result[key] = item if type(item) in _PLAIN else _to_json(item, depth - 1)
        if len(result) == 1:
            key, item = next(iter(result.items()))
            if key.startswith("$"):
                return {"$" + key: item}
        return result
    raise malformed(f"a value of type {type(value).__name__} cannot be stored")


def _from_json(value: object) -> object:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if isinstance(value, dict):
        if len(value) == 1:
            key, item = next(iter(value.items()))
            if key == _BYTES_KEY:
                return _decode_bytes(item)
            if key.startswith("$"):
                return {key[1:]: _from_json(item)}
        return {key: _from_json(item) for key, item in value.items()}
    return value


def _decode_bytes(item: object) -> bytes:
    try:
        if isinstance(item, str):
            return base64.b64decode(item.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        pass
    raise malformed("stored byte string is not base64")
