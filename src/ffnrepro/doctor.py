"""`ffnrepro doctor`: whether a training would run on this machine, and for how long, before it is queued for a day.

It looks at the device, at shared memory, decoder, weights and disk, and then trains some real steps, by the loop of the real
training and on its videos, in a folder that is thrown away.
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import pandas as pd
import torch

from ffnrepro.config import Config, training_settings
from ffnrepro.data.decode import DecodeError, open_video
from ffnrepro.errors import Unfinished, UserError
from ffnrepro.plan import duration
from ffnrepro.training.checkpoints import GENERATIONS, StateDirectory
from ffnrepro.training.devices import check_precision, choose_device
from ffnrepro.training.job import build_network, check_splits, train_experiment
from ffnrepro.training.processes import Processes, check_count
from ffnrepro.training.stopping import StopRequest

PREFETCHED = 2
"""Batches that each loader worker holds ready: PyTorch's default."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    good: bool
    text: str


ENOUGH = 60.0
"""Seconds after which fewer steps than asked for are enough, too: on a machine that is no good for the network."""


class _SomeSteps(StopRequest):
    """Stops after so many steps, and notes when each ended."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.ends: list[float] = []

    def reason(self, reserve: float = 0.0) -> str | None:
        """Enough, or None."""
        self.ends.append(time.perf_counter())
        enough = len(self.ends) >= self.steps or (
            len(self.ends) > 2 and self.ends[-1] - self.ends[0] > ENOUGH
        )
        return "enough" if enough else super().reason(reserve)


def examine(arguments: argparse.Namespace, *, steps: int) -> list[Finding]:
    """Look at what a training needs, and try it.

    Args:
        arguments: of `training_parser`, or `training_arguments`.
        steps: that are tried; 0: this is not the machine that trains, so what is its own is not looked at.
    """
    found = []
    recipe = arguments.settings["training"]
    if steps:
        try:
            device = choose_device(arguments.device)
            check_precision(recipe["precision"], device)
            check_count(device, recipe["gpus"])
        except UserError as error:
            return [Finding(False, f"device: {error}")]
        found += [_device(device), _shared_memory(arguments.settings, arguments.workers)]
    found.append(_disk(arguments.settings, arguments.state))
    if arguments.weights is not None:
        there = arguments.weights.exists()
        mend = "there" if there else "not there yet; snakemake --cores 1 --until fetch_weights fetches it"
        found.append(Finding(there, f"weights: {arguments.weights} {mend}"))
    table = arguments.manifest / "train.parquet"
    if not table.exists():
        mend = "snakemake --cores 1 --until build_manifest makes it"
        return [*found, Finding(False, f"videos: no {table} yet; {mend}")]
    try:
        check_splits(arguments.manifest, recipe["batch_size"])
    except UserError as error:
        return [*found, Finding(False, f"videos: {error}")]
    found.append(_decoder(arguments.videos, table))
    if steps and all(finding.good for finding in found):
        found += _try(arguments, device, steps)
    return found


def tell(found: list[Finding]) -> str:
    """The findings, a line each.

    Raises:
        UserError: one of them would stop the training; its text is theirs.
    """
    problems = [finding.text for finding in found if not finding.good]
    if problems:
        raise UserError(f"this training would not run as it is: {'; '.join(problems)}")
    return "\n".join(f"ok  {finding.text}" for finding in found)


def training_arguments(config: Config, experiment: str, folder: Path) -> argparse.Namespace:
    """What the workflow in `folder` would call the training script of an experiment with."""
    weights = None
    if config.network.weights is not None:
        weights = folder / f"results/weights/resnet{config.depth_of(experiment)}.pth"
    return argparse.Namespace(
        name=experiment,
        settings=training_settings(config, experiment, config.seeds[0]),
        classes=folder / "results/labels/classes.csv",
        manifest=folder / "results/manifest",
        videos=folder / config.data.videos,
        weights=weights,
        state=folder / "state/train",
        device=config.runtime.device,
        threads=config.runtime.threads,
        workers=config.runtime.workers,
        cache_decoded=config.runtime.cache_decoded,
        max_bad_fraction=config.data.max_bad_fraction,
    )


def _device(device: torch.device) -> Finding:
    if device.type != "cuda":
        words = (
            "fine for the demo; the published run needs a GPU"
            if device.type == "cpu"
            else "computes in float32"
        )
        return Finding(True, f"device: {device.type}, {words}")
    free, whole = torch.cuda.mem_get_info(device)
    return Finding(
        True, f"device: {torch.cuda.get_device_name(device)}, {free / 1e9:.0f} of {whole / 1e9:.0f} GB free"
    )


def _shared_memory(settings: dict[str, Any], workers: int) -> Finding:
    """Loader workers hand over their batches in shared memory; a container has 64 MB of it by default."""
    shared = Path("/dev/shm")
    batch = (
        settings["training"]["batch_size"] * sum(settings["train_frames"]) * 3 * settings["crop_size"] ** 2
    )
    gpus = settings["training"]["gpus"]  # each process has its part of a batch, and of the workers
    needed = batch * PREFETCHED * -(-workers // gpus)
    if needed == 0 or not shared.exists():
        return Finding(True, "shared memory: none needed")
    free = shutil.disk_usage(shared).free
    mend = "" if free >= needed else "; lower runtime.workers, or give the container more (--shm-size)"
    return Finding(free >= needed, f"shared memory: {_size(free)} free, {_size(needed)} needed{mend}")


def _disk(settings: dict[str, Any], place: Path) -> Finding:
    with torch.device("meta"):
        network = build_network(settings, 174)
    # A save holds the network, its momentum and the best network; the next is written before the oldest goes.
    needed = (GENERATIONS + 1) * 3 * 4 * sum(parameter.numel() for parameter in network.parameters())
    there = _existing(place)
    if not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            False, f"disk: nothing can be written into {there}, where {place} is to be; see its permissions"
        )
    free = shutil.disk_usage(there).free
    mend = "" if free >= needed else "; make room, or move the folder"
    return Finding(free >= needed, f"disk: {_size(free)} free for {place}, {_size(needed)} needed{mend}")


def _existing(place: Path) -> Path:
    return next(path for path in (place, *place.absolute().parents) if path.exists())


def _decoder(videos: Path, table: Path) -> Finding:
    row = pd.read_parquet(table).iloc[0]
    path = videos / str(row["path"])
    started = time.perf_counter()
    try:
        reader = open_video(path)
        reader.frames(range(int(row["frames"])))
    except DecodeError as error:
        return Finding(False, f"decoder: {error}")
    kind = type(reader).__name__.strip("_").removesuffix("Reader")
    return Finding(
        True, f"decoder: {kind}, {1000 * (time.perf_counter() - started):.0f} ms for {row['frames']} frames"
    )


def _try(arguments: argparse.Namespace, device: torch.device, steps: int) -> list[Finding]:
    torch.set_num_threads(arguments.threads)  # as the training does
    recipe = arguments.settings["training"]
    if recipe["gpus"] > 1:  # one process is tried, with its part of the batch
        part = {**recipe, "batch_size": recipe["batch_size"] // recipe["gpus"], "gpus": 1}
        arguments = argparse.Namespace(
            **{**vars(arguments), "settings": {**arguments.settings, "training": part}}
        )
    per_epoch = len(pd.read_parquet(arguments.manifest / "train.parquet")) // recipe["batch_size"]
    stop = _SomeSteps(min(steps, max(1, per_epoch)))
    # Beside the states, so that the save at the end is written where theirs will be.
    beside = _existing(arguments.state.absolute().parent)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".doctor-") as temporary:
        try:
            train_experiment(arguments, device, StateDirectory(Path(temporary), {}), stop, Processes())
        except Unfinished:
            pass
        except torch.OutOfMemoryError:
            return [
                Finding(
                    False,
                    f"memory: a batch of {recipe['batch_size']} clips does not fit on the device; take a larger one, or "
                    "lower training.batch_size and training.learning_rate alike (that changes numbers)",
                )
            ]
        except UserError as error:
            return [Finding(False, f"step: {error}")]
    found = []
    if device.type == "cuda":
        found.append(
            Finding(True, f"memory: {torch.cuda.max_memory_reserved(device) / 1e9:.1f} GB for a batch")
        )
    spans = [b - a for a, b in zip(stop.ends, stop.ends[1:], strict=False)]
    if not spans:
        return [*found, Finding(True, "step: one was done; too few videos to tell the time")]
    step = mean(spans)  # the pauses in which data is waited for count, too
    frames = recipe["batch_size"] * sum(arguments.settings["train_frames"])
    hours = step * per_epoch * recipe["epochs"] / 3600
    first = "; of the first epoch, which decodes: later ones are quicker" if arguments.cache_decoded else ""
    found.append(
        Finding(
            True,
            f"time: {step:.3f} s a step of {recipe['batch_size']} clips ({frames / step:.0f} frames/s, {os.cpu_count()} "
            f"cores): about {duration(hours)} for {recipe['epochs']} epochs, validation not counted{first}",
        )
    )
    return found


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
