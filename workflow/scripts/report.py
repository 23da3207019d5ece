"""Make the report: one HTML page about the tables of `report.tables`, their networks and their data."""

import sys
from pathlib import Path

import tyro

from ffnrepro.files import write_text
from ffnrepro.logs import logger, run
from ffnrepro.report.page import Sources, make_page


def main(
    tables: tuple[Path, ...],
    published: Path,
    diagnosis: Path,
    manifest: Path,
    classes: Path,
    videos: Path,
    output: Path,
    log: Path | None = None,
) -> int:
    """Write the report.

    Args:
        tables: `results/{table}.json` of each table.
        published: Published figures.
        diagnosis: The file `diagnosis.json`.
        manifest: Folder of the manifest.
        classes: Names of the classes.
        videos: Folder of the videos.
        output: File to write the page to.
        log: File that messages are written to.
    """

    def work() -> None:
        page = make_page(
            Sources(
                tables=tables,
                published=published,
                diagnosis=diagnosis,
                manifest=manifest,
                classes=classes,
                videos=videos,
            )
        )
        write_text(output, page)
        logger.info("%s: open it in a browser (%.1f MB)", output, len(page.encode()) / 1e6)

    return run(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
