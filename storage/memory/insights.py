"""Lines, last commits and findings, in dictionaries; see ``storage.postgres.insights``."""

from __future__ import annotations

import datetime as dt
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace

from storage.insights import (
    Finding,
    KeptFinding,
    LastCommits,
    Line,
    LineStanding,
    LineTicket,
    PathChanges,
    StoredPlace,
    path_id,
)
from storage.layout import Place
from storage.rows import StoredBlob
from wire.ids import Scheme

LineName = tuple[int, str, str]
"""Repository, type and branch."""


@dataclass(slots=True)
class InsightTables:
    """What background work has found out."""

    lines: dict[LineName, Line] = field(default_factory=dict)
    paths: dict[int, dict[bytes, bytes]] = field(default_factory=dict)
    """Line → path id → last commit."""
    findings: dict[tuple[str, bytes], KeptFinding] = field(default_factory=dict)
    last_line: int = 0

    def begin(self, repo: int, type_: str, branch: str) -> Line:
        """See ``Insights.begin_line``."""
        found = self.lines.get((repo, type_, branch))
        if found is None:
            self.last_line += 1
            found = Line(LineTicket(self.last_line, 0), LineStanding())
        begun = replace(found, ticket=LineTicket(found.ticket.line, found.ticket.epoch + 1))
        self.lines[repo, type_, branch] = begun
        return begun

    def find(self, repo: int, type_: str, branch: str) -> Line | None:
        """See ``Insights.find_line``."""
        return self.lines.get((repo, type_, branch))

    def write(self, ticket: LineTicket, standing: LineStanding, paths: PathChanges) -> bool:
        """See ``Insights.write_line``."""
        name = self._name(ticket)
        if name is None:
            return False
        self.lines[name] = Line(ticket, standing)
        own = self.paths.setdefault(ticket.line, {})
        for path in paths.gone:
            own.pop(path_id(path), None)
        own.update((path_id(path), commit) for path, commit in paths.last.items())
        return True

    def clear(self, ticket: LineTicket, most: int) -> int | None:
        """See ``Insights.clear_paths``."""
        return None if self._name(ticket) is None else self._clear(ticket.line, most)

    def _clear(self, line: int, most: int) -> int:
        own = self.paths.get(line, {})
        gone = sorted(own)[:most]
        for path in gone:
            del own[path]
        return len(gone)

    def copy(self, ticket: LineTicket, source: int, after: bytes, most: int) -> bytes | None:
        """See ``Insights.copy_paths``."""
        theirs = self.paths.get(source, {})
        copied = sorted(path for path in theirs if path > after)[:most]
        if self._name(ticket) is None or not copied:
            return None
        self.paths.setdefault(ticket.line, {}).update((path, theirs[path]) for path in copied)
        return copied[-1]

    def last_commits(self, repo: int, type_: str, branch: str, paths: Sequence[str]) -> LastCommits:
        """See ``Insights.last_commits``."""
        line = self.find(repo, type_, branch)
        if line is None:
            return LastCommits(None, {})
        own = self.paths.get(line.ticket.line, {})
        found = {path: own[path_id(path)] for path in paths if path_id(path) in own}
        return LastCommits(None if line.standing.target_id is not None else line.standing.commit_id, found)

    def forget(self, repo: int, type_: str, keep: Sequence[str], most: int) -> int:
        """See ``Insights.forget_lines``."""
        return self._forget([name for name in self.lines if name[:2] == (repo, type_) and name[2] not in keep], most)

    def forget_deleted(self, repositories: Container[int], most: int) -> int:
        """See ``Insights.forget_deleted_lines``."""
        return self._forget([name for name in self.lines if name[0] not in repositories], most)

    def _forget(self, names: list[LineName], most: int) -> int:
        if not names:
            return 0
        names.sort()
        gone = self._clear(self.lines[names[0]].ticket.line, most)
        if gone < most:
            self.paths.pop(self.lines.pop(names[0]).ticket.line, None)
            gone += 1
        return gone

    def record_findings(self, findings: Sequence[Finding], now: dt.datetime) -> None:
        """See ``Insights.record_findings``."""
        for finding in findings:
            at = (finding.key, finding.object_id or b"")
            known = self.findings.get(at)
            self.findings[at] = KeptFinding(finding, now if known is None else known.found_at, now)

    def forget_findings(self, before: dt.datetime) -> int:
        """See ``Insights.forget_findings``."""
        gone = [at for at, kept in self.findings.items() if kept.seen_at < before]
        for at in gone:
            del self.findings[at]
        return len(gone)

    def _name(self, ticket: LineTicket) -> LineName | None:
        """Name the line of a ticket that counts."""
        return next((name for name, line in self.lines.items() if line.ticket == ticket), None)


def stored_after(
    blobs: Mapping[tuple[Scheme, bytes], StoredBlob],
    pending: Container[tuple[Scheme, bytes]],
    after: tuple[bytes, Scheme] | None,
    most: int,
) -> list[StoredPlace]:
    """See ``Insights.stored_after``."""
    first = (b"", "") if after is None else (after[0], after[1].value)
    keys = sorted((key[1], key[0].value) for key in blobs if key not in pending)
    found = [(Scheme(scheme), blob_id) for blob_id, scheme in keys if (blob_id, scheme) > first]
    return [
        StoredPlace(scheme, Place(blob_id, blob.size, blob.pack_id, blob.offset))
        for scheme, blob_id in found[:most]
        for blob in [blobs[scheme, blob_id]]
    ]
