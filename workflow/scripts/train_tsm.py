"""Train vanilla TSM at one frame count."""

import sys
from pathlib import Path

from ffnrepro.experiment import parse_arguments, run_experiment
from ffnrepro.logs import run


def main() -> int:
    """Parse the arguments and train."""
    arguments = parse_arguments(__doc__ or "")
    return run(lambda: run_experiment(arguments, Path(__file__)), arguments.log)


if __name__ == "__main__":
    sys.exit(main())
