-- What background work has found out about repositories and about the store. Nothing here is the truth: any of it may
-- be thrown away and is found out again.

-- One line of history, a branch, as one type of job knows it. Whoever works on it raises the epoch, and what names an
-- older one does nothing. While target is set, it is being brought there by several transactions.
CREATE TABLE insight_lines (
    line         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repo         bigint NOT NULL,
    type         text COLLATE "C" NOT NULL,
    branch       text COLLATE "C" NOT NULL,
    epoch        bigint NOT NULL,
    commit_id    bytea CHECK (length(commit_id) = 32),  -- what it is up to date with
    target       bytea CHECK (length(target) = 32),
    done_path    bytea,  -- of the target: up to here, in order of paths
    state        bytea,  -- what the next job goes on from
    report       json,   -- not jsonb: paths and names as they are
    updated_at   timestamptz NOT NULL,
    UNIQUE (repo, type, branch)
);

-- The last commit that changed a file. A path may be longer than a key, so its SHA-256 stands for it.
CREATE TABLE file_last_commits (
    line       bigint NOT NULL,
    path_hash  bytea NOT NULL CHECK (length(path_hash) = 32),
    commit_id  bytea NOT NULL CHECK (length(commit_id) = 32),
    PRIMARY KEY (line, path_hash)
);

-- Damage that a scrub has met. It stays until a later scrub finds the key sound or gone.
CREATE TABLE scrub_findings (
    key        text COLLATE "C" NOT NULL,
    object     bytea NOT NULL,  -- empty: the file as a whole
    problem    text NOT NULL,
    detail     text NOT NULL,
    found_at   timestamptz NOT NULL,
    seen_at    timestamptz NOT NULL,
    PRIMARY KEY (key, object)
);
