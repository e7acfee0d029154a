"""The loop of every training: of a denoiser, of an autoencoder, of bootstrapped components."""

from __future__ import annotations

from typing import Protocol


class Course(Protocol):
    """A training as the loop sees it. If several processes train together, each runs the loop."""

    @property
    def is_done(self) -> bool:
        """Whether the last step has been made."""
        ...

    def serve(self) -> bool:
        """Save if it is time to; whether training stops here, on a signal and saved."""
        ...

    def report(self) -> bool:
        """Write what is due after the last step; False if a signal cut it short, and it is due
        again.
        """
        ...

    def step(self) -> None:
        """Make one step."""
        ...

    def save(self) -> None:
        """Save where training stands; it is on disk afterwards."""
        ...

    def close(self) -> None:
        """End threads, also after an error."""
        ...


def run_course(course: Course) -> bool:
    """Train to the end, or to a signal; True if it is done. Either way what was done is saved.

    A checkpoint is taken before what is due after its step is written, so it holds what is due.
    """
    try:
        while not course.serve():
            if not course.report():
                continue
            if course.is_done:
                course.save()
                return True
            course.step()
        return False
    finally:
        # Threads end after an error too, or the process would wait for them.
        course.close()
