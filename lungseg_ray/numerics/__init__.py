"""Losses, metrics and optimisers: plain PyTorch and NumPy."""
