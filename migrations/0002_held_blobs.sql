-- What a repository holds before any push names it: uploaded objects that were verified. A row keeps the blob for a
-- push of this repository until it expires; it lets nobody read it. The scheme is part of the key, because an empty
-- repository has none yet, and one digest may be a blob's id in each.

CREATE TABLE held_blobs (
    repo        bigint NOT NULL,
    scheme      text NOT NULL CHECK (scheme IN ('typed', 'plain')),
    blob_id     bytea NOT NULL CHECK (length(blob_id) = 32),
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (repo, blob_id, scheme)
);
CREATE INDEX held_blobs_expiry ON held_blobs (expires_at);
