"""What was already decided about a push, and keeping what is decided now."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from actors.push.context import PushRequest, PushServices
from storage.errors import IndexUnavailable
from storage.rows import PushRecord, PushState, PushTicket
from wire.errors import Code, Refusal

log = structlog.get_logger("push")

_NOT_FOR_GOOD = frozenset((Code.QUOTA_EXCEEDED,))
"""Refusals that something else than time or another push may lift: the same push may be sent again."""


async def keep_refusal(
    services: PushServices, request: PushRequest, ticket: PushTicket | None, refusal: Refusal, *, received: bool,
    polled: bool,
) -> None:  # fmt: skip
    """Make a refusal of a completely received push its verdict, unless the same push may be sent again.

    Args:
        services: what the push works with.
        request: who asked.
        ticket: the attempt; ``None`` when it has not begun.
        refusal: what is told.
        received: whether all of the push has arrived as its sender meant it.
        polled: whether somebody may ask for the push's state: then a refusal that is no verdict is kept as news.
    """
    if ticket is None or refusal.code is Code.PUSH_SUPERSEDED:
        return
    members = {key: value for key, value in refusal.body("").items() if key != "request_id"}
    now = services.environment.now()
    try:
        if received and not refusal.code.retryable and refusal.code not in _NOT_FOR_GOOD:
            await services.index.refuse_push(ticket, members, now)
        elif polled:
            await services.index.interrupt_push(ticket, members, now)
    except IndexUnavailable as error:  # the refusal stands and is told, kept or not
        log.warning("refusal not kept", request_id=request.request_id, error=str(error))


def first_verdict(record: PushRecord, handle: str) -> Mapping[str, object]:
    """Give the verdict of a push that has one already.

    Raises:
        Refusal: the verdict was one, or the push is somebody else's.
    """
    if record.handle != handle:
        raise Refusal(Code.FORBIDDEN, "this push id belongs to somebody else's push")
    verdict = dict(record.verdict or {})
    if record.state is PushState.ACCEPTED:
        return verdict
    code = Code.from_text(str(verdict.pop("error", ""))) or Code.INTERNAL
    verdict.pop("retryable", None)
    raise Refusal(code, str(verdict.pop("detail", "")), **verdict)
