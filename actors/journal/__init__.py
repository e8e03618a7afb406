"""What was decided, written out into the object store; and whether store and database belong together."""
