"""A flow's process in little: train the phase that a file describes, and end with the error's exit
code.

python tests/training/run_phase.py DESCRIPTION.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from hdm.config import Pipeline
from hdm.errors import HdmError
from hdm.store import Store, read_output
from hdm.training import phase

if __name__ == "__main__":
    told = json.loads(Path(sys.argv[1]).read_bytes())
    pipeline, store = Pipeline.model_validate(told["pipeline"]), Store(Path(told["store"]))
    inputs = {name: read_output(Path(folder)) for name, folder in told["inputs"].items()}
    identity = phase.identify(pipeline, {name: output.digest for name, output in inputs.items()}, 0)
    try:
        phase.make(pipeline, identity, inputs, store, 0)
    except HdmError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
