"""The index's memory twin: for deterministic simulation, held to the same behaviour suite."""
