-- Who works on which job, and what operators and the clock have to say about jobs. A claim is a row of its own, so that
-- whoever ends a job has to delete it by its token, and who finds it gone has nothing to end.
--
-- Until now jobs only waited: the table is small, and what is rebuilt here is done at once. A previous version that
-- still runs goes on enqueueing; it needs `jobs_pending` as it is.

ALTER TABLE jobs
    ADD COLUMN held boolean NOT NULL DEFAULT false,
    ADD COLUMN kept json,  -- what a later attempt goes on from
    ADD COLUMN completed_by uuid,  -- the token of the claim that did it: told again to who lost the answer
    ALTER COLUMN result TYPE json,  -- not jsonb: it may quote what jsonb cannot hold
    DROP CONSTRAINT jobs_state_check,
    ADD CONSTRAINT jobs_state_check CHECK (state BETWEEN 0 AND 4);  -- pending, running, done, failed, cancelled

CREATE UNIQUE INDEX jobs_running ON jobs (repo, type) WHERE state = 1;
DROP INDEX jobs_claim;
CREATE INDEX jobs_claim ON jobs (type, priority, run_at, job) WHERE state = 0 AND NOT held;
CREATE INDEX jobs_ended ON jobs (finished_at, job) WHERE state >= 2;
-- To list by. An expression, so that nothing else is planned with it: who looks for what waits of a type for a repository
-- would find all that wait of the type, where statistics know of few.
CREATE INDEX jobs_by_type ON jobs (type, (state::int), job);

CREATE TABLE job_claims (
    job           bigint PRIMARY KEY,
    token         uuid NOT NULL,
    worker        text NOT NULL,
    claimed_at    timestamptz NOT NULL,
    heartbeat_at  timestamptz NOT NULL,
    progress      json
);
CREATE INDEX job_claims_heartbeat ON job_claims (heartbeat_at, job);

CREATE TABLE job_types (
    type    text COLLATE "C" PRIMARY KEY,
    paused  boolean NOT NULL
);

CREATE TABLE cron (
    name      text COLLATE "C" PRIMARY KEY,
    type      text COLLATE "C" NOT NULL,
    every_s   double precision NOT NULL CHECK (every_s > 0),
    priority  smallint NOT NULL,
    payload   jsonb NOT NULL CHECK (jsonb_typeof(payload) = 'object'),
    next_at   timestamptz NOT NULL
);

-- Rows change often beside a long history: what is dead is cleared away by its own number, not by a part of the whole.
ALTER TABLE jobs SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
ALTER TABLE job_claims SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
