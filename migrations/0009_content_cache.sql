-- Contents of small pushes that are answered from the index until a job has put them into the object store. The row of
-- a blob says `pending` for just as long as its content is here; then it is in the store, and nowhere else before.

ALTER TABLE blobs ADD COLUMN pending boolean NOT NULL DEFAULT false;

CREATE TABLE content_cache (
    blob_id  bytea NOT NULL,
    scheme   text NOT NULL,
    entry    bigint GENERATED ALWAYS AS IDENTITY,  -- what is cached again after it was collected is another entry
    content  bytea NOT NULL,
    PRIMARY KEY (blob_id, scheme),
    FOREIGN KEY (blob_id, scheme) REFERENCES blobs ON DELETE CASCADE
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
CREATE UNIQUE INDEX content_cache_entry ON content_cache (entry);
ALTER TABLE content_cache ALTER COLUMN content SET STORAGE EXTERNAL;  -- written once, read a few times, and gone
