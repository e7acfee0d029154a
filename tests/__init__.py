"""This project's tests. Without this file, a package of that name among the installed ones would
come first: torch-fidelity brings one.
"""
