"""What runs the process of a training: how it starts, what it is told, and how it ends."""
