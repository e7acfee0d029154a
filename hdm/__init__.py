"""A home-made text-to-image model: download, filter, caption, encode, train, evaluate.

The library works from a notebook with neither Prefect nor MLflow; `flows` and `tasks` add those.
"""
