"""Captions as text: cleaning them, finding those that mention sides, and reading their tags."""
