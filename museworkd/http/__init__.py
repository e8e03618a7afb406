"""HTTP: a guarded server, the narrow seam of the byte routes, and the control plane on quart-trio."""
