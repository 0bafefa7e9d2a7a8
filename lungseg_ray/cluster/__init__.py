"""The Ray cluster of a job: its connection, its CPUs, GPUs and memory, and work that runs on it in chunks."""
