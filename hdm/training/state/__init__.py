"""What a training's state is: weights, optimizers, averages and the clock, and their checkpoints."""
