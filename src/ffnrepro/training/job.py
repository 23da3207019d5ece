"""One training job: from a run folder, a manifest and videos to a trained network's files.

The script of the training rules calls `run_job`; `ffnrepro doctor` tries some steps with `train_network`.
"""

from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from ffnrepro.checks import check_shared_memory, run_checks
from ffnrepro.config import RuntimeSettings, TrainingSettings
from ffnrepro.data.decode import find_decord
from ffnrepro.data.frame_cache import opener
from ffnrepro.data.labels import read_classes
from ffnrepro.errors import PermanentError, UserError
from ffnrepro.files import read_record, replacing, write_json, write_text
from ffnrepro.logs import keep_last_warning, log_to, logger
from ffnrepro.provenance import provenance
from ffnrepro.recipe.clips import ClipDataset
from ffnrepro.recipe.models.tsm import ShiftedResNet
from ffnrepro.recipe.step import precision_on
from ffnrepro.runs import RunSettings, check_key, read_run, state_folder
from ffnrepro.training.checkpoints import Checkpoints
from ffnrepro.training.devices import check_precision, choose_device, place
from ffnrepro.training.loader import VideoBatches
from ffnrepro.training.loop import Trained, train
from ffnrepro.training.processes import Processes, start_processes
from ffnrepro.training.stopping import StopRequest, end_of_job
from ffnrepro.training.validation import validate
from ffnrepro.weights import load_checkpoint, save_checkpoint, start_from, tensors_digest


@dataclass(frozen=True)
class Job:
    """What a training reads and where it writes; also the command line of the training scripts.

    Attributes:
        run: Folder of the run, such as `results/runs/ffn-1a2b3c4d`, with its `settings.json`.
        videos: Folder of the videos; the paths in the manifest are relative to it.
        runtime: Device, cores, workers, and when to save and stop.
        seed: Seed of the training.
        start: Pretrained weights, or the `model.pt` of the run that this run starts from; None: random weights.
        classes: The file `classes.csv`.
        manifest: Folder of the manifest.
        cache_folder: Folder of the frame cache.
        cache_records: Folder of the records of the frame cache.
        state: Folder of all resumable states.
        max_bad_fraction: Fraction of an epoch's samples that may be left out as unreadable.
        recompute: Whether activations are computed again in the backward pass, to save memory. It changes no number.
    """

    run: Path
    videos: Path
    runtime: RuntimeSettings
    seed: int = 0
    start: Path | None = None
    classes: Path = Path("results/labels/classes.csv")
    manifest: Path = Path("results/manifest")
    cache_folder: Path = Path("cache")
    cache_records: Path = Path("results/frame_cache")
    state: Path = Path("state")
    max_bad_fraction: float = 0.01
    recompute: bool = False

    @property
    def data(self) -> str:
        """Digest of the data."""
        return (self.manifest / "manifest.sha256").read_text(encoding="utf-8").strip()

    @property
    def output(self) -> Path:
        """Folder of the finished files."""
        return self.run / f"seed{self.seed}"


def run_job(job: Job) -> None:
    """Train one run and write `model.pt`, `model.sha256`, `history.parquet` and `run.json`.

    Raises:
        PermanentError: too few videos, weights that do not fit, a loss that is not finite, or gradients that overflow float16.
        UserError: no such device, a step that does not fit into the memory of the GPU, no space for the state, code that
            does not match the run's folder, or a state that started from another network.
        Unfinished: the training was stopped, or another process is working on it.
    """
    settings, code = read_run(job.run)
    check_key(job.run, settings)
    recipe, runtime = settings.training, job.runtime
    device = choose_device(runtime.device)
    check_precision(recipe.precision, device)
    # On a cluster, `check_training` has run on another machine.
    run_checks("this training", {"shared memory": partial(check_shared_memory_of, job, settings)})
    torch.set_num_threads(runtime.threads)
    processes, device = start_processes(device, recipe.gpus)
    # The digest of pretrained weights is already part of the run's key.
    start = tensors_digest(load_checkpoint(job.start).state_dict()) if job.start and settings.start else None
    # All this is read before the training, because checkout and data may change during it.
    made_here = {
        "code": code,
        "precision": precision_on(device, recipe.precision),
        "start": job.start and str(job.start),
        "start_model": start,
        **provenance(device),
    }
    data = job.data
    videos = len(pd.read_parquet(job.manifest / "train.parquet", columns=["id"]))
    checkpoints = Checkpoints(
        state_folder(job.state, job.run.name, job.seed, data),
        run=job.run.name,
        seed=job.seed,
        epochs=recipe.epochs,
        data=data,
        start=start,
        save_minutes=runtime.save_minutes,
    )
    with ExitStack() as stack:
        # This comes first, so that a signal is only noted until the lease is released.
        stop = stack.enter_context(StopRequest(end_of_job(runtime.time_budget)))
        if processes.first:
            stack.enter_context(checkpoints.held(partial(stop.check, job.run.name)))
            # Snakemake deletes a job's own log before each attempt.
            log_to(checkpoints.folder / "log.txt", mode="a")
            keep_last_warning(checkpoints.folder / "warning.json")
            stop.announce()
        processes.wait()
        model, trained = train_network(job, settings, device, checkpoints, stop, processes)
    if processes.first:
        _write_results(
            job, settings, checkpoints, model, trained, made_here, {"data": data, "videos": videos}
        )
    processes.end()


