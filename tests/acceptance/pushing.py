"""Pushing raw frames to a daemon over a real connection that can be cut at any byte."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Iterator

import msgpack
import trio

from museworkd.client.errors import TransferError
from museworkd.client.transport import Remote, open_duplex

MEDIA_TYPE = "application/x-muse-packstream"
PIECE_BYTES = 16 * 1024


async def push_frames(remote: Remote, body: bytes, *, cut_at: int | None = None, on_cut=None) -> dict:
    """Push a whole body and give the last frame; with ``cut_at``, call ``on_cut`` after that many bytes."""
    return await push_pieces(remote, pieces_of(body, cut_at), stop_after_body=cut_at is not None, on_cut=on_cut)


def pieces_of(body: bytes, most: int | None = None) -> Iterator[bytes]:
    body = body if most is None else body[:most]
    for at in range(0, len(body), PIECE_BYTES):
        yield body[at : at + PIECE_BYTES]


async def push_pieces(
    remote: Remote,
    pieces: Iterable[bytes] | AsyncIterable[bytes],
    *,
    stop_after_body=False,
    on_cut=None,
    answering: trio.Event | None = None,
) -> dict:
    frames: list[dict] = []
    async with open_duplex(remote, "push/stream", MEDIA_TYPE) as duplex, trio.open_nursery() as nursery:

        async def send() -> None:
            try:
                if isinstance(pieces, AsyncIterable):
                    async for piece in pieces:
                        await duplex.send(piece)
                else:
                    for piece in pieces:
                        await duplex.send(piece)
                if stop_after_body:
                    on_cut()
                else:
                    await duplex.end()
            except TransferError:
                pass  # the answer says why

        nursery.start_soon(send)
        lost: TransferError | None = None
        try:
            await listen(duplex, frames, answering)
        except TransferError as error:
            lost = error
        nursery.cancel_scope.cancel()
    if lost is not None:
        raise lost
    return frames[-1]


async def listen(duplex, frames: list[dict], answering: trio.Event | None) -> None:
    await duplex.response()
    if duplex.status != 200:
        body = msgpack.unpackb(await duplex.receive_all())
        frames.append({"type": "status", "status": duplex.status, **body})
        return
    unpacker = msgpack.Unpacker(raw=False)
    while piece := await duplex.receive():
        unpacker.feed(piece)
        frames += list(unpacker)
        if answering is not None:
            answering.set()
