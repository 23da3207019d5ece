"""Assemble a table from the records of its evaluations, and refuse stale ones."""

import json
import sys
from pathlib import Path

import tyro

from ffnrepro.files import replacing, write_json, write_text
from ffnrepro.logs import logger, run
from ffnrepro.runs import evaluation_inputs
from ffnrepro.table_text import latex, markdown, table_blocks
from ffnrepro.tables import (
    assemble_table,
    read_published,
    read_records,
    read_rows,
    read_scores,
)


def main(
    table: str,
    rows: str,
    dataset: str,
    split: str,
    short_side: int,
    crop_size: int,
    data: Path,
    published: Path,
    output: Path,
    log: Path | None = None,
) -> int:
    """Write `{table}.csv`, `{table}.md`, `{table}.tex` and `{table}.json`, and log the table.

    Args:
        table: Name of the table.
        rows: JSON: a list of rows (`ffnrepro.tables.TableRow`).
        dataset: Data set that was evaluated.
        split: Split that was evaluated.
        short_side: Short side of the resized frames in pixels.
        crop_size: Height and width of the clips in pixels.
        data: File with the digest of the manifest.
        published: Published figures.
        output: Folder of the table's files.
        log: File that messages are written to.
    """

    def work() -> None:
        inputs = evaluation_inputs(
            split=split,
            short_side=short_side,
            crop_size=crop_size,
            manifest_digest=data,
        )
        row_list = read_rows(rows)
        figures = read_published(published)
        records = read_records(row_list, inputs)
        scores = read_scores(row_list, records)
        numbers = assemble_table(row_list, records, scores, published=figures, dataset=dataset)
        blocks = table_blocks(numbers, published=figures, dataset=dataset)
        with replacing(output / f"{table}.csv") as temporary:
            numbers.to_csv(temporary, index=False)
        write_text(output / f"{table}.md", markdown(blocks))
        write_text(output / f"{table}.tex", latex(blocks))
        lines = json.loads(numbers.to_json(orient="records"))
        record = {
            "dataset": dataset,
            **inputs,
            "rows": [row | {"numbers": line} for row, line in zip(json.loads(rows), lines, strict=True)],
        }
        write_json(output / f"{table}.json", record)
        logger.info("%s", markdown(blocks))

    return run(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
