"""Draw the number of videos of each class, and their lengths."""

import argparse
import json
import sys
from pathlib import Path

from ffnrepro.figures import plot_class_counts, plot_clip_lengths
from ffnrepro.logs import run


def main() -> int:
    """Parse the arguments, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--summary", required=True, type=Path, help="summary.json")
    parser.add_argument("--classes", required=True, type=Path, help="output: figure of the class counts")
    parser.add_argument("--lengths", required=True, type=Path, help="output: figure of the clip lengths")
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()

    def work() -> None:
        summary = json.loads(arguments.summary.read_text(encoding="utf-8"))
        plot_class_counts(summary, arguments.classes)
        plot_clip_lengths(summary, arguments.lengths)

    return run(work, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
