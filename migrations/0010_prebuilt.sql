-- Full clones made ahead: which commits they are for, and the pack in the store that answers them. A row stays for a
-- while after it has expired, for downloads that have begun; the pack is deleted when no row names it any more.

CREATE TABLE prebuilt_packs (
    repo        bigint NOT NULL,
    want        bytea NOT NULL,  -- ids of commits, in order, one after another
    pack_id     bytea NOT NULL CHECK (length(pack_id) = 32),
    commits     bigint NOT NULL,
    objects     bigint NOT NULL,
    bytes       bigint NOT NULL,
    built_at    timestamptz NOT NULL,
    expires_at  timestamptz NOT NULL,
    PRIMARY KEY (repo, want)
);
CREATE INDEX prebuilt_packs_expiry ON prebuilt_packs (expires_at);
CREATE INDEX prebuilt_packs_pack ON prebuilt_packs (pack_id);
