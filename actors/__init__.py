"""What runs: the actor base and the supervisor, pushes, fetches and their shared helpers.

Everything that lives longer than one call is an actor owned by the supervisor. Actors know the two storage
ports and the wire; they know nothing of HTTP, configuration files or the command line.
"""
