"""Check what a training needs and try some steps of it, before it waits in a queue."""

import sys
from pathlib import Path

import tyro

from ffnrepro.doctor import examine
from ffnrepro.files import write_text
from ffnrepro.logs import logger, run
from ffnrepro.runs import read_run
from ffnrepro.training.job import Job


def main(job: tyro.conf.OmitArgPrefixes[Job], steps: int, output: Path, log: Path | None = None) -> int:
    """Check what a training needs, and try some steps of it.

    Args:
        job: The training.
        steps: Number of steps to try; 0: none, because another machine trains.
        output: File to write the report to.
        log: File that messages are written to.
    """

    def work() -> None:
        report = examine(job, read_run(job.run)[0], steps=steps)
        logger.info("%s: this training would run:\n%s", job.run.name, report)
        write_text(output, report + "\n")

    return run(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
