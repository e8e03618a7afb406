-- Where branches have been: asked for each blob that is read by its name.
CREATE INDEX branch_log_left ON branch_log (repo, at) WHERE forced OR new IS NULL;
