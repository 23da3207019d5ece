"""Draw the accuracy of a table's rows against the frame count."""

import argparse
import sys
from pathlib import Path

import pandas as pd

from ffnrepro.figures import accuracy_figure, save_figure
from ffnrepro.logs import run
from ffnrepro.tables import read_published


def main() -> int:
    """Parse the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", required=True, type=Path, help="results/TABLE.csv")
    parser.add_argument("--published", required=True, type=Path, help="published figures")
    parser.add_argument("--dataset", required=True, help="that was evaluated")
    parser.add_argument("--output", required=True, type=Path, help="the picture to write")
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()

    def work() -> None:
        figure = accuracy_figure(
            pd.read_csv(arguments.table),
            published=read_published(arguments.published),
            dataset=arguments.dataset,
        )
        save_figure(figure, arguments.output)

    return run(work, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
