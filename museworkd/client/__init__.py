"""A Muse client in its own right: for people, for tests and for the bench."""
