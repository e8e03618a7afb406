"""Contents that wait in the index for their place in the store, as one pack: the index alone would be no safe place.

No row names the pack. Soon each content has its own place, and the pack is collected as what nobody needs; an index
that is made anew from the store finds in it what had none yet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from storage.layout import pack_key
from wire.pack import PackWriter


def kept_pack(contents: Mapping[bytes, bytes]) -> list[tuple[str, bytes]]:
    """Give what is to be put: key and content of the pack; nothing where there are no contents."""
    if not contents:
        return []
    writer = PackWriter(len(contents), keep_entries=False)
    parts = [writer.begin()]
    for object_id, content in sorted(contents.items()):
        parts += (writer.head(object_id, len(content)), writer.content(content))
    parts.append(writer.finish())
    pack = b"".join(parts)
    return [(pack_key(hashlib.sha256(pack).digest()), pack)]
