"""Write all settings that the network of a run depends on."""

import json
import sys
from pathlib import Path

import tyro

from ffnrepro.logs import run
from ffnrepro.runs import RunSettings, write_run
from ffnrepro.settings import read_settings


def main(settings: str, output: Path, log: Path | None = None) -> int:
    """Write all settings that the network of a run depends on, and the digests of its code.

    Args:
        settings: JSON of `ffnrepro.runs.RunSettings`.
        output: File to write: `settings.json` in the folder of the run.
        log: File that messages are written to.
    """
    return run(lambda: write_run(output.parent, read_settings(RunSettings, json.loads(settings))), log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
