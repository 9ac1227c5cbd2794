"""One run: the loop, its state, checkpoints and devices."""
