"""Collecting what nobody needs any more: what repositories hold in vain, bytes nothing refers to, small packs."""
