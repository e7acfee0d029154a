"""One training process: `python -m hdm.training.worker JOB.json`, alone or as a rank of torchrun.

Ends with 0 (done), 75 (saved on a signal) or the exit code of its error, and says which in `outcome-RANK.json`.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from hdm.errors import HdmError, SavedOnSignal
from hdm.files import explain_os_error
from hdm.store import locked
from hdm.training import guard
from hdm.training.job import Job, write_outcome


def main(path: Path) -> int:
    guard.end_with_parent()
    stop = guard.StopRequest()
    stop.listen()
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    job, rank = Job.read(path), int(os.environ.get("RANK", "0"))
    scratch = Path(job.scratch)
    (scratch / f"rank-{rank}.pid").write_text(str(os.getpid()))
    try:
        # As long as one rank lives, no second trainer can start: the lock dies with the process.
        with locked(job.lock, "this training phase", shared=True):
            # Imported late: the guard has to stand before the seconds that torch takes.
            from hdm.training.trainer import train

            finished = train(job, stop)
    except guard.Stopped:
        finished = False
    except (HdmError, OSError) as error:
        explained = explain_os_error(error, scratch) if isinstance(error, OSError) else error
        if not isinstance(explained, HdmError):
            raise
        write_outcome(scratch, rank, "error", explained)
        return explained.exit_code
    write_outcome(scratch, rank, "done" if finished else "saved")
    return 0 if finished else SavedOnSignal.exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
