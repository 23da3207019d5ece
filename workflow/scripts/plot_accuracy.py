"""Draw accuracy against frame count."""

import argparse
import sys
from pathlib import Path

import pandas as pd

from ffnrepro.figures import plot_accuracy
from ffnrepro.logs import run
from ffnrepro.tables import read_published


def main() -> int:
    """Parse the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", required=True, type=Path, help="table1.csv")
    parser.add_argument("--published", required=True, type=Path, help="published figures")
    parser.add_argument("--dataset", required=True, help="that was evaluated")
    parser.add_argument("--output", required=True, type=Path, help="written")
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()
    return run(
        lambda: plot_accuracy(
            pd.read_csv(arguments.table),
            published=read_published(arguments.published),
            dataset=arguments.dataset,
            path=arguments.output,
        ),
        arguments.log,
    )


if __name__ == "__main__":
    sys.exit(main())
