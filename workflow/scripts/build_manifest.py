"""Join labels and index into the manifest: the videos of each split, and the excluded ones."""

import argparse
import sys
from pathlib import Path

import pandas as pd

from ffnrepro.data.manifest import TooManyExcluded, build_manifest
from ffnrepro.errors import UserError
from ffnrepro.logs import logger, run


def main() -> int:
    """Parse the arguments, join the tables, write the manifest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", required=True, type=Path, help="classes.csv")
    parser.add_argument("--table", required=True, type=Path, help="labels.parquet")
    parser.add_argument("--index", required=True, type=Path, nargs="+", help="shards of the index")
    parser.add_argument("--output", required=True, type=Path, help="folder of the manifest")
    parser.add_argument(
        "--max-excluded",
        required=True,
        type=float,
        help="fraction of the labelled videos that may be unusable",
    )
    parser.add_argument("--log", required=True, type=Path)
    arguments = parser.parse_args()

    def work() -> None:
        # Read as text, because a class may be called "None" or "007".
        classes = pd.read_csv(arguments.classes, dtype="str", keep_default_na=False)["class"].tolist()
        index = pd.concat([pd.read_parquet(part) for part in arguments.index], ignore_index=True)
        labels = pd.read_parquet(arguments.table)
        try:
            manifest = build_manifest(classes, labels, index, max_excluded=arguments.max_excluded)
        except TooManyExcluded as error:
            # The list is written beside the log, because Snakemake deletes the outputs of a job that fails.
            excluded = arguments.log.with_name("excluded.csv")
            error.excluded.to_csv(excluded, index=False, lineterminator="\n")
            raise UserError(f"{error} (all are listed in {excluded})") from error
        manifest.save(arguments.output)
        counts = ", ".join(f"{len(rows):,} {split}" for split, rows in manifest.splits.items())
        logger.info("manifest: %s; %d excluded", counts, len(manifest.excluded))

    return run(work, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
