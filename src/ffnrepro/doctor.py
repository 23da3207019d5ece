"""`ffnrepro doctor`: whether a training would run on this machine, and for how long, before it waits in a queue.

It checks device, shared memory, decoder, weights and disk, and then trains some steps: by the same loop and on the same
videos as the real training, in a folder that is deleted afterwards.
"""

import os
import shutil
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import pandas as pd
import torch

from ffnrepro.config import Config
from ffnrepro.data.decode import DecodeError, open_video
from ffnrepro.errors import Unfinished, UserError
from ffnrepro.estimate import duration
from ffnrepro.runs import RUNS, RunSettings, run_name
from ffnrepro.training.checkpoints import GENERATIONS, Checkpoints
from ffnrepro.training.devices import check_precision, choose_device
from ffnrepro.training.job import Job, check_splits, train_network
from ffnrepro.training.processes import Processes, check_count
from ffnrepro.training.stopping import StopRequest

PREFETCHED = 2
"""Batches that each loader worker holds ready: PyTorch's default."""

MOST_SECONDS = 60.0
"""Seconds of steps after which no further step is tried, though more were asked for: the machine may be very slow."""


class Check(NamedTuple):
    """Result of one check."""

    good: bool
    text: str


class _SomeSteps(StopRequest):
    """Stops a training after a number of steps, and records when each ended."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.ends: list[float] = []

    def reason(self, reserve: float = 0.0) -> str | None:
        """Why to stop now, or None."""
        self.ends.append(time.perf_counter())
        long = len(self.ends) > 2 and self.ends[-1] - self.ends[0] > MOST_SECONDS
        return "enough" if long or len(self.ends) >= self.steps else super().reason(reserve)


def examine(job: Job, settings: RunSettings, *, steps: int) -> list[Check]:
    """Check what a training needs, and try some steps of it.

    Args:
        job: The training.
        settings: Of its run.
        steps: Steps that are tried; 0: another machine trains, so this machine's device and memory are not checked.
    """
    checks = []
    if steps:
        try:
            device = choose_device(job.runtime.device)
            check_precision(settings.training.precision, device)
            check_count(device, settings.training.gpus)
        except UserError as error:
            return [Check(False, f"device: {error}")]
        checks += [_check_device(device), _check_shared_memory(settings, job.runtime.workers)]
    checks.append(_check_disk(settings, job.state))
    if job.start is not None:
        exists = job.start.exists()
        target = (
            "fetch_weights fetches ImageNet weights" if settings.weights else "train_tsm train_ffn trains it"
        )
        missing = f"does not exist yet; snakemake --cores 1 --until {target}"
        checks.append(Check(exists, f"weights: {job.start} {'exists' if exists else missing}"))
    table = job.manifest / "train.parquet"
    if not table.exists():
        fix = "snakemake --cores 1 --until build_manifest makes it"
        return [*checks, Check(False, f"videos: {table} does not exist yet; {fix}")]
    try:
        check_splits(job.manifest, settings.training.batch_size)
    except UserError as error:
        return [*checks, Check(False, f"videos: {error}")]
    checks.append(_check_decoder(job.videos, table))
    if steps and all(check.good for check in checks):
        checks += _try_steps(job, settings, device, steps)
    return checks


def report(checks: list[Check]) -> str:
    """One line per check.

    Raises:
        UserError: Some failed; the message holds their texts.
    """
    problems = [check.text for check in checks if not check.good]
    if problems:
        raise UserError(f"this training would not run as it is: {'; '.join(problems)}")
    return "\n".join(f"ok  {check.text}" for check in checks)


def configured_job(config: Config, experiment: str) -> Job:
    """The first training of an experiment that the workflow would start here."""
    seed, first, weights = config.seeds[0], config.experiments[experiment].start, config.network.weights
    if first is not None:
        weights = f"{RUNS}/{run_name(config, first)}/seed{seed}/model.pt"
    elif weights == "imagenet":
        weights = f"results/weights/resnet{config.network_of(experiment).depth}.pth"
    return Job(
        run=RUNS / run_name(config, experiment),
        seed=seed,
        videos=Path(config.data.videos),
        start=None if weights is None else Path(weights),
        runtime=config.runtime,
        max_bad_fraction=config.data.max_bad_fraction,
    )


def _check_device(device: torch.device) -> Check:
    if device.type != "cuda":
        cpu = "fine for the demo; the published run needs a GPU"
        return Check(True, f"device: {device.type}, {cpu if device.type == 'cpu' else 'computes in float32'}")
    free, whole = torch.cuda.mem_get_info(device)
    name = torch.cuda.get_device_name(device)
    return Check(True, f"device: {name}, {free / 1e9:.0f} of {whole / 1e9:.0f} GB free")


def _check_shared_memory(settings: RunSettings, workers: int) -> Check:
    """Loader workers hand over their batches in shared memory; a container has 64 MB of it by default."""
    shared = Path("/dev/shm")
    frames = settings.training.batch_size * sum(settings.method.frame_counts)
    # Each process has its part of a batch, and of the workers.
    needed = frames * 3 * settings.crop_size**2 * PREFETCHED * -(-workers // settings.training.gpus)
    if needed == 0 or not shared.exists():
        return Check(True, "shared memory: none needed")
    free = shutil.disk_usage(shared).free
    fix = "" if free >= needed else "; lower runtime.workers, or give the container more (--shm-size)"
    return Check(free >= needed, f"shared memory: {_size(free)} free, {_size(needed)} needed{fix}")


def _check_disk(settings: RunSettings, folder: Path) -> Check:
    with torch.device("meta"):
        network = settings.method.build(174, settings.network)
    # A save holds the network, its momentum and the best network; the next is written before the oldest goes.
    needed = (GENERATIONS + 1) * 3 * 4 * sum(parameter.numel() for parameter in network.parameters())
    existing = _existing(folder)
    if not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            False, f"disk: {existing} may not be written to; change its permissions, or move the folder"
        )
    free = shutil.disk_usage(existing).free
    fix = "" if free >= needed else "; make room, or move the folder"
    return Check(free >= needed, f"disk: {_size(free)} free for {folder}, {_size(needed)} needed{fix}")


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.exists())


def _check_decoder(videos: Path, table: Path) -> Check:
    row = pd.read_parquet(table).iloc[0]
    started = time.perf_counter()
    try:
        reader = open_video(videos / str(row["path"]))
        reader.frames(range(int(row["frames"])))
    except DecodeError as error:
        return Check(False, f"decoder: {error}")
    kind = type(reader).__name__.strip("_").removesuffix("Reader")
    milliseconds = 1000 * (time.perf_counter() - started)
    return Check(True, f"decoder: {kind}, {milliseconds:.0f} ms for {row['frames']} frames")


def _try_steps(job: Job, settings: RunSettings, device: torch.device, steps: int) -> list[Check]:
    # As the training does.
    torch.set_num_threads(job.runtime.threads)
    recipe = settings.training
    per_epoch = len(pd.read_parquet(job.manifest / "train.parquet")) // recipe.batch_size
    # One process is tried, with its part of the batch.
    part = recipe.model_copy(update={"batch_size": recipe.batch_size // recipe.gpus, "gpus": 1})
    stop = _SomeSteps(min(steps, max(1, per_epoch)))
    # Beside the states, so that the save at the end is written where theirs will be.
    beside = _existing(job.state.absolute().parent)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".doctor-") as temporary:
        checkpoints = Checkpoints(
            Path(temporary), run=job.run.name, seed=job.seed, epochs=recipe.epochs, data=job.data
        )
        try:
            tried = settings.model_copy(update={"training": part})
            train_network(job, tried, device, checkpoints, stop, Processes())
        except Unfinished:
            pass
        except torch.OutOfMemoryError:
            return [
                Check(
                    False,
                    f"memory: a batch of {part.batch_size} clips does not fit on the device; take a larger one, or "
                    "lower training.batch_size and training.learning_rate alike (that changes numbers)",
                )
            ]
        except UserError as error:
            return [Check(False, f"step: {error}")]
    checks = []
    if device.type == "cuda":
        memory = torch.cuda.max_memory_reserved(device) / 1e9
        checks.append(Check(True, f"memory: {memory:.1f} GB for a batch"))
    spans = [b - a for a, b in zip(stop.ends, stop.ends[1:], strict=False)]
    if not spans:
        return [*checks, Check(True, "step: one was done; too few videos to tell the time")]
    # The pauses in which data is waited for count, too.
    step = mean(spans)
    frames = recipe.batch_size * sum(settings.method.frame_counts)
    hours = step * per_epoch * recipe.epochs / 3600
    first = "; of the first epoch, which decodes: later ones are quicker" if job.runtime.cache_decoded else ""
    return [
        *checks,
        Check(
            True,
            f"time: {step:.3f} s a step of {recipe.batch_size} clips ({frames / step:.0f} frames/s, {os.cpu_count()} "
            f"cores): about {duration(hours)} for {recipe.epochs} epochs, validation not counted{first}",
        ),
    ]


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
