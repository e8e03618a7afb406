-- A snapshot of hundreds of thousands of files is tens of megabytes: as one row it held a connection for a second, each
-- time it was written or read. Such a body is kept in parts, under its hash, and its row holds where they are.
CREATE TABLE large_bodies (
    body_id bytea   NOT NULL CHECK (octet_length(body_id) = 32),
    part    integer NOT NULL CHECK (part >= 0),
    content bytea   NOT NULL,
    PRIMARY KEY (body_id, part)
);
ALTER TABLE large_bodies ALTER COLUMN content SET STORAGE EXTERNAL;
