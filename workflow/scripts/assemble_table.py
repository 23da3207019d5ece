"""Assemble Table 1 from the summaries of the evaluations."""

import argparse
import json
import sys
from pathlib import Path

from ffnrepro.decides import data_decides, write_decides
from ffnrepro.files import file_digest, replacing, write_text
from ffnrepro.logs import logger, run
from ffnrepro.tables import assemble_table, read_published, read_summary, table_markdown


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
    parser.add_argument("--made", required=True, type=Path, help="written: what it is made from")
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()

    def work() -> None:
        paths = {path for _, cells in arguments.rows for _, cell in cells for path in cell}
        summaries = {path: read_summary(Path(path)) for path in sorted(paths)}
        decides = data_decides(
            Path(__file__),
            rows=arguments.rows,
            evaluations={path: summary["state"] for path, summary in summaries.items()},
            dataset=arguments.dataset,
            published=file_digest(arguments.published),
        )
        published = read_published(arguments.published)
        rows = [
            (method, {frames: [summaries[path] for path in paths] for frames, paths in cells})
            for method, cells in arguments.rows
        ]
        table = assemble_table(rows, published=published, dataset=arguments.dataset)
        text = table_markdown(table, published=published, dataset=arguments.dataset)
        with replacing(arguments.csv) as temporary:
            table.to_csv(temporary, index=False)
        write_text(arguments.markdown, text)
        write_decides(arguments.made, decides)
        logger.info("%s", text)

    return run(work, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
