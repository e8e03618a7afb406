-- What was decided, on its way into the object store, which is the truth. A trigger notes each fact in the transaction
-- that decides it, whoever does, an earlier version that still runs included; so nothing is decided that is not
-- written out, and no statement is added to any transaction. Numbers of entries about one row are in the order of the
-- decisions, for whoever changes a row holds it.

CREATE TABLE journal_outbox (
    entry  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind   text COLLATE "C" NOT NULL,
    gone   boolean NOT NULL,
    fact   json NOT NULL  -- not jsonb: a verdict may quote what jsonb cannot hold
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Which deployment this is, and how far its journal in the store reaches.
CREATE TABLE deployment (
    one         boolean PRIMARY KEY DEFAULT true CHECK (one),
    deployment  uuid NOT NULL,
    generation  bigint NOT NULL,
    state       smallint NOT NULL CHECK (state BETWEEN 0 AND 2),  -- not announced, in use, being rebuilt
    journalled  bigint NOT NULL DEFAULT 0,
    segment     text  -- the key of what was written last
);

ALTER TABLE pushes ADD COLUMN record_pack bytea;  -- where its commits and snapshots are in canonical form

CREATE FUNCTION journal_fact() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        INSERT INTO journal_outbox (kind, gone, fact) VALUES (TG_ARGV[0], true, to_json(OLD));
    ELSE
        INSERT INTO journal_outbox (kind, gone, fact) VALUES (TG_ARGV[0], false, to_json(NEW));
    END IF;
    RETURN NULL;
END $$;

-- References that were taken from a repository, 1,000 an entry; those of pushes that were not accepted were no fact.
CREATE FUNCTION journal_swept() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'INSERT INTO journal_outbox (kind, gone, fact)
         SELECT ''swept'', true, json_build_object(''repo'', repo, ''of'', %1$L, ''ids'', json_agg(encode(id, ''hex'')))
         FROM (SELECT repo, id, (row_number() OVER (PARTITION BY repo ORDER BY id) - 1) / 1000 AS part
               FROM (SELECT DISTINCT g.repo, g.%2$I AS id FROM gone g JOIN pushes p USING (push) WHERE p.state = 1) AS d
              ) AS n
         GROUP BY repo, part', TG_TABLE_NAME, TG_ARGV[0]);
    RETURN NULL;
END $$;

CREATE TRIGGER journal_identities AFTER INSERT ON identities
    FOR EACH ROW EXECUTE FUNCTION journal_fact('identity');
CREATE TRIGGER journal_tokens AFTER INSERT OR UPDATE ON tokens
    FOR EACH ROW EXECUTE FUNCTION journal_fact('token');
CREATE TRIGGER journal_new_repositories AFTER INSERT ON repositories
    FOR EACH ROW EXECUTE FUNCTION journal_fact('repository');
CREATE TRIGGER journal_repositories
    AFTER UPDATE OF owner, slug, visibility, scheme, default_branch, domain, settings, deleted_at ON repositories
    FOR EACH ROW EXECUTE FUNCTION journal_fact('repository');
CREATE TRIGGER journal_collaborators AFTER INSERT OR UPDATE OR DELETE ON collaborators
    FOR EACH ROW EXECUTE FUNCTION journal_fact('collaborator');
CREATE TRIGGER journal_pushes AFTER UPDATE OF state, record_pack ON pushes
    FOR EACH ROW WHEN (NEW.state <> 0 AND (NEW.state <> OLD.state OR NEW.record_pack IS DISTINCT FROM OLD.record_pack))
    EXECUTE FUNCTION journal_fact('push');
CREATE TRIGGER journal_branch_log AFTER INSERT ON branch_log
    FOR EACH ROW EXECUTE FUNCTION journal_fact('branch');
CREATE TRIGGER journal_tags AFTER INSERT OR UPDATE OR DELETE ON tags
    FOR EACH ROW EXECUTE FUNCTION journal_fact('tag');
CREATE TRIGGER journal_releases AFTER INSERT OR UPDATE OR DELETE ON releases
    FOR EACH ROW EXECUTE FUNCTION journal_fact('release');
CREATE TRIGGER journal_new_quotas AFTER INSERT ON owner_quotas
    FOR EACH ROW WHEN (NEW.quota_bytes IS NOT NULL) EXECUTE FUNCTION journal_fact('quota');
CREATE TRIGGER journal_quotas AFTER UPDATE ON owner_quotas
    FOR EACH ROW WHEN (NEW.quota_bytes IS DISTINCT FROM OLD.quota_bytes) EXECUTE FUNCTION journal_fact('quota');
CREATE TRIGGER journal_usage AFTER INSERT OR UPDATE OR DELETE ON repository_usage
    FOR EACH ROW EXECUTE FUNCTION journal_fact('usage');
CREATE TRIGGER journal_blob_refs AFTER DELETE ON blob_refs REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION journal_swept('blob_id');
CREATE TRIGGER journal_commit_refs AFTER DELETE ON commit_refs REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION journal_swept('commit_id');
CREATE TRIGGER journal_snapshot_refs AFTER DELETE ON snapshot_refs REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION journal_swept('snapshot_id');

-- What was decided before there was a journal.
INSERT INTO journal_outbox (kind, gone, fact) SELECT 'identity', false, to_json(t) FROM identities t ORDER BY handle;
INSERT INTO journal_outbox (kind, gone, fact) SELECT 'token', false, to_json(t) FROM tokens t ORDER BY created_at;
INSERT INTO journal_outbox (kind, gone, fact) SELECT 'repository', false, to_json(t) FROM repositories t ORDER BY repo;
INSERT INTO journal_outbox (kind, gone, fact) SELECT 'collaborator', false, to_json(t) FROM collaborators t;
INSERT INTO journal_outbox (kind, gone, fact)
    SELECT 'push', false, to_json(t) FROM pushes t WHERE state <> 0 ORDER BY finished_at, push;
INSERT INTO journal_outbox (kind, gone, fact) SELECT 'branch', false, to_json(t) FROM branch_log t ORDER BY entry;
INSERT INTO journal_outbox (kind, gone, fact) SELECT 'tag', false, to_json(t) FROM tags t;
INSERT INTO journal_outbox (kind, gone, fact) SELECT 'release', false, to_json(t) FROM releases t;
INSERT INTO journal_outbox (kind, gone, fact)
    SELECT 'quota', false, to_json(t) FROM owner_quotas t WHERE quota_bytes IS NOT NULL;
INSERT INTO journal_outbox (kind, gone, fact) SELECT 'usage', false, to_json(t) FROM repository_usage t;
