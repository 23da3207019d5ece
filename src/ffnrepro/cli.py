"""The command `ffnrepro`: what is done by hand beside the workflow."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ffnrepro.data.demo import make_demo_data
from ffnrepro.data.unpack import SOMETHING_SOMETHING_V2, unpack
from ffnrepro.logs import logger, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    parser = argparse.ArgumentParser(prog="ffnrepro", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("make-demo-data", help="write the built-in data set: label files and videos")
    demo.add_argument("folder", type=Path)
    demo.add_argument("--seed", type=int, default=0, help="other clips of the same classes (default 0)")
    demo.set_defaults(work=_make_demo_data)
    unpacking = commands.add_parser("unpack", help="join the downloaded parts of an archive and unpack it")
    unpacking.add_argument("folder", type=Path, help="holds the parts, or a zip of each")
    unpacking.add_argument("--into", type=Path, help="where the archive's folder is made (default: FOLDER)")
    unpacking.add_argument(
        "--expect",
        type=int,
        default=SOMETHING_SOMETHING_V2,
        metavar="N",
        help="files that must come out (default %(default)s, as of Something-Something V2)",
    )
    unpacking.set_defaults(work=_unpack)
    arguments = parser.parse_args(argv)
    return run(lambda: logger.info(arguments.work(arguments)))


def _make_demo_data(arguments: argparse.Namespace) -> str:
    return make_demo_data(arguments.folder, seed=arguments.seed, progress=sys.stderr.isatty())


def _unpack(arguments: argparse.Namespace) -> str:
    into = arguments.into or arguments.folder
    return unpack(arguments.folder, into, expect=arguments.expect, progress=sys.stderr.isatty())


if __name__ == "__main__":
    sys.exit(main())
