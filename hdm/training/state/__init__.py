"""The state of a training: weights, optimizers, averages and the clock, and their checkpoints."""
