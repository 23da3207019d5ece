"""Assemble Table 1 from the summaries of the evaluations."""

import argparse
import json
import sys
from pathlib import Path

from ffnrepro.files import replacing, write_json, write_text
from ffnrepro.logs import logger, run
from ffnrepro.table import assemble_table, read_published, read_summary, table_markdown


def main() -> int:
    """Parse the arguments, assemble, write, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--rows",
        required=True,
        type=json.loads,
        help="JSON: a list of [method, [[frames, [summary of each seed]], ...]]",
    )
    parser.add_argument("--dataset", required=True, help="that was evaluated")
    parser.add_argument("--published", required=True, type=Path, help="published figures")
    parser.add_argument("--csv", required=True, type=Path, help="written")
    parser.add_argument("--markdown", required=True, type=Path, help="written")
    parser.add_argument("--cells", required=True, type=Path, help="written: what each number is made from")
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()

    def work() -> None:
        published = read_published(arguments.published)
        rows = [
            (method, {frames: [read_summary(Path(path)) for path in paths] for frames, paths in cells})
            for method, cells in arguments.rows
        ]
        table = assemble_table(rows, published=published, dataset=arguments.dataset)
        text = table_markdown(table, published=published, dataset=arguments.dataset)
        with replacing(arguments.csv) as temporary:
            table.to_csv(temporary, index=False)
        write_text(arguments.markdown, text)
        write_json(
            arguments.cells,
            {method: {str(frames): paths for frames, paths in cells} for method, cells in arguments.rows},
        )
        logger.info("%s", text)

    return run(work, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
