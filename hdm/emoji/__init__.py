"""Noto Emoji by name: which pictures a model is trained on, and which names it is asked for that no
training picture bears.
"""
