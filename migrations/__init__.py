"""Numbered SQL, forward only, each safe while the previous version still runs. Applied by ``storage.migrate``."""
