"""The repositories, and who may do what in them, of the memory index."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import replace

import trio

from storage.memory.identities_index import MemoryIdentities
from storage.memory.tables import Tables
from storage.rows import Access, NewRepository, Repository, RepositorySettings, Right, Visibility


class MemoryRepositories(MemoryIdentities):
    """See ``storage.index.Index`` for what each operation promises."""

    tables: Tables

    async def find_access(self, token_hash: bytes | None, owner: str, slug: str) -> Access:
        token = None if token_hash is None else await self.find_token(token_hash)
        repository = await self.find_repository(owner, slug)
        named = Right.NONE
        if token is not None and repository is not None:
            named = await self.collaborator_right(repository.number, token.handle)
        return Access(token, repository, named)

    async def create_repository(self, new: NewRepository) -> Repository | None:
        await trio.lowlevel.checkpoint()
        found = self.tables.repository_named(new.owner, new.slug)
        if found is not None:
            return found if found.repo_id == new.repo_id else None
        number = self.tables.next_number()
        made = Repository(
            number, new.repo_id, new.owner, new.slug, new.visibility, None, new.default_branch, new.domain,
            new.settings, new.created_at,
        )  # fmt: skip
        self.tables.repositories[number] = made
        self.tables.owners[number] = made.owner
        return made

    async def find_repository(self, owner: str, slug: str) -> Repository | None:
        await trio.lowlevel.checkpoint()
        return self.tables.repository_named(owner, slug)

    async def list_repositories(self, handle: str | None, everything: bool = False) -> list[Repository]:
        await trio.lowlevel.checkpoint()
        tables = self.tables
        found = [
            r
            for r in tables.repositories.values()
            if everything
            or r.visibility is Visibility.PUBLIC
            or (handle is not None and (r.owner == handle or (r.number, handle) in tables.collaborators))
        ]
        return sorted(found, key=lambda r: (r.owner, r.slug))

    async def repositories_numbered(self, numbers: Sequence[int]) -> dict[int, Repository]:
        await trio.lowlevel.checkpoint()
        return {n: self.tables.repositories[n] for n in numbers if n in self.tables.repositories}

    async def update_repository(
        self, number: int, visibility: Visibility, settings: RepositorySettings, default_branch: str
    ) -> bool:
        await trio.lowlevel.checkpoint()
        found = self.tables.repositories.get(number)
        if found is None:
            return False
        self.tables.repositories[number] = replace(
            found, visibility=visibility, settings=settings, default_branch=default_branch
        )
        return True

    async def delete_repository(self, number: int, at: dt.datetime) -> bool:
        await trio.lowlevel.checkpoint()
        gone = self.tables.repositories.pop(number, None)
        if gone is not None:
            self.tables.collection.deleted[number] = (at, gone.scheme)
        return gone is not None

    async def set_collaborator(self, number: int, handle: str, right: Right) -> None:
        await trio.lowlevel.checkpoint()
        if right is Right.NONE:
            self.tables.collaborators.pop((number, handle), None)
        else:
            self.tables.collaborators[number, handle] = right

    async def collaborator_right(self, number: int, handle: str) -> Right:
        await trio.lowlevel.checkpoint()
        return self.tables.collaborators.get((number, handle), Right.NONE)
