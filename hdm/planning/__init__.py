"""Estimate the cost of a pipeline before it runs: items, bytes, work, hours, money, electricity and
memory, by counting and a few stated figures.
"""
