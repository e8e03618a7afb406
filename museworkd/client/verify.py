"""Proving a local repository: every byte against its id, every id against what it builds on, the work tree, and git.

What is proved is what commands read: the index as a whole, every pack and every place the index gives in one, every
snapshot and commit, refs and HEAD. The files of the work tree are the user's: where they differ from the commit they
were written from, that is told apart from damage.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from actors.manifests import ManifestCache
from museworkd.client.checkout import manifest_of
from museworkd.client.errors import IntegrityError
from museworkd.client.limits import CLIENT_LIMITS
from museworkd.client.progress import Meter, Phase
from museworkd.client.repository import LocalRepository
from museworkd.client.verify_report import VerifyReport, read_commit
from storage.errors import ObjectDamaged
from storage.snapshots import unpack_changes
from wire.errors import Refusal
from wire.ids import Kind, Scheme, format_id, hasher_for
from wire.paths import PathPolicy
from wire.signatures import check_signature

__all__ = ["VerifyReport", "verify"]
_PIECE_BYTES = 1024 * 1024


async def verify(repository: LocalRepository, meter: Meter) -> VerifyReport:
    """Prove index, blobs, snapshots, commits and refs of a repository, and compare its work tree."""
    report = VerifyReport()
    index = repository.index
    for text in index.check():
        report.problem(f"the repository's index is damaged, a fresh clone is needed: {text}")
    if lost := index.lost_blobs():
        report.problem(f"the repository's index is damaged: {lost} blobs lie in packs it does not know")
    found: set[bytes] = set()
    with meter.phase("Verifying blobs", index.blob_count()) as phase:
        for pack_id in index.pack_ids():
            places = index.pack_places(pack_id)
            try:
                for entry in repository.files.check(pack_id):
                    place = places.pop(entry.object_id, None)
                    if place is not None and place != (entry.offset, entry.size):
                        report.problem(f"the index gives a wrong place for blob {entry.object_id.hex()}")
                    elif place is not None:
                        found.add(entry.object_id)
                        phase.advance()
            except IntegrityError as error:
                report.problem(str(error))
            else:
                for blob_id in places:
                    report.problem(f"blob {blob_id.hex()} is not in pack {pack_id.hex()}, where the index says it is")
    report.blobs = len(found)
    commit_ids = index.commit_ids()
    with meter.phase("Verifying commits", len(commit_ids)) as phase:
        await _History(repository, report, found).run(commit_ids, phase)
    for kind, refs in (("branch", repository.branches()), ("tag", repository.tags())):
        for name, head in refs.items():
            if not index.has_commit(head):
                report.problem(f"{kind} {name!a} names {format_id(head, repository.scheme)}, which is missing")
    report.shallow = len(index.shallow())
    _check_head(repository, report)
    await _check_work_tree(repository, report, meter)
    return report


def _check_head(repository: LocalRepository, report: VerifyReport) -> None:
    try:
        head = repository.head_branch
    except IntegrityError as error:
        report.problem(str(error))
        return
    branches = repository.branches()
    if branches and head not in branches:
        report.problem(f"HEAD names the branch {head!a}, which does not exist")


async def _check_work_tree(repository: LocalRepository, report: VerifyReport, meter: Meter) -> None:
    """Compare the files that a checkout wrote; others in the work tree are nobody's business here."""
    try:
        commit_id = repository.checked_out
        if commit_id is None:
            return
        facts = repository.index.facts(commit_id)
        if facts is None:
            report.problem(f"the checked-out commit {format_id(commit_id, repository.scheme)} is missing")
            return
        manifest = await manifest_of(repository, facts.snapshot_id)
    except (IntegrityError, ObjectDamaged, Refusal, ValueError) as error:
        report.problem(f"the work tree cannot be compared: {error}")
        return
    with meter.phase("Comparing the work tree", len(manifest)) as phase:
        for path, blob_id in manifest.items():
            report.work_tree_files += 1
            change = _file_change(repository.root / path, blob_id, repository.scheme)
            if change is not None:
                report.change(f"{path!a} {change}")
            phase.advance()
        for path in manifest.directories:
            if not (repository.root / path).is_dir():
                report.change(f"{path!a} is no directory")


def _file_change(path: Path, blob_id: bytes, scheme: Scheme) -> str | None:
    """Say how a file differs from its blob."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return "is gone"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    with os.fdopen(fd, "rb") as file:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            return "is not a file"
        hasher = hasher_for(Kind.BLOB, facts.st_size, scheme)
        while piece := file.read(_PIECE_BYTES):
            hasher.update(piece)
    return None if hasher.digest() == blob_id else "is changed"


class _History:
    def __init__(self, repository: LocalRepository, report: VerifyReport, blobs: set[bytes]) -> None:
        self._repository = repository
        self._report = report
        self._blobs = blobs
        self._checked: set[bytes] = set()
        self._manifests = ManifestCache(repository.index, repository.scheme, PathPolicy.RELAXED, CLIENT_LIMITS)

    async def run(self, commit_ids: list[bytes], phase: Phase) -> None:
        index, report = self._repository.index, self._report
        known: set[bytes] = set()
        shallow = index.shallow()
        for commit_id in commit_ids:
            shown = format_id(commit_id, self._repository.scheme)
            try:
                commit = read_commit(self._repository, commit_id)
                check_signature(commit, self._repository.scheme)
            except (Refusal, IntegrityError) as error:
                report.problem(f"commit {shown}: {error}")
                continue
            known.add(commit_id)
            report.commits += 1
            if commit_id not in shallow:
                for parent in commit.parents:
                    if parent not in known:
                        report.problem(f"commit {shown}: its parent {parent.hex()} is missing")
            await self._snapshot(commit.snapshot_id)
            phase.advance()

    async def _snapshot(self, snapshot_id: bytes) -> None:
        if snapshot_id in self._checked:
            return
        scheme, report = self._repository.scheme, self._report
        try:
            chain = await self._repository.index.snapshot_chain(scheme, snapshot_id)
            manifest = await self._manifests.get(snapshot_id)
        except (IntegrityError, ObjectDamaged, Refusal) as error:
            report.problem(f"snapshot {snapshot_id.hex()}: {error}")
            return
        if manifest.snapshot_id(scheme) != snapshot_id:
            report.problem(f"snapshot {snapshot_id.hex()} does not hash to its id")
        # what a checked base has was checked with it; only what is new to it is left
        based = bool(chain) and chain[0].base_id in self._checked
        named = unpack_changes(chain[0].delta).upsert.values() if based else manifest.blobs()
        for blob_id in set(named):
            if blob_id not in self._blobs:
                report.problem(f"snapshot {snapshot_id.hex()}: blob {blob_id.hex()} is missing")
        self._checked.add(snapshot_id)
        report.snapshots += 1
