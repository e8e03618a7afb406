"""The bench behind ``make bench``: museworkd and git on the same machine, the same content, in the same run."""
