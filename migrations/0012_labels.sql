-- Tags and releases, as clients of version 0.1 write them: the whole record, in canonical form.

CREATE TABLE tags (
    repo       bigint NOT NULL,
    tag        text COLLATE "C" NOT NULL,
    commit_id  bytea NOT NULL CHECK (length(commit_id) = 32),
    record     bytea NOT NULL,
    PRIMARY KEY (repo, tag)
);

CREATE TABLE releases (
    repo         bigint NOT NULL,
    release      text COLLATE "C" NOT NULL,
    record       bytea NOT NULL,
    created_at   timestamptz NOT NULL,
    retracted_at timestamptz,
    PRIMARY KEY (repo, release)
);
