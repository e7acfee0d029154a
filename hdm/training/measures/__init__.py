"""What is measured of a training: losses, speed, memory, and the pictures that are generated."""
