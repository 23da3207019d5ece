"""The command `ffnrepro`: what is done by hand beside the workflow."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from ffnrepro.config import read_config, read_files
from ffnrepro.data.demo import make_demo_data
from ffnrepro.data.unpack import SOMETHING_SOMETHING_V2, unpack
from ffnrepro.errors import UserError
from ffnrepro.logs import logger, run
from ffnrepro.state import list_states, prune, retry


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
    state = commands.add_parser("state", help="resumable trainings: show them, clear them")
    state.add_argument("--folder", type=Path, default=Path("state"), help="(default: state)")
    state.set_defaults(work=_state)
    actions = state.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="what is there, how far it came, who is at work on it, what failed")
    for action, words in (
        ("prune", "delete states, with all that was computed"),
        ("retry", "let a training that failed for good be tried again"),
    ):
        actions.add_parser(action, help=words).add_argument(
            "keys", nargs="+", metavar="KEY", help="as listed, or its beginning"
        )
    doctor = commands.add_parser("doctor", help="whether a training would run here, and for how long")
    doctor.add_argument("experiment", help="such as ffn")
    doctor.add_argument(
        "--configfile", type=Path, nargs="+", default=[Path("config/config.yaml")], help="as for snakemake"
    )
    doctor.add_argument(
        "--directory", type=Path, default=Path(), help="where the workflow runs (default: here)"
    )
    doctor.add_argument("--steps", type=int, default=20, help="training steps that are tried (default 20)")
    doctor.set_defaults(work=_doctor)
    arguments = parser.parse_args(argv)
    return run(lambda: arguments.work(arguments))


def _make_demo_data(arguments: argparse.Namespace) -> None:
    logger.info(make_demo_data(arguments.folder, seed=arguments.seed, progress=sys.stderr.isatty()))


def _unpack(arguments: argparse.Namespace) -> None:
    into = arguments.into or arguments.folder
    logger.info(unpack(arguments.folder, into, expect=arguments.expect, progress=sys.stderr.isatty()))


def _doctor(arguments: argparse.Namespace) -> None:
    from ffnrepro.doctor import examine  # noqa: PLC0415 - the other commands do not need torch's weight

    config = read_config(read_files(arguments.configfile))
    if arguments.experiment not in config.experiments:
        raise UserError(f"no experiment {arguments.experiment}; there are {', '.join(config.experiments)}")
    found = examine(config, arguments.experiment, folder=arguments.directory, steps=arguments.steps)
    for finding in found:
        print("ok     " if finding.good else "PROBLEM", finding.text)
    if not all(finding.good for finding in found):
        raise UserError("this training would not run here as it is")


def _state(arguments: argparse.Namespace) -> None:
    if arguments.action == "list":
        rows = list_states(arguments.folder)
        print(tabulate(rows, headers="keys") if rows else f"{arguments.folder}: no states")
        return
    for key in arguments.keys:
        (prune if arguments.action == "prune" else retry)(arguments.folder, key)


if __name__ == "__main__":
    sys.exit(main())
