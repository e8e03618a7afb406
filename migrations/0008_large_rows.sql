-- A snapshot of hundreds of thousands of files is one row of tens of megabytes. Compressing it took most of the time the
-- transaction held its connection, and saves little: half of it are digests. Rows that are there stay as they are.
ALTER TABLE snapshots ALTER COLUMN delta SET STORAGE EXTERNAL, ALTER COLUMN "full" SET STORAGE EXTERNAL;
