"""Read the label files of the data set into one table and a list of classes."""

import argparse
import sys
from pathlib import Path

import pandas as pd

from ffnrepro.data.labels import check_counts, label_digests, read_labels
from ffnrepro.decides import data_decides, write_decides
from ffnrepro.files import replacing
from ffnrepro.logs import logger, run


def main() -> int:
    """Parse the arguments, read, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", required=True, type=Path, help="folder of the label files")
    parser.add_argument("--dataset", required=True, help="whose numbers of videos and classes must be met")
    parser.add_argument("--partial", action="store_true", help="the labels are meant to be a part of it")
    parser.add_argument("--classes", required=True, type=Path, help="written: index,class")
    parser.add_argument("--table", required=True, type=Path, help="written: id, split, class")
    parser.add_argument("--made", required=True, type=Path, help="written: what decided these files")
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()

    def work() -> None:
        decides = data_decides(
            Path(__file__),
            dataset=arguments.dataset,
            partial=arguments.partial,
            files=label_digests(arguments.labels),
        )
        classes, table = read_labels(arguments.labels)
        check_counts(classes, table, dataset=arguments.dataset, partial=arguments.partial)
        with replacing(arguments.classes) as temporary:
            pd.DataFrame({"index": range(len(classes)), "class": classes}).to_csv(temporary, index=False)
        with replacing(arguments.table) as temporary:
            table.to_parquet(temporary, index=False)
        write_decides(arguments.made, decides)
        counts = ", ".join(
            f"{count:,} {split}" for split, count in table["split"].value_counts(sort=False).items()
        )
        logger.info("labels: %d classes; %s", len(classes), counts)

    return run(work, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
