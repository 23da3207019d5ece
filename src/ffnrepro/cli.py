"""The command `ffnrepro`: what is done by hand beside the workflow."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ffnrepro.data.demo import make_demo_data
from ffnrepro.logs import logger, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="ffnrepro", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("make-demo-data", help="write the built-in data set: label files and videos")
    demo.add_argument("folder", type=Path)
    demo.add_argument("--seed", type=int, default=0, help="other clips of the same classes (default 0)")
    arguments = parser.parse_args(argv)
    return run(
        lambda: logger.info(
            make_demo_data(arguments.folder, seed=arguments.seed, progress=sys.stderr.isatty())
        )
    )


if __name__ == "__main__":
    sys.exit(main())
