"""Train vanilla TSM at one frame count."""

import sys
from pathlib import Path

from ffnrepro.logs import run
from ffnrepro.training.job import run_experiment, training_parser


def main() -> int:
    """Parse the arguments and train."""
    arguments = training_parser(__doc__ or "").parse_args()
    return run(lambda: run_experiment(arguments, Path(__file__)), arguments.log)


if __name__ == "__main__":
    sys.exit(main())