def _write_results(
    job: Job,
    settings: RunSettings,
    checkpoints: Checkpoints,
    model: nn.Module,
    trained: Trained,
    made_here: Mapping[str, Any],
    data: Mapping[str, Any],
) -> None:
    """Write the files of a finished training.

    Args:
        job: the files of the training.
        settings: settings of the run.
        checkpoints: saves of the training.
        model: the network, which gets the weights of the best epoch.
        trained: result of the training.
        made_here: record of the code, the machine and the initial weights.
        data: record of the data.
    """
    model.load_state_dict(trained.best_model)
    save_checkpoint(
        job.output / "model.pt",
        model,
        class_names=read_classes(job.classes),
        dataset=settings.dataset,
        train_frames=settings.method.train_frames,
        sizes=(settings.short_side, settings.crop_size),
    )
    digest = tensors_digest(trained.best_model)
    write_text(job.output / "model.sha256", digest + "\n")
    made_with = read_record(checkpoints.folder / "made_with.json")
    # A network that is only restored was made earlier, perhaps on another machine.
    if made_with.get("model") != digest:
        made_with = {"model": digest, **made_here}
        write_json(checkpoints.folder / "made_with.json", made_with)
    history = pd.DataFrame(trained.history)
    with replacing(job.output / "history.parquet") as temporary:
        history.to_parquet(temporary, index=False)
    scores = history.filter(like="validation_")
    write_json(
        job.output / "run.json",
        {
            "run": job.run.name,
            "seed": job.seed,
            "settings": settings.model_dump(mode="json"),
            **data,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            **made_with,
            "best_epoch": trained.best_epoch,
            "best": scores.iloc[trained.best_epoch - 1].to_dict(),
            "last": scores.iloc[-1].to_dict(),
            "wall_seconds": history["seconds"].sum(),
        },
    )


