-- To claim by. Its condition is an expression, so that it is the only index a claim can be planned with: what statistics
-- know of jobs that wait is always late, and a claim that was planned for none of them read all there were, by
-- `jobs_pending`. A previous version that still runs claims by that one, as it did: slower, and right.
DROP INDEX jobs_claim;
CREATE INDEX jobs_ready ON jobs (type, priority, run_at, job) WHERE (state + 0) = 0 AND NOT held;

-- What a daemon holds: it gives back what it was not told it had claimed.
CREATE INDEX job_claims_worker ON job_claims (worker, job);
