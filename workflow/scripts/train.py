"""Train one run: TSM at one frame count, FFN at several, or another method."""

import os
import sys

from ffnrepro.logs import run
from ffnrepro.runs import read_run
from ffnrepro.training.arguments import job_of, training_parser
from ffnrepro.training.job import run_job
from ffnrepro.training.launch import launch


def main() -> int:
    """Parse the arguments and train, in a process for each GPU."""
    parser = training_parser(__doc__)
    parser.add_argument("--seed", required=True, type=int)
    arguments = parser.parse_args()

    def work() -> None:
        gpus = read_run(arguments.run)[0].training.gpus
        if gpus > 1 and "RANK" not in os.environ:
            sys.exit(launch(gpus, sys.argv))
        run_job(job_of(arguments, arguments.seed))

    return run(work, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
