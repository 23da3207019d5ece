"""Check what a training needs, and try some steps of it, before it waits in a queue for a day."""

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
        steps: Steps that are tried; 0: another machine trains.
        output: Written: the findings.
        log: File that messages are written to.
    """

    def work() -> None:
        findings = examine(job, read_run(job.run)[0], steps=steps)
        logger.info("%s: a training would run:\n%s", job.run.name, findings)
        write_text(output, findings + "\n")

    return run(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
