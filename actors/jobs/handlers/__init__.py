"""What each type of job does, a module each with ``run``; ``actors.jobs.builtin`` has the table."""
