"""`ffnrepro doctor`: check whether a training would run on this machine, and for how long, before it is queued.

It checks device, shared memory, decoder, weights and disk, and then trains for some steps, with the same loop and on the
same videos as the real training, in a temporary folder.
"""

import os
import tempfile
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import mean

import pandas as pd
import torch

from ffnrepro.checks import (
    check_disk,
    check_folder_of_videos,
    existing,
    run_checks,
    size_text,
)
from ffnrepro.config import Config
from ffnrepro.data.frame_cache import opener
from ffnrepro.errors import Unfinished, UserError
from ffnrepro.estimate import duration, estimate
from ffnrepro.runs import RUNS, RunSettings, run_name, start_path
from ffnrepro.training.checkpoints import GENERATIONS, Checkpoints
from ffnrepro.training.devices import check_precision, choose_device
from ffnrepro.training.job import Job, check_shared_memory_of, check_splits, train_network
from ffnrepro.training.processes import Processes, check_count
from ffnrepro.training.stopping import StopRequest
from ffnrepro.weights import check_start

MOST_SECONDS = 60.0
"""Seconds after which no further step is tried, because the machine may be very slow."""


class _SomeSteps(StopRequest):
    """Stops a training after a number of steps, and records when each ended."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.ends: list[float] = []

    def reason(self, reserve: float = 0.0) -> str | None:
        """The reason to stop now, or None."""
        self.ends.append(time.perf_counter())
        long = len(self.ends) > 2 and self.ends[-1] - self.ends[0] > MOST_SECONDS
        return "enough" if long or len(self.ends) >= self.steps else super().reason(reserve)


def examine(job: Job, settings: RunSettings, *, steps: int) -> str:
    """Check what a training needs, try some steps of it, and return one line for each check.

    Args:
        job: The training.
        settings: Settings of its run.
        steps: Number of steps to try; 0: another machine trains, so this machine's device and memory are not checked.

    Raises:
        UserError: The training would not run; the message holds all problems, with their fixes.
    """
    checks = {"disk": _check_disk, "weights": _check_weights, "videos": _check_videos}
    if job.runtime.device != "cpu":
        checks["hours"] = _estimate_hours
    if steps:
        checks = {"device": _check_device, "shared memory": check_shared_memory_of, **checks}
    lines = run_checks(
        "this training", {name: partial(check, job, settings) for name, check in checks.items()}
    )
    if steps:
        lines.append(f"ok  steps: {_try_steps(job, settings, steps)}")
    return "\n".join(lines)


def configured_job(config: Config, experiment: str) -> Job:
    """The first training that the workflow would start for an experiment."""
    return Job(
        run=RUNS / run_name(config, experiment),
        seed=config.seeds[0],
        videos=Path(config.data.videos),
        start=start_path(config, experiment, config.seeds[0]),
        runtime=config.runtime,
        cache_folder=Path(config.data.cache_folder),
        max_bad_fraction=config.data.max_bad_fraction,
        recompute=config.recompute_of(experiment),
    )


def _check_device(job: Job, settings: RunSettings) -> str:
    device = choose_device(job.runtime.device)
    check_precision(settings.training.precision, device)
    check_count(device, settings.training.gpus)
    if device.type != "cuda":
        return (
            f"{device.type}, which computes in float32; fine for the demo, but the published run needs a GPU"
        )
    free, whole = torch.cuda.mem_get_info(device)
    return f"{torch.cuda.get_device_name(device)}, {size_text(free)} of {size_text(whole)} free"


def _check_disk(job: Job, settings: RunSettings) -> str:
    with torch.device("meta"):
        network = settings.method.build(174, settings.network)
    # A save holds the network, its momentum and the best network; a new save is written before the oldest is deleted.
    needed = (GENERATIONS + 1) * 3 * 4 * sum(parameter.numel() for parameter in network.parameters())
    return check_disk(job.state, needed)


def _check_weights(job: Job, settings: RunSettings) -> str:
    if job.start is None:
        return "none"
    if not job.start.exists():
        if settings.weights and job.start.parent != Path("results/weights"):
            raise UserError(f"{job.start}: no such file; set network.weights to a file, imagenet or null")
        rules = "fetch_weights" if settings.weights else "train_tsm train_ffn import_checkpoint"
        raise UserError(f"{job.start} does not exist yet; snakemake --cores 1 --until {rules} makes it")
    if settings.weights is None:
        return f"{job.start} exists"
    return check_start(job.start, settings.network, digest=settings.weights)


def _check_videos(job: Job, settings: RunSettings) -> str:
    table = job.manifest / "train.parquet"
    if not table.exists():
        raise UserError(f"{table} does not exist yet; snakemake --cores 1 --until build_manifest makes it")
    check_splits(job.manifest, settings.training.batch_size)
    check_folder_of_videos(job.videos)
    row = pd.read_parquet(table).iloc[0]
    open_frames = opener(
        settings.cache,
        quality=settings.jpeg_quality,
        folder=job.cache_folder / "train",
        records=job.cache_records / "train",
        paths=[row["path"]],
    )
    started = time.perf_counter()
    reader = open_frames(job.videos / str(row["path"]))
    reader.frames(range(int(row["frames"])))
    milliseconds = 1000 * (time.perf_counter() - started)
    decoder = type(reader).__name__.strip("_").removesuffix("Reader")
    return f"{decoder} takes {milliseconds:.0f} ms for {row['frames']} frames"


def _estimate_hours(job: Job, settings: RunSettings) -> str:
    table = job.manifest / "train.parquet"
    videos = len(pd.read_parquet(table, columns=["id"])) if table.exists() else None
    hours, basis = estimate(settings, videos=videos, cores=job.runtime.threads, gpu=True, past=None)
    return basis if hours is None else f"about {duration(hours, gpu=True)} {basis}"


def _try_steps(job: Job, settings: RunSettings, steps: int) -> str:
    device = choose_device(job.runtime.device)
    # The same number of threads as in the training.
    torch.set_num_threads(job.runtime.threads)
    recipe = settings.training
    per_epoch = len(pd.read_parquet(job.manifest / "train.parquet")) // recipe.batch_size
    # Only one process is tried, with its part of the batch.
    part = recipe.model_copy(update={"batch_size": recipe.batch_size // recipe.gpus, "gpus": 1})
    tried = settings.model_copy(update={"training": part})
    stop = _SomeSteps(min(steps, per_epoch))
    # The folder is next to the states, so that the save at the end is written to the same disk.
    beside = existing(job.state.absolute().parent)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".doctor-") as temporary, suppress(Unfinished):
        checkpoints = Checkpoints(
            Path(temporary), run=job.run.name, seed=job.seed, epochs=recipe.epochs, data=job.data
        )
        train_network(job, tried, device, checkpoints, stop, Processes())
    # The time spent waiting for data counts, too.
    spans = [b - a for a, b in zip(stop.ends, stop.ends[1:], strict=False)]
    if not spans:
        return "one was done; there are too few videos to measure the time"
    step = mean(spans)
    rate = recipe.batch_size * sum(settings.method.frame_counts) / step
    memory = f"{size_text(torch.cuda.max_memory_reserved(device))}, " if device.type == "cuda" else ""
    first = (
        "; measured in the first epoch, later epochs need no decoding" if job.runtime.cache_decoded else ""
    )
    return (
        f"{memory}{step:.3f} s per step of {recipe.batch_size} videos ({rate:.0f} frames/s, {os.cpu_count()} cores): about "
        f"{duration(step * per_epoch * recipe.epochs / 3600)} for {recipe.epochs} epochs, validation not counted{first}"
    )
