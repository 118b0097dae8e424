"""Local training: the loop, its optimizers, and what a strategy adds to it."""
