"""The command `ffnrepro`: tasks outside the workflow."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tyro
from tabulate import tabulate
from tqdm import tqdm
from tyro.conf import OmitArgPrefixes, Positional, arg

from ffnrepro.config import Config, read_config, read_files
from ffnrepro.data.decode import is_folder
from ffnrepro.data.demo import make_demo_data
from ffnrepro.data.isolation import Refusal, examine_in_child
from ffnrepro.data.unpack import SOMETHING_SOMETHING_V2, unpack
from ffnrepro.data.video_index import NAME_NOT_UTF8, Layout, holds_frames, list_videos, printable
from ffnrepro.errors import UserError
from ffnrepro.logs import logger
from ffnrepro.logs import run as run_logged
from ffnrepro.recipe.network import Shift

CLASSES = Path("results/labels/classes.csv")
"""The names of the classes, in a folder of the workflow."""

# Torch is imported only by the commands that use it, so that the others, and the processes of `inspect`, start quickly.


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    commands: dict[str, Callable[..., Any]] = {
        "make-demo-data": make_demo_data_command,
        "unpack": unpack_command,
        "inspect": inspect_command,
        "runs": runs_command,
        "watch": watch_command,
        "provenance": provenance_command,
        "doctor": doctor_command,
        "checkpoint": checkpoint_command,
        "predict": predict_command,
        "export": export_command,
    }
    return run_logged(partial(_run_command, commands, argv))


def _run_command(commands: dict[str, Callable[..., Any]], argv: Sequence[str] | None) -> None:
    """Run a command, and end quietly when the reader of its output, such as `head`, has ended."""
    try:
        tyro.extras.subcommand_cli_from_dict(commands, prog="ffnrepro", description=__doc__, args=argv)
        sys.stdout.flush()
    except BrokenPipeError:
        # At exit Python would still write its buffer to the reader.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass(frozen=True)
class Workflow:
    """Where the workflow runs, and with which configuration.

    Attributes:
        configfile: Files that change keys of config/config.yaml and config/paper.yaml, as given to snakemake.
        directory: Folder in which the workflow runs.
    """

    configfile: tuple[Path, ...] = ()
    directory: Path = Path()

    def config(self) -> Config:
        """The configuration; the given files override the project's own, as in the Snakefile."""
        own = [path for path in (Path("config/config.yaml"), Path("config/paper.yaml")) if path.exists()]
        if not own and not self.configfile:
            raise UserError(
                f"config/config.yaml: no such file in {Path.cwd()}; start ffnrepro in the folder of the Snakefile, with the "
                "--directory and --configfile that snakemake was given"
            )
        return read_config(read_files([*own, *self.configfile]))

    def enter(self) -> contextlib.chdir[Path]:
        """A context in which `directory` is the working directory."""
        if not self.directory.is_dir():
            raise UserError(
                f"--directory {self.directory}: no such folder; give the folder that snakemake was given"
            )
        return contextlib.chdir(self.directory)


def make_demo_data_command(folder: Positional[Path], seed: int = 0) -> None:
    """Write the built-in data set: label files and videos.

    Args:
        folder: Folder to write to.
        seed: Seed of the clips; another seed gives other clips of the same classes.
    """
    logger.info(make_demo_data(folder, seed=seed))


def unpack_command(
    folder: Positional[Path], into: Path | None = None, expect: int = SOMETHING_SOMETHING_V2
) -> None:
    """Join the downloaded parts of an archive and unpack it.

    Args:
        folder: Folder that holds the parts, or a zip of each part.
        into: Folder in which the archive's folder is made; None: FOLDER.
        expect: Number of files that the archive must hold; the default is that of Something-Something V2.
    """
    logger.info(unpack(folder, into or folder, expect=expect))


