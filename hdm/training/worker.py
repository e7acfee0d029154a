"""One training process: `python -m hdm.training.worker JOB.json`, alone or as a rank of torchrun.

Ends with 0 (done), 75 (stopped by a signal) or the exit code of its error, and writes which to
`outcome-RANK.json`.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path

from hdm.errors import HdmError, SavedOnSignal
from hdm.files import explain_os_error
from hdm.messages import guard_output
from hdm.store import locked
from hdm.training.process import guard
from hdm.training.process.job import DONE, ERROR, PEER_LOST, SAVED, STOPPED, Job, write_outcome

PEER_MESSAGES = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


def main(path: Path) -> int:
    # The watch starts before anything slow, so that a killed flow leaves no training behind.
    guard.end_with_parent()
    stop = guard.StopRequest()
    stop.listen()
    guard_output()
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
    job = Job.read(path)
    rank = int(os.environ.get("RANK", "0"))
    scratch = Path(job.scratch)
    # The flow finds ranks by these files, since torchrun gives each a session of its own.
    (scratch / f"rank-{rank}.pid").write_text(str(os.getpid()))
    try:
        # As long as one rank lives, no second trainer can start: the lock dies with the process.
        with locked(job.lock, "this training phase", shared=True):
            # Imported late: the guard has to stand before the seconds that torch takes.
            from hdm.training.trainer import train

            state = DONE if train(job, stop) else SAVED
    except guard.Stopped:
        state = SAVED if stop.saved else STOPPED
    except Exception as error:
        cause: Exception = error
        if isinstance(error, OSError) and not isinstance(error, ConnectionError):
            # A full disk or missing permission gets its own message. A ConnectionError means a lost
            # peer.
            cause = explain_os_error(error, scratch)
        if isinstance(cause, HdmError):
            write_outcome(scratch, rank, ERROR, cause)
            return cause.exit_code
        lost = job.settings.train.num_processes > 1 and _lost_a_peer(error)
        write_outcome(scratch, rank, PEER_LOST if lost else ERROR, _unexpected(error, job))
        raise  # with its traceback into the log
    # From here on, a signal would only prevent the outcome from being written.
    stop.ignore()
    write_outcome(scratch, rank, state)
    return 0 if state == DONE else SavedOnSignal.exit_code


def _lost_a_peer(error: Exception) -> bool:
    """Whether this process fails only because another one is gone: gloo raises plain RuntimeErrors
    then.
    """
    from torch.distributed import DistError

    return isinstance(error, DistError) or (
        isinstance(error, RuntimeError) and any(part in str(error) for part in PEER_MESSAGES)
    )


def _unexpected(error: Exception, job: Job) -> HdmError:
    """An exception that nobody foresaw, as the flow's process shows it."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return HdmError(
        f"training failed: {type(error).__name__}: {error}",
        where=f"{place.filename}:{place.lineno}",
        do=f"the traceback is at the end of {job.log}",
    )


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
