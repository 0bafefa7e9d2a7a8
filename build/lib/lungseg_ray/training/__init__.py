"""The training loop, the learner, and the protocol between loop and worker: plain PyTorch."""