def inspect_command(
    paths: Positional[tuple[Path, ...]] = (Path(),), as_json: Annotated[bool, arg(name="json")] = False
) -> None:
    """Show what the index would record for videos: whether they are usable, their frames and size.

    Args:
        paths: Videos, folders of frames, or folders of either.
        as_json: Print the results as a JSON list of objects.
    """
    files = [file for path in paths for file in _videos_of(path)]
    rows = []
    for path, examined in examine_in_child(files):
        outcome = examined if printable(path.name) == path.name else Refusal(NAME_NOT_UTF8)
        row: dict[str, Any] = {"path": printable(str(path)), "status": "ok", "reason": "", "detail": ""}
        row |= dict.fromkeys(("frames", "width", "height", "fps", "codec", "duration"))
        if isinstance(outcome, Refusal):
            row |= {"status": "excluded", **outcome._asdict()}
        else:
            row |= {**vars(outcome[0]), "frames": outcome[1]}
        rows.append(row)
        if not as_json:
            print(_describe(row), flush=True)
    if as_json:
        print(json.dumps(rows, indent=2), flush=True)


def _videos_of(path: Path) -> list[Path]:
    """The videos in a folder, whether files or folders of frames; if there are none, the path itself."""
    if not is_folder(path):
        return [path]
    for layout in get_args(Layout):
        with contextlib.suppress(UserError, OSError):
            found = [path / name for name in list_videos(path, layout)]
            if layout == "videos" or any(map(holds_frames, found)):
                return found
    # It is a folder of frames, or an empty folder, which is then excluded with its reason.
    return [path]


def _describe(row: dict[str, Any]) -> str:
    if row["status"] == "excluded":
        return f"{row['path']}: excluded: {row['reason']}" + (f" ({row['detail']})" if row["detail"] else "")
    rate = "" if row["fps"] is None else f", {row['fps']:g} frames/s"
    duration = "" if row["duration"] is None else f", {row['duration']:.2f} s"
    return f"{row['path']}: ok: {row['frames']} frames, {row['width']}x{row['height']}{rate}, {row['codec']}{duration}"


def provenance_command(table: Positional[Path]) -> None:
    """Print the files and versions behind each number of a table.

    Args:
        table: Path of a table, such as results/table1.csv.
    """
    from ffnrepro.provenance import chain_of_table  # noqa: PLC0415

    print(chain_of_table(table))


def doctor_command(
    experiment: Positional[str], workflow: OmitArgPrefixes[Workflow] = Workflow(), steps: int = 20
) -> None:
    """Check whether a training would run on this machine, and how long it would take.

    Args:
        experiment: Name of an experiment, such as ffn.
        workflow: Folder and configuration of the workflow.
        steps: Number of training steps to try; with 0, this machine's device and memory are not checked.
    """
    from ffnrepro.doctor import configured_job, examine  # noqa: PLC0415
    from ffnrepro.runs import run_settings  # noqa: PLC0415

    config = workflow.config()
    if experiment not in config.experiments:
        raise UserError(f"there is no experiment {experiment}; give one of {', '.join(config.experiments)}")
    if experiment in config.imports:
        raise UserError(
            f"{experiment} is imported, not trained; ffnrepro checkpoint show {config.imports[experiment]} describes its file"
        )
    with workflow.enter():
        print(examine(configured_job(config, experiment), run_settings(config, experiment), steps=steps))


def checkpoint_command(
    action: Positional[Literal["show", "convert"]],
    paths: Positional[tuple[Path, ...]],
    to: Literal["ours", "authors", "mit-han-lab"] | None = None,
    shift: Shift | None = None,
) -> None:
    """Describe the networks of checkpoints, or write one in another format.

    `show FILE...` prints format, depth, frame counts, classes, shifted blocks and digest, and which weights are missing or
    left over. `convert IN OUT --to FORMAT` writes the network of IN, without the state of its training; every tensor keeps
    its value to the last bit. Both read checkpoints of ours, of FFN's authors, and of mit-han-lab's and mmaction2's TSM.

    Args:
        action: What to do.
        paths: The files to show; or the file to read and the new file to write.
        to: Format to write: ours, that of FFN's authors, or that of mit-han-lab's TSM.
        shift: Blocks that shift, for a file whose keys do not say; None: all.
    """
    from ffnrepro.checkpoint_files import convert, describe  # noqa: PLC0415

    if action == "convert":
        if len(paths) != 2 or to is None:
            raise UserError(
                "ffnrepro checkpoint convert: give the file to read, the file to write, and --to with its format"
            )
        print(convert(*paths, to=to, shift=shift))
        return
    if not paths or to is not None:
        raise UserError("ffnrepro checkpoint show: give the files to show, and no --to")
    problems = []
    for path in paths:
        lines, problem = describe(path, shift=shift)
        print(tabulate(lines.items(), tablefmt="plain", disable_numparse=True), flush=True)
        problems += [problem] if problem else []
    if problems:
        raise UserError("; ".join(problems))


