"""Plot the accuracy of a table's rows against the frame count."""

import sys
from pathlib import Path

import pandas as pd
import tyro

from ffnrepro.figures import accuracy_figure, save_figure
from ffnrepro.logs import run
from ffnrepro.tables import read_published


def main(table: Path, published: Path, dataset: str, output: Path, log: Path | None = None) -> int:
    """Plot the accuracy of a table's rows against the frame count.

    Args:
        table: A table of results, such as `results/table1.csv`.
        published: Published figures.
        dataset: Data set that was evaluated.
        output: File to write the plot to.
        log: File that messages are written to.
    """

    def work() -> None:
        figure = accuracy_figure(
            pd.read_csv(table),
            published=read_published(published),
            dataset=dataset,
        )
        save_figure(figure, output)

    return run(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
