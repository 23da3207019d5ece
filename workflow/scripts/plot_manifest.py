"""Plot the number of videos of each class, and their lengths."""

import json
import sys
from pathlib import Path

import tyro

from ffnrepro.figures import class_count_figure, clip_length_figure, save_figure
from ffnrepro.logs import run


def main(summary: Path, classes: Path, lengths: Path, log: Path | None = None) -> int:
    """Plot the number of videos of each class, and their lengths.

    Args:
        summary: The file `summary.json` of the manifest.
        classes: File to write the plot of class counts to.
        lengths: File to write the plot of clip lengths to.
        log: File that messages are written to.
    """

    def work() -> None:
        counts = json.loads(summary.read_text(encoding="utf-8"))
        save_figure(class_count_figure(counts), classes)
        save_figure(clip_length_figure(counts), lengths)

    return run(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
