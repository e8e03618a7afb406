"""Object stores: filesystem and memory, and the wrappers every backend is dressed in."""
