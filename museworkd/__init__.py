"""The daemon around the actors: configuration, HTTP, command line, client, telemetry."""
