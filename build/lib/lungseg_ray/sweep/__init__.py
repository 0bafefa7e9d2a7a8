"""Sweeps: the search over encoders, architectures and learning rates."""
