"""Check the networks and scores behind tables for known faults."""

import json
import sys
from pathlib import Path

import tyro

from ffnrepro.diagnosis import diagnose, read_networks, text
from ffnrepro.files import write_json, write_text
from ffnrepro.logs import logger, run


def main(tables: tuple[Path, ...], summary: Path, output: Path, log: Path | None = None) -> int:
    """Check the networks and scores behind tables for known faults, and log what was found.

    Args:
        tables: `results/{table}.json` of each table.
        summary: The file `summary.json` of the manifest.
        output: File to write the findings to; a file of the same name with the extension `.txt` has them as text.
        log: File that messages are written to.
    """

    def work() -> None:
        contents = [json.loads(table.read_text(encoding="utf-8")) for table in tables]
        counts = json.loads(summary.read_text(encoding="utf-8"))
        diagnosis = diagnose(read_networks(contents), contents, counts)
        write_json(output, diagnosis)
        write_text(output.with_suffix(".txt"), text(diagnosis))
        logger.info("%s", text(diagnosis))

    return run(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
