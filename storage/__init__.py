"""Keeping bytes and rows: two ports and their implementations.

``ObjectStore`` (objects, packs) keeps the truth; ``Index`` (everything relational) can be rebuilt from it. Each
port has a real and a memory implementation held to one behaviour suite. Nothing here knows about actors or
HTTP; both ports are async, and every call is a trio checkpoint.
"""