def check_shared_memory_of(job: Job, settings: RunSettings) -> str:
    """Check the shared memory of this machine for a training.

    Raises:
        UserError: There is too little.
    """
    recipe = settings.training
    # During validation the workers hold its clips and the first ones of the next epoch.
    clips = recipe.batch_size + recipe.gpus * (recipe.micro_batch or recipe.batch_size // recipe.gpus)
    # The processes share the batch and the workers.
    return check_shared_memory(
        frames=clips * sum(settings.method.frame_counts),
        size=settings.crop_size,
        workers=-(-job.runtime.workers // recipe.gpus),
    )


def train_network(
    job: Job,
    settings: RunSettings,
    device: torch.device,
    checkpoints: Checkpoints,
    stop: StopRequest,
    processes: Processes,
) -> tuple[nn.Module, Trained]:
    """Build the network, start it from its weights, and train it.

    Args:
        job: the files of the training.
        settings: settings of the run.
        device: device of the network.
        checkpoints: saves that the training continues from and adds to.
        stop: request to stop, which is checked after each step.
        processes: processes that share each batch.

    Raises:
        PermanentError: too few videos, weights that do not fit, a loss that is not finite, or gradients that overflow float16.
        UserError: a step does not fit into the memory of the GPU.
        Unfinished: the training was stopped.
    """
    # A setting that has no effect is set to its default, so that one key stands for one network.
    settings = settings.effective()
    recipe, name = settings.training, job.run.name
    check_splits(job.manifest, recipe.batch_size)
    if (job.start is None) != (settings.weights is None and settings.start is None):
        raise UserError(
            f"{job.run}: settings.json and the option --start disagree about the initial weights; run snakemake again"
        )
    model = settings.method.build_seeded(len(pd.read_csv(job.classes)), settings.network, job.seed)
    if job.start is not None:
        try:
            started = start_from(model, job.start, digest=settings.weights)
        except UserError as error:
            raise PermanentError(str(error)) from error
        if processes.first and not checkpoints.generations():
            logger.info("%s: %s", name, started)
    place(model, device)
    # Here, so that a broken decord gives a single warning, and not one in each worker.
    find_decord()
    for part in model.modules():
        if isinstance(part, ShiftedResNet):
            part.recompute = job.recompute
    clips = recipe.batch_size // processes.count

    def make_loader(split: str, crop: Any, max_bad_fraction: float | None) -> VideoBatches:
        manifest = pd.read_parquet(job.manifest / f"{split}.parquet")
        dataset = ClipDataset(
            manifest=manifest,
            videos=job.videos,
            open_video=opener(
                settings.cache,
                quality=settings.jpeg_quality,
                folder=job.cache_folder / split,
                records=job.cache_records / split,
                paths=manifest["path"],
            ),
            frame_counts=settings.method.frame_counts,
            size=settings.crop_size,
            short_side=settings.short_side,
            crop=crop,
            flip=recipe.flip,
            seed=job.seed,
            cache=job.runtime.cache_decoded,
        )
        return VideoBatches(
            dataset,
            workers=-(-job.runtime.workers // processes.count),
            pin_memory=device.type == "cuda",
            max_bad_fraction=max_bad_fraction,
        )

    with (
        closing(make_loader("train", recipe.crop, job.max_bad_fraction)) as loader,
        closing(make_loader("validation", "centre", None)) as validation,
    ):
        try:
            trained = train(
                model=model,
                method=settings.method,
                settings=recipe,
                loader=loader,
                validate=partial(
                    validate,
                    loader=validation,
                    frame_counts=settings.method.frame_counts,
                    batch_size=recipe.micro_batch or clips,
                    device=device,
                    stop_reason=stop.reason,
                    processes=processes,
                    name=f"{name}, validation",
                ),
                seed=job.seed,
                device=device,
                processes=processes,
                checkpoints=checkpoints,
                stop=stop,
                name=name,
            )
        except torch.OutOfMemoryError as error:
            raise UserError(f"{name}: {_memory_advice(recipe, clips, job.recompute, device)}") from error
    return model, trained


def _memory_advice(recipe: TrainingSettings, clips: int, recompute: bool, device: torch.device) -> str:
    """Advice for a step of this many clips in one process that does not fit into the memory of its GPU."""
    held = ""
    if device.type == "cuda":
        own, whole = torch.cuda.memory_reserved(device), torch.cuda.mem_get_info(device)[1]
        held = f", of which this process holds {own / 2**30:.1f} of {whole / 2**30:.1f} GiB"
    together = recipe.micro_batch or clips
    advice = []
    if not recompute:
        advice.append("set training.recompute: true, which changes no number (this training continues)")
    if together > 1:
        advice.append(
            f"set training.micro_batch: {min(16, together // 2)}, which is another training (BatchNorm sees that many clips)"
        )
    advice.append("use more GPUs (training.gpus) or larger ones")
    return (
        f"a step of {clips} clips does not fit into the memory of the GPU{held}; {', or '.join(advice)}; now "
        f"training.recompute is {str(recompute).lower()} and training.micro_batch {recipe.micro_batch or 'null'}; "
        "docs/performance.md says what fits"
    )


def check_splits(manifest: Path, batch_size: int) -> None:
    """Refuse splits without videos to train on or to validate on.

    Args:
        manifest: folder of the manifest.
        batch_size: videos per step; an incomplete batch is dropped.

    Raises:
        PermanentError: too few videos.
    """
    train, validation = (manifest / f"{split}.parquet" for split in ("train", "validation"))
    count = len(pd.read_parquet(train, columns=["id"]))
    if not count:
        raise PermanentError(
            f"{train}: no videos to train on; add the label file of the training split to the folder data.labels"
        )
    if count < batch_size:
        raise PermanentError(
            f"{train}: {count} videos do not fill a batch of training.batch_size {batch_size}; lower training.batch_size, or "
            "add videos"
        )
    if not len(pd.read_parquet(validation, columns=["id"])):
        raise PermanentError(
            f"{validation}: no videos, but validation chooses the best epoch; add validation videos, or see in "
            f"{manifest / 'excluded.csv'} why they are left out"
        )
