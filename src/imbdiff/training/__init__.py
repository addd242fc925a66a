"""The training step, the loop, EMA and checkpoints."""
