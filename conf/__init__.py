"""Annotated configuration and service units; read with ``importlib.resources``."""
