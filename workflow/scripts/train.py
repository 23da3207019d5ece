"""Train one run."""

import os
import sys
from pathlib import Path

import tyro

from ffnrepro.logs import run
from ffnrepro.runs import read_run
from ffnrepro.training.job import Job, run_job
from ffnrepro.training.launch import launch


def main(job: tyro.conf.OmitArgPrefixes[Job], log: Path | None = None) -> int:
    """Train one run: TSM at one frame count, FFN at several, or another method; in one process for each GPU.

    Args:
        job: The training.
        log: File that messages are written to.
    """

    def work() -> None:
        gpus = read_run(job.run)[0].training.gpus
        if gpus > 1 and "RANK" not in os.environ:
            sys.exit(launch(gpus, sys.argv))
        run_job(job)

    return run(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
