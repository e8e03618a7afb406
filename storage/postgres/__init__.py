"""The index in PostgreSQL: psycopg 3, one synchronous function = one transaction = one worker-thread hop."""
