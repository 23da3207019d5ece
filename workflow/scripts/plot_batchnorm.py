"""Plot the BatchNorm statistics of a network's fourth stage by frame count, and write them to a table."""

import sys
from pathlib import Path

import tyro

from ffnrepro.batchnorm import batchnorm_statistics
from ffnrepro.figures import batchnorm_figure, save_figure
from ffnrepro.files import replacing
from ffnrepro.logs import run
from ffnrepro.weights import load_checkpoint


def main(model: Path, csv: Path, figure: Path, log: Path | None = None) -> int:
    """Plot the BatchNorm statistics of a network's fourth stage by frame count, and write them to a table.

    Args:
        model: The network: a checkpoint of ours or of the authors.
        csv: File to write the numbers to.
        figure: File to write the plot to.
        log: File that messages are written to.
    """

    def work() -> None:
        statistics = batchnorm_statistics(load_checkpoint(model))
        with replacing(csv) as temporary:
            statistics.to_csv(temporary, index=False)
        save_figure(batchnorm_figure(statistics), figure)

    return run(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
