"""`hdm lab`: many short trainings that differ in one setting each, and what can be said about these
settings.
"""
