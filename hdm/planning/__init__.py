"""What a pipeline takes before it is run: items, bytes, work, hours, money, electricity, memory.
Counts and a few stated figures.
"""
