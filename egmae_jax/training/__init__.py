"""The training loop, the steps of the two stages, the optimizer and the checkpoints."""
