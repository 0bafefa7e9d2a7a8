"""The folder of a run: settings, progress, checkpoints, lease, curves, TensorBoard."""
