"""Read the label files of the data set into one table and a list of classes."""

import argparse
import sys
from pathlib import Path

import pandas as pd

from ffnrepro.data.labels import check_counts, read_labels
from ffnrepro.files import replacing
from ffnrepro.logs import logger, run


def main() -> int:
    """Parse the arguments, read the label files, write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", required=True, type=Path, help="folder of the label files")
    parser.add_argument(
        "--dataset", required=True, help="name of the data set, whose official numbers are checked"
    )
    parser.add_argument(
        "--partial", action="store_true", help="the labels are a part of the data set on purpose"
    )
    parser.add_argument("--classes", required=True, type=Path, help="output: index,class")
    parser.add_argument("--table", required=True, type=Path, help="output: id, split, class")
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()

    def work() -> None:
        classes, table = read_labels(arguments.labels)
        check_counts(classes, table, dataset=arguments.dataset, partial=arguments.partial)
        with replacing(arguments.classes) as temporary:
            pd.DataFrame({"index": range(len(classes)), "class": classes}).to_csv(temporary, index=False)
        with replacing(arguments.table) as temporary:
            table.to_parquet(temporary, index=False)
        counts = ", ".join(
            f"{count:,} {split}" for split, count in table["split"].value_counts(sort=False).items()
        )
        logger.info("labels: %d classes; %s", len(classes), counts)

    return run(work, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
