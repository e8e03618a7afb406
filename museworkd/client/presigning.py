"""Asking a server which blobs it has of a push, and for URLs to upload the others to (protocol §6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from museworkd.client.delivery import Delivery
from museworkd.client.errors import ClientError, IntegrityError
from museworkd.client.transport import Api
from storage.layout import Place
from wire.errors import Refusal
from wire.ids import Scheme, format_id, parse_id

PRESIGN_OBJECTS = 5_000
"""A URL has some 300 bytes: the answer stays far below what a client reads."""
PRESIGN_BYTES = 1024 * 1024 * 1024
"""So much is uploaded before the URLs of a batch expire, at 300 KB/s."""
_NOT_OFFERED = {"not_found", "method_not_allowed", "404", "405"}


def batches(places: Iterable[Place], most: int, most_bytes: int) -> Iterator[list[Place]]:
    """Cut into parts by number and by bytes; a larger content has one of its own."""
    part: list[Place] = []
    size = 0
    for place in places:
        if part and (len(part) >= most or size + place.size > most_bytes):
            yield part
            part, size = [], 0
        part.append(place)
        size += place.size
    if part:
        yield part


@dataclass(frozen=True, slots=True)
class Presigned:
    """What a server says of some blobs."""

    urls: dict[bytes, str]
    """Where to upload what it lacks."""
    stored: set[bytes]
    """What it has already."""
    resumable: bool
    """Whether an upload can be taken up again where it broke off."""


async def presign(api: Api, delivery: Delivery, places: Sequence[Place]) -> Presigned:
    """Ask which blobs need not be sent, and for upload URLs of the others."""
    scheme = delivery.repository.scheme
    shown = [format_id(place.object_id, scheme) for place in places]
    body = {
        "object_ids": shown, "sizes": {i: place.size for i, place in zip(shown, places, strict=True)},
        "push_id": delivery.push_id,
    }  # fmt: skip
    answer = await api.post("push/presign", body)
    urls, stored = answer.get("presigned_urls"), answer.get("already_stored")
    if not isinstance(urls, dict) or not isinstance(stored, list):
        raise IntegrityError("the server's answer has no presigned_urls or already_stored")
    asked = {place.object_id for place in places}
    there = ids_of(stored, scheme) & asked
    where = {parse_server_id(i, scheme): url for i, url in urls.items() if isinstance(url, str)}
    for place in places:
        if place.object_id not in there and place.object_id not in where:
            raise IntegrityError(f"the server says nothing of object {format_id(place.object_id, scheme)}")
    lacking = {blob_id: url for blob_id, url in where.items() if blob_id in asked - there}
    return Presigned(lacking, there, is_resumable(answer))


def is_resumable(answer: Mapping[str, object]) -> bool:
    """Tell whether uploads to the URLs of an answer can be taken up again; a server that says nothing can do it."""
    return answer.get("resumable") is not False


async def stored_of(delivery: Delivery, blobs: Sequence[Place]) -> set[bytes]:
    """Ask which blobs need not be sent: the repository has them, or an earlier attempt of this push brought them.

    An older server cannot say: then it is sent everything.
    """
    stored: set[bytes] = set()
    async with Api(delivery.remote) as api:
        for part in batches(blobs, PRESIGN_OBJECTS, 1 << 62):
            try:
                stored |= (await presign(api, delivery, part)).stored
            except ClientError as error:
                if error.code not in _NOT_OFFERED:
                    raise
                return set()
    return stored


def ids_of(values: Iterable[object], scheme: Scheme) -> set[bytes]:
    """Read ids that a server lists."""
    return {parse_server_id(value, scheme) for value in values}


def parse_server_id(value: object, scheme: Scheme) -> bytes:
    """Read an id that a server names."""
    try:
        return parse_id(value, scheme)
    except Refusal as refusal:
        raise IntegrityError(f"the server names an object that is none: {refusal.detail}") from refusal
