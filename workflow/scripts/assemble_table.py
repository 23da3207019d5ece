"""Assemble a table from the records of its evaluations, and refuse stale ones."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from ffnrepro.files import replacing, write_json, write_text
from ffnrepro.logs import logger, run
from ffnrepro.runs import scoring_code
from ffnrepro.tables import (
    EvaluationInputs,
    assemble_table,
    check_published,
    read_published,
    read_records,
    read_rows,
    table_markdown,
)


def main() -> int:
    """Parse the arguments and assemble."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", required=True, help="its name")
    parser.add_argument("--rows", required=True, help="JSON: a list of rows (ffnrepro.tables.TableRow)")
    parser.add_argument("--dataset", required=True, help="that was evaluated")
    parser.add_argument("--split", required=True, help="that was evaluated")
    parser.add_argument("--short-side", required=True, type=int, help="pixels")
    parser.add_argument("--crop-size", required=True, type=int, help="pixels")
    parser.add_argument("--data", required=True, type=Path, help="digest of the manifest, as a file")
    parser.add_argument("--published", required=True, type=Path, help="published figures")
    parser.add_argument("--output", required=True, type=Path, help="folder of the table's files")
    parser.add_argument("--log", type=Path)
    options = vars(parser.parse_args())
    log = options.pop("log")
    return run(lambda: assemble(**options), log)


def assemble(
    *,
    table: str,
    rows: str,
    dataset: str,
    split: str,
    short_side: int,
    crop_size: int,
    data: Path,
    published: Path,
    output: Path,
) -> None:
    """Write `{table}.csv`, `{table}.md` and `{table}.json`, and log the table."""
    inputs = EvaluationInputs(
        split=split,
        short_side=short_side,
        crop_size=crop_size,
        data=data.read_text(encoding="utf-8").strip(),
        code=scoring_code(),
    )
    row_list = read_rows(rows)
    figures = read_published(published)
    check_published(row_list, figures)
    numbers = assemble_table(row_list, read_records(row_list, inputs), published=figures, dataset=dataset)
    text = table_markdown(numbers, published=figures, dataset=dataset)
    with replacing(output / f"{table}.csv") as temporary:
        numbers.to_csv(temporary, index=False)
    write_text(output / f"{table}.md", text)
    lines = json.loads(numbers.to_json(orient="records"))
    record = {
        "dataset": dataset,
        **asdict(inputs),
        "rows": [row | {"numbers": line} for row, line in zip(json.loads(rows), lines, strict=True)],
    }
    write_json(output / f"{table}.json", record)
    logger.info("%s", text)


if __name__ == "__main__":
    sys.exit(main())
