"""Read the label files of the data set into one table and a list of classes."""

import sys
from pathlib import Path

import pandas as pd
import tyro

from ffnrepro.data.labels import check_counts, read_labels
from ffnrepro.files import replacing
from ffnrepro.logs import logger, run


def main(
    labels: Path, dataset: str, classes: Path, table: Path, partial: bool = False, log: Path | None = None
) -> int:
    """Read the label files of the data set into one table and a list of classes.

    Args:
        labels: Folder of the label files.
        dataset: Name of the data set, whose official numbers are checked.
        classes: File to write the classes to, with the columns `index,class`.
        table: File to write the labels to, with the columns `id`, `split` and `class`.
        partial: The labels are deliberately only a part of the data set.
        log: File that messages are written to.
    """

    def work() -> None:
        # `check_training` refuses a training without training videos.
        names, rows = read_labels(labels, trained=False)
        check_counts(names, rows, dataset=dataset, partial=partial, trained=False)
        with replacing(classes) as temporary:
            pd.DataFrame({"index": range(len(names)), "class": names}).to_csv(temporary, index=False)
        with replacing(table) as temporary:
            rows.to_parquet(temporary, index=False)
        counts = ", ".join(
            f"{count:,} {split}" for split, count in rows["split"].value_counts(sort=False).items()
        )
        logger.info("labels: %d classes; %s", len(names), counts)

    return run(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
