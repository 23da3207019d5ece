"""Join labels and index: what each split trains and evaluates on, and what is excluded."""

import argparse
import sys
from pathlib import Path

import pandas as pd

from ffnrepro.data.manifest import TooManyExcluded, build_manifest
from ffnrepro.decides import data_decides, write_decides
from ffnrepro.errors import UserError
from ffnrepro.files import file_digest
from ffnrepro.logs import logger, run


def main() -> int:
    """Parse the arguments, join, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", required=True, type=Path)
    parser.add_argument("--table", required=True, type=Path, help="labels.parquet")
    parser.add_argument("--index", required=True, type=Path, nargs="+", help="shards of the index")
    parser.add_argument("--output", required=True, type=Path, help="folder that is written to")
    parser.add_argument("--max-excluded", type=float, default=1.0, help="fraction that may be unusable")
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()

    def work() -> None:
        inputs = [arguments.classes, arguments.table, *arguments.index]
        files = {str(path): file_digest(path) for path in inputs}
        decides = data_decides(Path(__file__), max_excluded=arguments.max_excluded, files=files)
        # As text: a class may be called "None" or "007".
        classes = pd.read_csv(arguments.classes, dtype="str", keep_default_na=False)["class"].tolist()
        index = pd.concat([pd.read_parquet(part) for part in arguments.index], ignore_index=True)
        labels = pd.read_parquet(arguments.table)
        try:
            manifest = build_manifest(classes, labels, index, max_excluded=arguments.max_excluded)
        except TooManyExcluded as error:
            if arguments.log is None:
                raise
            # Beside the log: Snakemake deletes the outputs of a job that fails.
            listing = arguments.log.with_name("excluded.csv")
            error.excluded.to_csv(listing, index=False, lineterminator="\n")
            raise UserError(f"{error} (all are listed in {listing})") from error
        manifest.save(arguments.output)
        write_decides(arguments.output / "made.json", decides)
        counts = ", ".join(f"{len(rows):,} {split}" for split, rows in manifest.splits.items())
        logger.info("manifest: %s; %d excluded", counts, len(manifest.excluded))

    return run(work, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
