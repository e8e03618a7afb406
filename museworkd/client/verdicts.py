"""What became of a push whose answer was lost, or is still being made: ``GET push/{push_id}``."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from museworkd.client.errors import ClientError, TransferError
from museworkd.client.transport import Api, refusal_error

POLL_EVERY_S = 1.0
POLL_MOST_S = 3_600.0
SETTLE_S = 3.0
"""How long a lost connection's push may still be finishing: it has been received whole or not at all."""


async def find_push(api: Api, push_id: str) -> Mapping[str, object] | None:
    """Ask where a push stands; ``None``: the server has never heard of it."""
    try:
        return await api.get(f"push/{push_id}")
    except ClientError as error:
        if error.code == "not_found":
            return None
        raise


async def settled(api: Api, push_id: str) -> Mapping[str, object]:
    """Wait for a push the server works on; gives its result.

    Raises:
        ClientError: it was refused. TransferError: it failed for now, or takes too long.
    """
    give_up_at = trio.current_time() + POLL_MOST_S
    while trio.current_time() < give_up_at:
        answer = await find_push(api, push_id)
        match answer and answer.get("status"):
            case "accepted":
                assert answer is not None
                return answer
            case "refused" | "failed":
                assert answer is not None
                raise refusal_error(answer)
            case "interrupted" | None:
                raise TransferError("the server was stopped while it unpacked; the push may be sent again")
            case "pending":
                await trio.sleep(POLL_EVERY_S)
            case other:
                raise ClientError(f"the server says nothing this client knows about its push: {other!r}")
    raise TransferError("the server is still unpacking; ask again later by pushing again")


async def known_verdict(api: Api, push_id: str, *, received: bool, unpacking: bool) -> Mapping[str, object] | None:
    """Give the result of a push if it has one.

    Args:
        api: where to ask.
        push_id: the push.
        received: the server may have all of it and be finishing.
        unpacking: it works on without us, however long that takes.

    Raises:
        ClientError: it was refused for good.
    """
    give_up_at = trio.current_time() + SETTLE_S
    while True:
        found = await find_push(api, push_id)
        status = None if found is None else found.get("status")
        if status == "accepted":
            return found
        if status == "refused":
            assert found is not None
            raise refusal_error(found)
        if status != "pending" or not received:
            return None
        if unpacking:
            return await settled(api, push_id)
        if trio.current_time() >= give_up_at:
            return None
        await trio.sleep(SETTLE_S / 10)
