"""The Ray cluster: which one, how its CPUs and GPUs are shared, and work done on it in chunks."""
