"""Draw the number of videos of each class, and their lengths."""

import argparse
import json
import sys
from pathlib import Path

from ffnrepro.figures import class_count_figure, clip_length_figure, save_figure
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
        save_figure(class_count_figure(summary), arguments.classes)
        save_figure(clip_length_figure(summary), arguments.lengths)

    return run(work, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
