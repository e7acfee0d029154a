"""Run a pipeline's stages without Prefect: `run_stages.py STORE PIPELINE [stage.field=value …]`."""

import sys
from pathlib import Path

from hdm.errors import HdmError
from hdm.pipelines import load_pipeline
from hdm.stages import run
from hdm.store import Store


def main() -> int:
    store, name, *overrides = sys.argv[1:]
    try:
        for made in run(load_pipeline(name, overrides), Store(Path(store))):
            print(
                made.output.name,
                made.output.digest,
                "up to date" if made.cached else "made",
                flush=True,
            )
    except HdmError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
