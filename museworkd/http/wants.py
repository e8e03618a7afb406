"""What a fetch asks for: lists of commit ids, and a depth."""

from __future__ import annotations

from collections.abc import Mapping

from storage.rows import Repository
from wire.errors import Code, Refusal, malformed
from wire.ids import parse_any_id, parse_id
from wire.limits import Limits

DEPTH_MOST = 1_000_000


def read_commit_ids(limits: Limits, repository: Repository, body: Mapping[str, object], key: str) -> list[bytes]:
    """Read a list of commit ids of the repository's scheme; keeps the order, drops repetitions."""
    value = body.get(key)
    if value is None and key == "have":
        return []
    if not isinstance(value, list):
        raise malformed(f"{key} is not a list of ids")
    most = limits.negotiate_ids
    if len(value) > most:
        raise Refusal(Code.TOO_LARGE, f"{key} has {len(value)} ids, the limit is {most}")
    if repository.scheme is None:
        return list(dict.fromkeys(parse_any_id(item, key)[1] for item in value))
    return list(dict.fromkeys(parse_id(item, repository.scheme, key) for item in value))


def read_depth(body: Mapping[str, object]) -> int | None:
    """Read how many of the newest commits are wanted; ``None`` for all."""
    depth = body.get("depth")
    if depth is None:
        return None
    if type(depth) is not int or not 1 <= depth <= DEPTH_MOST:
        raise malformed(f"depth is not a number from 1 to {DEPTH_MOST}")
    return depth
