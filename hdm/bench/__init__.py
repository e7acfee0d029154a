"""Check and measure a card without data: whether it computes what it should, and how fast."""
