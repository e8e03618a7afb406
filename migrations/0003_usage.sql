-- What repositories take up, and what their owners may. Numbers are bytes of contents as they are stored raw.

CREATE TABLE owner_quotas (
    owner        text COLLATE "C" PRIMARY KEY,
    quota_bytes  bigint CHECK (quota_bytes >= 0)  -- NULL: the deployment's default; 0: none
);

CREATE TABLE repository_usage (
    repo   bigint PRIMARY KEY,
    bytes  bigint NOT NULL CHECK (bytes >= 0)
);

-- Announced uploads. Whoever names a push with one lets go of it when that push is accepted.
CREATE TABLE upload_reservations (
    repo         bigint NOT NULL,
    reservation  bytea NOT NULL CHECK (length(reservation) = 32),
    bytes        bigint NOT NULL CHECK (bytes >= 0),
    push_id      uuid,
    expires_at   timestamptz NOT NULL,
    PRIMARY KEY (repo, reservation)
);

-- What pushes have brought so far. The long reading comes before the lock on pushes, and under the lock it is only
-- looked up which of the pushes that were open have been accepted meanwhile.
CREATE TEMPORARY TABLE brought ON COMMIT DROP AS
    SELECT r.repo, CASE WHEN r.first_accepted IS NULL THEN r.push END AS open_push, sum(b.size)::bigint AS bytes
    FROM (
        SELECT f.repo, f.blob_id, f.push,
               min(f.push) FILTER (WHERE p.state = 1) OVER (PARTITION BY f.repo, f.blob_id) AS first_accepted
        FROM blob_refs f JOIN pushes p USING (push) WHERE p.state IN (0, 1)
    ) AS r
    JOIN repositories y ON y.repo = r.repo
    JOIN blobs b ON b.blob_id = r.blob_id AND b.scheme = coalesce(y.scheme, b.scheme)
    WHERE r.push = coalesce(r.first_accepted, r.push)
    GROUP BY 1, 2;

ALTER TABLE pushes ADD COLUMN bytes bigint NOT NULL DEFAULT 0;
UPDATE pushes p SET bytes = b.bytes FROM brought b WHERE p.push = b.open_push;
INSERT INTO repository_usage (repo, bytes)
    SELECT b.repo, sum(b.bytes)
    FROM brought b LEFT JOIN pushes p ON p.push = b.open_push
    WHERE b.open_push IS NULL OR p.state = 1
    GROUP BY 1;

CREATE INDEX pushes_in_flight ON pushes (repo, lease_expires) WHERE state = 0;
