"""Checking that index and object store say the same, and that every chain holds."""
