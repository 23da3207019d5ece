"""Write all settings that decide the network of a run."""

import argparse
import json
import sys
from pathlib import Path

from ffnrepro.logs import run
from ffnrepro.runs import RunSettings, write_run
from ffnrepro.settings import read_settings


def main() -> int:
    """Parse the arguments and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, type=json.loads, help="as JSON")
    parser.add_argument(
        "--output", required=True, type=Path, help="written: settings.json in the run's folder"
    )
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()
    return run(
        lambda: write_run(arguments.output.parent, read_settings(RunSettings, arguments.settings)),
        arguments.log,
    )


if __name__ == "__main__":
    sys.exit(main())
