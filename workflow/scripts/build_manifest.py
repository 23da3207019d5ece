"""Join labels and index into the manifest: the videos of each split, and the excluded ones."""

import sys
from pathlib import Path

import pandas as pd
import tyro

from ffnrepro.data.labels import read_classes
from ffnrepro.data.manifest import TooManyExcluded, build_manifest
from ffnrepro.errors import UserError
from ffnrepro.logs import logger, run


def main(classes: Path, table: Path, index: list[Path], output: Path, max_excluded: float, log: Path) -> int:
    """Join labels and index into the manifest.

    Args:
        classes: The file `classes.csv`.
        table: The file `labels.parquet`.
        index: Shards of the index.
        output: Folder of the manifest.
        max_excluded: Fraction of the labelled videos that may be unusable.
        log: File that messages are written to; if too many videos are excluded, their list is written to the same folder.
    """

    def work() -> None:
        names = read_classes(classes)
        rows = pd.concat([pd.read_parquet(part) for part in index], ignore_index=True)
        labels = pd.read_parquet(table)
        try:
            manifest = build_manifest(names, labels, rows, max_excluded=max_excluded)
        except TooManyExcluded as error:
            # The list is written next to the log, because Snakemake deletes the outputs of a job that fails.
            excluded = log.with_name("excluded.csv")
            error.excluded.to_csv(excluded, index=False, lineterminator="\n")
            raise UserError(f"{error} (all are listed in {excluded})") from error
        manifest.save(output)
        counts = ", ".join(f"{len(videos):,} {split}" for split, videos in manifest.splits.items())
        logger.info("manifest: %s; %d excluded", counts, len(manifest.excluded))

    return run(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
