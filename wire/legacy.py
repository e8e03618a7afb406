"""The body of a push by the public 0.1.x client (protocol §9): a map with a bundle inside, read as a stream.

::

    {bundle: {commits, snapshots, objects, branch_heads?}, branch, force?}

Members come in any order, so where the push goes may be known only at the end.
"""

from __future__ import annotations

from collections.abc import Generator

from wire.bundle import BundleEnd, BundleReader
from wire.errors import malformed
from wire.frames import Event

BUNDLE = "bundle"


class PushBodyReader(BundleReader):
    """Push parser over such a body; the last event's ``members`` has the small ones, those of the bundle too."""

    def _walk(self) -> Generator[Event | BundleEnd | None, None, None]:
        parser = self._parser
        members: dict[str, object] = {}
        opened = yield from parser.open_map("a push")
        found = False
        for _ in range(opened.count):
            key = yield from parser.key(opened)
            if key != BUNDLE:
                members[key] = yield from parser.member(opened)
                continue
            found = True
            inner: dict[str, object] = {}
            yield from self._bundle(inner)
            members[BUNDLE] = inner
        if not found:
            raise malformed("a push has no bundle")
        self.finished = True
        yield BundleEnd(members)
