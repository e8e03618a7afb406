"""Reading a push's header frame: what is to move, and by which rules."""

from __future__ import annotations

import uuid

from actors.push.context import PushPlan, PushRequest
from storage.environment import Environment
from storage.rows import Verify
from wire.errors import malformed
from wire.frames import Header
from wire.ids import Scheme, parse_any_id, parse_id
from wire.limits import Limits
from wire.paths import check_branch_name


def parse_header(header: Header, request: PushRequest, environment: Environment, limits: Limits) -> PushPlan:
    """Check a header against the repository it is for.

    Raises:
        Refusal: ``malformed`` with what is wrong.
    """
    members = header.members
    branch = check_branch_name(header.branch, limits)
    scheme, head = parse_any_id(header.head, "head")
    require_scheme(request, scheme)
    force = members.get("force", False)
    if not isinstance(force, bool):
        raise malformed("force is not a boolean")
    options = members.get("options")
    if options is not None and not (
        isinstance(options, dict) and all(isinstance(value, str) for value in options.values())
    ):
        raise malformed("options is not a map of text to text")
    expected = members.get("expected_head")
    return PushPlan(
        push_id=parse_push_id(members.get("push_id"), environment),
        branch=branch,
        head=head,
        scheme=scheme,
        force=force,
        expected_head=None if expected is None else parse_id(expected, scheme, "expected_head"),
        has_expected_head="expected_head" in members,
        announced_objects=_optional_count(members.get("n_objects"), "n_objects"),
    )


def require_scheme(request: PushRequest, scheme: Scheme) -> None:
    """Refuse ids of the other scheme than the repository's."""
    fixed = request.repository.scheme
    if fixed is None and scheme is Scheme.TYPED and request.repository.settings.verify == Verify.PLAIN_LENIENT:
        raise malformed(
            "this repository's setting verify is plain-lenient, for ids of the plain scheme, and the push's are typed: "
            "set it to strict, or use another repository"
        )
    if fixed is not None and fixed is not scheme:
        raise malformed(
            f"this repository's ids are of the {fixed.value} scheme, the push's are {scheme.value}: "
            f"use a client of the {fixed.value} scheme, or another repository"
        )


def parse_push_id(value: object, environment: Environment) -> uuid.UUID:
    """Read a push id, or make one."""
    if value is None:
        return environment.uuid()
    if isinstance(value, bytes) and len(value) == 16:
        return uuid.UUID(bytes=value)
    if isinstance(value, str):
        try:
            return uuid.UUID(value)
        except ValueError:
            pass
    raise malformed("push_id is not a UUID")


def _optional_count(value: object, what: str) -> int | None:
    if value is None:
        return None
    if type(value) is not int or value < 0:
        raise malformed(f"{what} is not a count")
    return value
