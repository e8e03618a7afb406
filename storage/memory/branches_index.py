"""The branches and their log of the memory index."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import trio

from storage.memory.tables import Tables
from storage.rows import BranchLogEntry, BranchMove, BranchTip, MoveResult, Outcome


class MemoryBranches:
    """See ``storage.index.Index`` for what each operation promises."""

    tables: Tables

    async def branch_heads(self, number: int) -> dict[str, bytes]:
        await trio.lowlevel.checkpoint()
        return dict(sorted(self.tables.branches[number].items()))

    async def branch_tip(self, number: int, branch: str) -> BranchTip | None:
        await trio.lowlevel.checkpoint()
        head = self.tables.branches[number].get(branch)
        scheme = None if number not in self.tables.repositories else self.tables.repositories[number].scheme
        if head is None or scheme is None:
            return None
        facts = self.tables.commits[scheme, head]
        return BranchTip(head, facts.snapshot_id, facts.order)

    async def move_branches(
        self, number: int, moves: Sequence[BranchMove], handle: str, now: dt.datetime
    ) -> MoveResult:
        await trio.lowlevel.checkpoint()
        if number not in self.tables.repositories:
            return MoveResult(Outcome.GONE)
        branches = self.tables.branches[number]
        ordered = sorted(moves, key=lambda move: move.branch)
        for move in ordered:
            head = branches.get(move.branch)
            if head not in {move.old, move.new}:
                return MoveResult(Outcome.HEAD_DIFFERS, head, move.branch)
            held = self.tables.pushes_of(number)
            is_lost = move.new is not None and not any(move.new in push.commits for push in held)
            if is_lost and self.tables.collection.collected.get(number, 0):
                return MoveResult(Outcome.NOT_HELD, None, move.branch)
        for move in ordered:
            head = branches.get(move.branch)
            if move.new is None:
                branches.pop(move.branch, None)
            else:
                branches[move.branch] = move.new
            if head != move.new:
                self.tables.branch_log[number].append(
                    BranchLogEntry(move.branch, head, move.new, handle, None, move.forced, now)
                )
        return MoveResult(Outcome.MOVED)

    async def branch_log(self, number: int, branch: str) -> list[BranchLogEntry]:
        await trio.lowlevel.checkpoint()
        return [entry for entry in self.tables.branch_log[number] if entry.branch == branch]
