"""What a process that trains on the CPU alone should find in its environment when it starts: libraries read it only then."""

from __future__ import annotations

TRAINING_ENVIRONMENT = {
    # Threads wait for the next operation without sleeping: a step is hundreds of operations of under a millisecond.
    "OMP_WAIT_POLICY": "active",
    # Freed activations stay with the process. By default glibc gives large blocks back at once and gets them anew, zeroed page by
    # page, in the next operation: 5 to 20 % of a step.
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
}
