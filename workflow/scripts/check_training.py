"""Look at what a training needs, and try some steps of it, before it is queued for a day."""

import sys

from ffnrepro.doctor import examine, tell
from ffnrepro.files import write_text
from ffnrepro.logs import logger, run
from ffnrepro.training.job import training_parser


def main() -> int:
    """Parse the arguments, look, and write what was found where the training would run."""
    parser = training_parser(__doc__ or "")
    parser.add_argument(
        "--steps", required=True, type=int, help="that are tried; 0: the training runs on another machine"
    )
    arguments = parser.parse_args()

    def work() -> None:
        report = tell(examine(arguments, steps=arguments.steps))
        logger.info("%s: a training would run:\n%s", arguments.name, report)
        write_text(arguments.output, report + "\n")

    return run(work, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
