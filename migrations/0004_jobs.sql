-- What is to be done after pushes, and on a schedule. A worker's claim on a job is a row of its own elsewhere.
--
-- At most one job of a type waits for a repository: whoever finds one waiting adds to it. So a job that has failed
-- and is to be tried again gives way to one that has come to wait meanwhile, and leaves it its payload.

CREATE TABLE jobs (
    job          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    repo         bigint NOT NULL,  -- 0: the deployment as a whole
    type         text COLLATE "C" NOT NULL,
    state        smallint NOT NULL DEFAULT 0 CHECK (state BETWEEN 0 AND 3),  -- pending, running, done, failed
    priority     smallint NOT NULL,  -- the smallest first
    payload      jsonb NOT NULL CHECK (jsonb_typeof(payload) = 'object'),
    run_at       timestamptz NOT NULL,  -- not before
    attempts     smallint NOT NULL DEFAULT 0,
    created_at   timestamptz NOT NULL,
    finished_at  timestamptz,
    result       jsonb,
    error        text
);
CREATE UNIQUE INDEX jobs_pending ON jobs (repo, type) WHERE state = 0;
CREATE INDEX jobs_claim ON jobs (priority, run_at, job) WHERE state = 0;
CREATE INDEX jobs_by_repository ON jobs (repo, job);
