"""A push: one actor with a pipeline of stages, and the one finish that all ways of pushing share."""