def runs_command(
    action: Positional[Literal["list", "accept", "retry", "prune"]] = "list",
    names: Positional[tuple[str, ...]] = (),
    workflow: OmitArgPrefixes[Workflow] = Workflow(),
    plan: str | None = None,
) -> None:
    """List the trained networks and the trainings in progress, or act on some of them.

    `accept` uses a run's networks in the selected run if only code differs, `retry` allows another attempt at a
    training that failed permanently, and `prune` deletes networks, evaluations and states.

    Args:
        action: What to do.
        names: Names of runs as listed; the name of an experiment stands for its selected run.
        workflow: Folder and configuration of the workflow.
        plan: Name of a table: list the trainings that it needs, which of them are finished, and the GPU hours for the rest.
    """
    from ffnrepro.run_list import RunList  # noqa: PLC0415

    if (action == "list") == bool(names):
        raise UserError(f"ffnrepro runs {action}: give {'no names' if names else 'the names of runs'}")
    config = workflow.config()
    with workflow.enter():
        runs = RunList(config)
        if action != "list":
            for name in names:
                print(getattr(runs, action)(name))
        elif plan is not None:
            rows, summary = runs.plan(plan)
            print(tabulate(rows, headers="keys", floatfmt=".1f"))
            print(summary)
        else:
            print(tabulate(runs.rows(), headers="keys") or f"no runs yet in {Path.cwd()}")


def watch_command(directory: Path = Path(), once: bool = False) -> None:
    """Show the trainings of a folder while they run: epoch, loss, accuracy, speed, time left, process and last warning.

    Ctrl-C ends this command, but no training. The command only reads files, and works on any machine that sees the folder.

    Args:
        directory: Folder in which the workflow runs.
        once: Print the trainings once and exit; always done if the output is not a terminal.
    """
    from ffnrepro.watch import watch  # noqa: PLC0415

    with Workflow(directory=directory).enter():
        watch(once=once)


