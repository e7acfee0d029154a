"""The process of a training: its start, its job, and its end."""
