-- Collecting what nobody needs any more, beside pushes and fetches that rely on what is there.
--
-- Moments are numbers of transactions, which only grow. Whoever relies on what is stored takes one when it begins (a
-- push with each attempt, others with a lease); the collector takes one when it marks something, and another when it
-- has deleted it. Whose moment is the smaller one was there first.

ALTER TABLE repositories
    ADD COLUMN collected bigint NOT NULL DEFAULT 0,  -- how often references were taken from it
    ADD COLUMN folded_at timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN swept_at timestamptz NOT NULL DEFAULT '-infinity',
    ADD COLUMN swept_until timestamptz NOT NULL DEFAULT '-infinity';  -- what was left behind before is gone

-- A push that a previous version has begun counts as older than everything, and as one that knew of no collection.
ALTER TABLE pushes
    ADD COLUMN collected bigint NOT NULL DEFAULT 0,  -- of its repository, when it was begun
    ADD COLUMN begun xid8 NOT NULL DEFAULT '0';  -- the moment of its last attempt
ALTER TABLE pushes ALTER COLUMN begun SET DEFAULT pg_current_xact_id();

CREATE TABLE leases (
    lease       uuid PRIMARY KEY,
    repo        bigint NOT NULL,
    begun       xid8 NOT NULL DEFAULT pg_current_xact_id(),
    expires_at  timestamptz NOT NULL
);

-- What may have lost its last reference; more than once, and perhaps wrongly. Nobody ever waits for a row of it.
CREATE TABLE collect_suspects (
    kind    smallint NOT NULL,  -- 0 object, 1 pack
    scheme  text NOT NULL,      -- '' of a pack
    id      bytea NOT NULL,
    loose   boolean NOT NULL    -- of an object: only its loose copy is meant
);

CREATE TABLE collect_marks (
    kind        smallint NOT NULL,
    scheme      text NOT NULL,
    id          bytea NOT NULL CHECK (length(id) = 32),
    loose       boolean NOT NULL,
    state       smallint NOT NULL DEFAULT 0 CHECK (state BETWEEN 0 AND 2),  -- marked, tombstoned, deleted
    marked_at   timestamptz NOT NULL,
    moment      xid8 NOT NULL DEFAULT pg_current_xact_id(),  -- when it was marked, or deleted
    review      uuid,
    referenced  boolean NOT NULL DEFAULT false,
    owner       uuid,           -- who deletes it
    until       timestamptz,    -- and how long nobody else does
    PRIMARY KEY (kind, scheme, id)
);
CREATE INDEX collect_marks_review ON collect_marks (review, kind) WHERE state = 0;
CREATE INDEX collect_marks_due ON collect_marks (until) WHERE state = 1;
CREATE INDEX collect_marks_deleted ON collect_marks (moment) WHERE state = 2;

-- What the branches of a repository lead to, while one collector looks at it. Deleting the run ends that collector.
CREATE TABLE collect_runs (
    run     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repo    bigint NOT NULL UNIQUE,
    entry   bigint NOT NULL,  -- of the branch log, the last one that was looked at
    moment  xid8 NOT NULL DEFAULT pg_current_xact_id()  -- after it was looked at
);
CREATE TABLE collect_reached (
    run      bigint NOT NULL,
    kind     smallint NOT NULL,  -- 0 blob, 1 snapshot, 2 commit
    id       bytea NOT NULL,
    visited  boolean NOT NULL,
    PRIMARY KEY (run, kind, id)
);
CREATE INDEX collect_reached_waiting ON collect_reached (run, kind, id) WHERE NOT visited;
