"""What was already decided about a push."""

from __future__ import annotations

from collections.abc import Mapping

from storage.rows import PushRecord, PushState
from wire.errors import Code, Refusal


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
