"""The tokens and secrets of the memory index."""

from __future__ import annotations

import datetime as dt
import uuid
from dataclasses import replace

import trio

from storage.memory.tables import Tables
from storage.rows import Token


class MemoryIdentities:
    """See ``storage.index.Index`` for what each operation promises."""

    tables: Tables

    async def create_token(self, token: Token) -> None:
        await trio.lowlevel.checkpoint()
        self.tables.tokens.setdefault(token.token_id, token)

    async def revoke_token(self, token_id: uuid.UUID, at: dt.datetime) -> bool:
        await trio.lowlevel.checkpoint()
        token = self.tables.tokens.get(token_id)
        if token is None or token.revoked_at is not None:
            return False
        self.tables.tokens[token_id] = replace(token, revoked_at=at)
        return True

    async def find_token(self, token_hash: bytes) -> Token | None:
        await trio.lowlevel.checkpoint()
        return next((t for t in self.tables.tokens.values() if t.token_hash == token_hash), None)

    async def list_tokens(self, handle: str | None) -> list[Token]:
        await trio.lowlevel.checkpoint()
        found = [t for t in self.tables.tokens.values() if handle in {None, t.handle}]
        return sorted(found, key=lambda t: (-t.created_at.timestamp(), t.token_id))

    async def secret(self, name: str, candidate: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        return self.tables.secrets.setdefault(name, candidate)
