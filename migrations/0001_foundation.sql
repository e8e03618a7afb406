-- Identities, repositories, objects and history. Ids are raw SHA-256 digests (32-byte bytea); repositories and
-- pushes have short numbers of the index's own, because every reference row carries them.

CREATE TABLE identities (
    handle      text COLLATE "C" PRIMARY KEY,
    created_at  timestamptz NOT NULL
);

CREATE TABLE tokens (
    token_id    uuid PRIMARY KEY,
    handle      text COLLATE "C" NOT NULL REFERENCES identities,
    token_hash  bytea NOT NULL UNIQUE CHECK (length(token_hash) = 32),
    scope       smallint NOT NULL CHECK (scope BETWEEN 1 AND 3),
    created_at  timestamptz NOT NULL,
    expires_at  timestamptz,
    revoked_at  timestamptz
);

CREATE TABLE secrets (
    name   text COLLATE "C" PRIMARY KEY,
    value  bytea NOT NULL
);

CREATE TABLE repositories (
    repo            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repo_id         uuid NOT NULL UNIQUE,
    owner           text COLLATE "C" NOT NULL,
    slug            text COLLATE "C" NOT NULL,
    visibility      text NOT NULL CHECK (visibility IN ('private', 'public')),
    scheme          text CHECK (scheme IN ('typed', 'plain')),
    default_branch  text NOT NULL,
    domain          text NOT NULL,
    settings        jsonb NOT NULL,
    created_at      timestamptz NOT NULL,
    deleted_at      timestamptz
);
CREATE UNIQUE INDEX repositories_name ON repositories (owner, slug) WHERE deleted_at IS NULL;

CREATE TABLE collaborators (
    repo    bigint NOT NULL REFERENCES repositories,
    handle  text COLLATE "C" NOT NULL,
    "right" smallint NOT NULL CHECK ("right" BETWEEN 1 AND 3),
    PRIMARY KEY (repo, handle)
);

CREATE TABLE pushes (
    push           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repo           bigint NOT NULL REFERENCES repositories,
    push_id        uuid NOT NULL,
    handle         text COLLATE "C" NOT NULL,
    branch         text COLLATE "C" NOT NULL,
    attempt        integer NOT NULL,
    state          smallint NOT NULL CHECK (state BETWEEN 0 AND 2),  -- open, accepted, refused
    verdict        json,  -- not jsonb: a refusal may quote what jsonb cannot hold
    lease_expires  timestamptz NOT NULL,
    created_at     timestamptz NOT NULL,
    finished_at    timestamptz,
    UNIQUE (repo, push_id)
);
CREATE INDEX pushes_open ON pushes (lease_expires) WHERE state = 0;

CREATE TABLE branches (
    repo        bigint NOT NULL REFERENCES repositories,
    name        text COLLATE "C" NOT NULL,
    head        bytea NOT NULL CHECK (length(head) = 32),
    updated_at  timestamptz NOT NULL,
    PRIMARY KEY (repo, name)
);

CREATE TABLE branch_log (
    entry    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repo     bigint NOT NULL REFERENCES repositories,
    branch   text COLLATE "C" NOT NULL,
    old      bytea,
    new      bytea,
    handle   text COLLATE "C" NOT NULL,
    push     bigint REFERENCES pushes,
    forced   boolean NOT NULL,
    at       timestamptz NOT NULL
);
CREATE INDEX branch_log_by_branch ON branch_log (repo, branch, entry);

-- Stored once for all repositories. A row says that the bytes are durable in the object store and were proved to
-- hash to the id; it gives no right to anybody.
CREATE TABLE packs (
    pack     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    pack_id  bytea NOT NULL UNIQUE CHECK (length(pack_id) = 32)
);

CREATE TABLE blobs (
    blob_id    bytea NOT NULL CHECK (length(blob_id) = 32),
    scheme     text NOT NULL CHECK (scheme IN ('typed', 'plain')),
    size       bigint NOT NULL CHECK (size >= 0),
    pack       bigint REFERENCES packs,  -- NULL: a loose object
    "offset"   bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (blob_id, scheme)
);

CREATE TABLE commits (
    commit_id    bytea NOT NULL CHECK (length(commit_id) = 32),
    scheme       text NOT NULL CHECK (scheme IN ('typed', 'plain')),
    parents      bytea[] NOT NULL,
    snapshot_id  bytea NOT NULL CHECK (length(snapshot_id) = 32),
    generation   integer NOT NULL CHECK (generation > 0),
    PRIMARY KEY (commit_id, scheme)
);

-- What a commit's id does not cover may differ between senders, so records are kept by their own hash.
CREATE TABLE commit_records (
    record_id  bytea PRIMARY KEY CHECK (length(record_id) = 32),
    record     bytea NOT NULL
);

CREATE TABLE snapshots (
    snapshot_id  bytea NOT NULL CHECK (length(snapshot_id) = 32),
    scheme       text NOT NULL CHECK (scheme IN ('typed', 'plain')),
    base_id      bytea,
    depth        smallint NOT NULL CHECK (depth >= 0),
    delta        bytea NOT NULL,
    "full"       bytea,
    PRIMARY KEY (snapshot_id, scheme)
);

-- What a repository holds. A row counts once its push is accepted; until then it is the push's own.
CREATE TABLE blob_refs (
    repo     bigint NOT NULL,
    blob_id  bytea NOT NULL,
    push     bigint NOT NULL REFERENCES pushes,
    PRIMARY KEY (repo, blob_id, push)
);

CREATE TABLE commit_refs (
    repo       bigint NOT NULL,
    commit_id  bytea NOT NULL,
    push       bigint NOT NULL REFERENCES pushes,
    record_id  bytea NOT NULL REFERENCES commit_records,
    PRIMARY KEY (repo, commit_id, push)
);

CREATE TABLE snapshot_refs (
    repo         bigint NOT NULL,
    snapshot_id  bytea NOT NULL,
    push         bigint NOT NULL REFERENCES pushes,
    extras       bytea NOT NULL,
    PRIMARY KEY (repo, snapshot_id, push)
);
