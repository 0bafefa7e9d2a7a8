"""Losses, metrics and optimisers in plain PyTorch and NumPy, independent of Ray."""
