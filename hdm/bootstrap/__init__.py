"""Small components from a person's own captioned pictures, so that a home without any hub has the
whole pipeline.
"""
