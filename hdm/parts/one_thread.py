"""The number of torch's threads in processes that make parts."""

from __future__ import annotations

import os
import sys


def compute_with_one_thread() -> None:
    """Use one thread, as stages do in the parent process: the number of threads changes how sums
    are rounded.

    Importing torch takes 2 s, and many steps do not need it. If it is imported later, it reads the
    variable.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)
