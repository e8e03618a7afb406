"""The command line: results on stdout (``--json`` for machines), everything for people on stderr."""
