"""Check what a training needs, and try some steps of it, before it waits in a queue for a day."""

import sys
from pathlib import Path

from ffnrepro.doctor import examine, report
from ffnrepro.files import write_text
from ffnrepro.logs import logger, run
from ffnrepro.runs import read_run
from ffnrepro.training.arguments import job_of, training_parser


def main() -> int:
    """Parse the arguments, check, and write the findings."""
    parser = training_parser(__doc__)
    parser.add_argument("--steps", required=True, type=int, help="that are tried; 0: another machine trains")
    parser.add_argument("--output", required=True, type=Path, help="written: the findings")
    arguments = parser.parse_args()

    def work() -> None:
        settings, _ = read_run(arguments.run)
        findings = report(examine(job_of(arguments, seed=0), settings, steps=arguments.steps))
        logger.info("%s: a training would run:\n%s", arguments.run.name, findings)
        write_text(arguments.output, findings + "\n")

    return run(work, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
