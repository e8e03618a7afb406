"""Control bodies: msgpack or JSON, in and out (protocol §4)."""

from __future__ import annotations

import json
from collections.abc import Mapping

import msgpack

from wire.canonical import parse_json
from wire.errors import Code, Refusal, malformed
from wire.pull import unpack_whole

MSGPACK = "application/x-msgpack"
JSON = "application/json"
_MSGPACK_TYPES = {MSGPACK, "application/msgpack", "application/vnd.msgpack"}


def is_msgpack(content_type: str) -> bool:
    """Tell whether a body of this Content-Type is msgpack."""
    return content_type.partition(";")[0].strip().lower() in _MSGPACK_TYPES


def wants_msgpack(accept: str) -> bool:
    """Tell whether an ``Accept`` header names msgpack."""
    return any(is_msgpack(part) for part in accept.split(","))


_FEW_ITEMS = 1_000
_ITEM_BYTES = 16
"""What control bodies are long of are ids, of 64 bytes and more: a body of shorter elements has no meaning."""


def read_body(body: bytes, content_type: str, most_items: int | None = None) -> dict[str, object]:
    """Decode a control body by its Content-Type; an empty body is an empty map.

    Raises:
        Refusal: ``unsupported_media``, or ``malformed``, also for more elements than its length explains.
    """
    if not body:
        return {}
    most = _FEW_ITEMS + len(body) // _ITEM_BYTES
    most = most if most_items is None else min(most, most_items)
    kind = content_type.partition(";")[0].strip().lower()
    if is_msgpack(kind):
        value = unpack_whole(body, "the body", most_items=most)
    elif kind in {JSON, "", "text/json"}:
        value = parse_json(body, "the body", most)
    else:
        raise Refusal(Code.UNSUPPORTED_MEDIA, f"a body of type {kind[:60]!a}: send {MSGPACK} or {JSON}")
    if not isinstance(value, dict):
        raise malformed("the body is not a map")
    return value


def write_body(value: Mapping[str, object] | list[object], accept: str) -> tuple[str, bytes]:
    """Encode an answer; gives Content-Type and body. msgpack when ``Accept`` names it, JSON otherwise."""
    if wants_msgpack(accept):
        packed: bytes = msgpack.packb(value, use_bin_type=True)
        return MSGPACK, packed
    return JSON, json.dumps(value, ensure_ascii=False).encode("utf-8", errors="replace")
