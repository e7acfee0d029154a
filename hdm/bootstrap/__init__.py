"""Train small components from a person's own captioned pictures, so that the whole pipeline works
without a model hub.
"""
