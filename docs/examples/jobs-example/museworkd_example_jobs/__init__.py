"""Types of jobs for museworkd, as an example. See ``docs/how-to/write-a-job.md``."""
