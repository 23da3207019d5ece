"""The command `ffnrepro`: what is done by hand beside the workflow."""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from ffnrepro.config import Config, read_config, read_files
from ffnrepro.data.decode import is_folder
from ffnrepro.data.demo import make_demo_data
from ffnrepro.data.isolation import examine_in_child
from ffnrepro.data.unpack import SOMETHING_SOMETHING_V2, unpack
from ffnrepro.data.video_index import NAME_NOT_UTF8, Layout, holds_frames, list_videos, printable
from ffnrepro.errors import UserError
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
    inspecting = commands.add_parser("inspect", help="tell of any videos what the index would")
    inspecting.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH", help="video, folder of frames, or folder of either"
    )
    inspecting.add_argument("--json", action="store_true", help="print a list of objects")
    inspecting.set_defaults(work=_inspect)
    runs = commands.add_parser("runs", help="trained networks and trainings under way: list, plan, clear")
    runs.add_argument("--plan", metavar="TABLE", help="the trainings that a table needs, and their GPU hours")
    _add_configuration(runs)
    actions = runs.add_subparsers(dest="action")
    for action, words in (
        ("accept", "take a run's networks over where only code differs"),
        ("retry", "let a training that failed for good be tried again"),
        ("prune", "delete runs: networks, evaluations and states"),
    ):
        actions.add_parser(action, help=words).add_argument(
            "runs", nargs="+", metavar="RUN", help="as listed, or an experiment for its selected run"
        )
    runs.set_defaults(work=_runs)
    provenance = commands.add_parser("provenance", help="the chain behind each number of the table")
    provenance.add_argument("table", type=Path, help="results/table1.csv")
    provenance.set_defaults(work=_provenance)
    doctor = commands.add_parser("doctor", help="whether a training would run here, and for how long")
    doctor.add_argument("experiment", help="such as ffn")
    _add_configuration(doctor)
    doctor.add_argument(
        "--steps",
        type=int,
        default=20,
        help="training steps that are tried (default 20; 0: none, and the device is not looked at)",
    )
    doctor.set_defaults(work=_doctor)
    arguments = parser.parse_args(argv)
    return run(lambda: arguments.work(arguments))


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--configfile",
        type=Path,
        nargs="+",
        default=[],
        help="what differs from config/config.yaml, as for snakemake",
    )
    parser.add_argument(
        "--directory", type=Path, default=Path(), help="where the workflow runs (default: here)"
    )


def _configuration(arguments: argparse.Namespace) -> Config:
    """As the Snakefile reads it: files that are given stand above the project's own."""
    if not arguments.directory.is_dir():
        raise UserError(
            f"--directory {arguments.directory}: no such folder; give the one that snakemake gets"
        )
    own = Path("config/config.yaml")
    given = arguments.configfile
    return read_config(read_files([own, *given] if own.exists() or not given else given))


def _make_demo_data(arguments: argparse.Namespace) -> None:
    logger.info(make_demo_data(arguments.folder, seed=arguments.seed, progress=sys.stderr.isatty()))


def _unpack(arguments: argparse.Namespace) -> None:
    into = arguments.into or arguments.folder
    logger.info(unpack(arguments.folder, into, expect=arguments.expect, progress=sys.stderr.isatty()))


class _NobodyReads(Exception):
    """Whoever reads the output, such as `head`, has enough."""


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at its end
        raise _NobodyReads from error


def _inspect(arguments: argparse.Namespace) -> None:
    with contextlib.suppress(_NobodyReads):
        inspect_videos(arguments.paths, as_json=arguments.json)


def inspect_videos(paths: Sequence[Path], *, as_json: bool) -> None:
    """Print what the index would say of videos: of files, folders of frames, and all in folders of either."""
    inspected = [file for path in paths for file in _videos_of(path)]
    fields = ("frames", "width", "height", "fps", "codec", "duration")
    rows = []
    for path, found in examine_in_child(inspected):
        outcome = found if printable(path.name) == path.name else NAME_NOT_UTF8
        row: dict[str, Any] = {
            "path": printable(str(path)),
            "status": "ok",
            "reason": "",
            **dict.fromkeys(fields),
        }
        if isinstance(outcome, str):
            row |= {"status": "excluded", "reason": outcome}
        else:
            row |= {**vars(outcome[0]), "frames": outcome[1]}
        rows.append(row)
        if not as_json:
            _say(_told(row))
    if as_json:
        _say(json.dumps(rows, indent=2))


def _videos_of(path: Path) -> list[Path]:
    """Files of a folder of videos, or folders of frames of a folder of such; else the path itself."""
    if not is_folder(path):
        return [path]
    layouts: tuple[Layout, ...] = ("videos", "frames")
    for layout in layouts:
        with contextlib.suppress(UserError, OSError):
            found = [path / name for name in list_videos(path, layout)]
            if layout == "videos" or any(map(holds_frames, found)):
                return found
    return [path]  # a folder of frames; or of nothing, and the reason says so


def _told(row: dict[str, Any]) -> str:
    if row["status"] == "excluded":
        return f"{row['path']}: excluded: {row['reason']}"
    rate = "" if row["fps"] is None else f", {row['fps']:g} frames/s"
    duration = "" if row["duration"] is None else f", {row['duration']:.2f} s"
    return f"{row['path']}: ok: {row['frames']} frames, {row['width']}x{row['height']}{rate}, {row['codec']}{duration}"


# Imported where they are used: the other commands, and the children of `inspect`, need not wait for torch.


def _provenance(arguments: argparse.Namespace) -> None:
    from ffnrepro.provenance import chain_of_table  # noqa: PLC0415

    print(chain_of_table(arguments.table))


def _doctor(arguments: argparse.Namespace) -> None:
    from ffnrepro.doctor import configured_job, examine  # noqa: PLC0415
    from ffnrepro.runs import run_settings  # noqa: PLC0415

    if arguments.steps < 0:
        raise UserError(f"--steps {arguments.steps}: give a number of steps, or 0")
    config, experiment = _configuration(arguments), arguments.experiment
    if experiment not in config.experiments:
        raise UserError(f"no experiment {experiment}; there are {', '.join(config.experiments)}")
    job = configured_job(config, experiment, arguments.directory)
    checks = examine(job, run_settings(config, experiment), steps=arguments.steps)
    for check in checks:
        print("ok     " if check.good else "PROBLEM", check.text)
    if not all(check.good for check in checks):
        raise UserError("this training would not run here as it is")


def _runs(arguments: argparse.Namespace) -> None:
    from ffnrepro.run_list import RunList  # noqa: PLC0415

    runs = RunList(_configuration(arguments), arguments.directory)
    if arguments.action is not None:
        for name in arguments.runs:
            print(getattr(runs, arguments.action)(name))
    elif arguments.plan is not None:
        rows, hours = runs.plan(arguments.plan)
        print(tabulate(rows, headers="keys"))
        print(f"About {hours:.1f} GPU hours are left of {arguments.plan}, where they are known.")
    else:
        rows = runs.rows()
        print(tabulate(rows, headers="keys") if rows else "no runs yet")


if __name__ == "__main__":
    sys.exit(main())
