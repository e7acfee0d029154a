"""Parts: the unit of work, of retry and of distribution.

A `Step` divides its work into parts and makes one part. `make` is the one driver: it makes the
missing parts, in this process, in a pool or on a Dask cluster, and finishes the outputs when all
parts exist.

The process that makes a file also writes it into its output's journal, so that no part is made
twice. The process that called `make` writes the manifest last.
"""

from hdm.parts.driver import drafts_of, make, make_output
from hdm.parts.step import Files, Folders, Part, Step

__all__ = ["Files", "Folders", "Part", "Step", "drafts_of", "make", "make_output"]
