"""The Ray cluster of a job: its connection, the division of its CPUs and GPUs, and work that runs on it in chunks."""