def predict_command(
    videos: Positional[tuple[Path, ...]],
    run: str | None = None,
    checkpoint: Path | None = None,
    frames: str | None = None,
    budget: float | None = None,
    workflow: OmitArgPrefixes[Workflow] = Workflow(),
    seed: int = 0,
    labels: Path | None = None,
    short_side: int | None = None,
    crop_size: int | None = None,
    as_json: Annotated[bool, arg(name="json")] = False,
    as_csv: Annotated[bool, arg(name="csv")] = False,
) -> None:
    """Print the five most likely classes of videos, with their probabilities.

    If a video cannot be read, the others are still predicted, and the exit code is 1.

    Args:
        videos: Videos, folders of frames, or folders of either.
        run: Name of a run, or of an experiment, which stands for its selected run.
        checkpoint: File of a network, instead of a run.
        frames: Frame count of the clips, such as 8; or several to compare, such as 4,8,16. Default: all frame counts of the training.
        budget: GFLOPs per video (10^9 multiply-adds, as in the paper). The largest frame count within this budget is used.
        workflow: Folder and configuration of the workflow, for --run.
        seed: Seed of the training, for --run.
        labels: Names of the classes: a classes.csv, or a text file with one name per line. Default: those in the
            network's file; else, with --run, the workflow's results/labels/classes.csv; else the numbers of the classes.
        short_side: Short side of the resized frames in pixels; default: that of the run or of the checkpoint, else 256.
        crop_size: Height and width of the clips in pixels; default: that of the run or of the checkpoint, else 224.
        as_json: Print a JSON list with an object for each video, frame count and class.
        as_csv: Print the same as CSV.
    """
    from ffnrepro import prediction  # noqa: PLC0415

    if not videos:
        raise UserError("ffnrepro predict: give videos, or folders of videos")
    if (run is None) == (checkpoint is None):
        raise UserError("ffnrepro predict: give either --run or --checkpoint")
    if as_json and as_csv:
        raise UserError("ffnrepro predict: give --json or --csv, not both")
    counts = () if frames is None else prediction.read_frame_counts(frames)
    if checkpoint is not None:
        predictor, classes = prediction.predictor_of_file(checkpoint), None
    else:
        predictor = prediction.predictor_of_run(_run_folder(workflow, str(run)), seed)
        classes = workflow.directory / CLASSES
    predictor = predictor.resized(short_side, crop_size)
    names = prediction.names_of_classes(predictor, labels, classes)
    if not (counts := counts or predictor.train_frames):
        raise UserError(
            "ffnrepro predict: the file does not say at which frame counts its network was trained; give --frames, such as "
            "--frames 8, or --frames 4,8,16 to compare or to choose from (--budget)"
        )
    if budget is not None:
        counts = (prediction.within_budget(predictor, counts, budget),)
    files = [file for path in videos for file in _videos_of(path)]
    predictions = []
    for predicted in tqdm(
        prediction.predict_videos(predictor, files, counts),
        total=len(files),
        unit="video",
        leave=False,
        disable=None,
    ):
        predictions.append(predicted)
        if predicted.error:
            logger.warning("%s: cannot be read: %s", printable(str(predicted.video)), predicted.error)
    if as_json or as_csv:
        rows = prediction.rows_of(predictions, names)
        print(json.dumps(rows, indent=2, ensure_ascii=False) if as_json else prediction.csv_of(rows))
    else:
        print(prediction.table_of(predictions, names, counts))
    if bad := sum(bool(predicted.error) for predicted in predictions):
        raise UserError(f"{bad} of {len(files)} videos cannot be read; the lines above say why")


def export_command(
    run: Positional[str],
    frames: int,
    output: Path | None = None,
    workflow: OmitArgPrefixes[Workflow] = Workflow(),
    seed: int = 0,
    labels: Path | None = None,
) -> None:
    """Write the sub-network of one frame count as a plain network, for PyTorch and ONNX, with a model card.

    Args:
        run: Name of a run, or of an experiment, which stands for its selected run.
        frames: Frame count of the clips.
        output: Folder to write to; default: results/exports/RUN-seed0-8f of the workflow.
        workflow: Folder and configuration of the workflow.
        seed: Seed of the training.
        labels: Names of the classes: a classes.csv, or a text file with one name per line. Default: those in the
            network's file; else the workflow's results/labels/classes.csv.
    """
    from ffnrepro.export import check_packages, export_run  # noqa: PLC0415
    from ffnrepro.prediction import names_of_classes, predictor_of_run, read_frame_counts  # noqa: PLC0415

    check_packages()
    read_frame_counts(str(frames))
    folder = _run_folder(workflow, run)
    output = output or workflow.directory / f"results/exports/{folder.name}-seed{seed}-{frames}f"
    predictor = predictor_of_run(folder, seed)
    names = names_of_classes(predictor, labels, workflow.directory / CLASSES)
    differences = export_run(
        folder,
        output,
        network=predictor.network,
        train_frames=predictor.train_frames,
        seed=seed,
        frames=frames,
        names=names,
    )
    for name, difference in differences.items():
        print(f"{name}: largest difference from the network's logits: {difference:.1e}")
    print(f"{output}: model.onnx, model.pt2, labels.txt; README.md says how to use them")


def _run_folder(workflow: Workflow, name: str) -> Path:
    """The folder of a run, or of an experiment's selected run."""
    from ffnrepro.run_list import RunList  # noqa: PLC0415
    from ffnrepro.runs import RUNS  # noqa: PLC0415

    config = workflow.config()
    with workflow.enter():
        run = RunList(config).resolve(name)
    return workflow.directory / RUNS / run


if __name__ == "__main__":
    sys.exit(main())
