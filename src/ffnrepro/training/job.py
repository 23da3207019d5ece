"""One experiment, wired: from a manifest and settings to a trained network's files.

The scripts of the training rules call `run_experiment`.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import SequentialSampler

from ffnrepro.decides import training_decides
from ffnrepro.errors import PermanentError, UserError
from ffnrepro.evaluation import score
from ffnrepro.files import replacing, write_json, write_text
from ffnrepro.logs import also_log_to
from ffnrepro.provenance import provenance
from ffnrepro.recipe.clips import ClipDataset, EpochSampler, FrameCountsDataset
from ffnrepro.recipe.losses import Loss, classification_loss, frame_flexible_loss
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.recipe.optim import learning_rate_factor, parameter_groups
from ffnrepro.training.checkpoints import StateDirectory
from ffnrepro.training.devices import check_precision, choose_device, place, precision_on
from ffnrepro.training.loader import VideoBatches
from ffnrepro.training.loop import Trained, train
from ffnrepro.training.processes import Processes, start_processes
from ffnrepro.training.stopping import StopRequest, end_of_job
from ffnrepro.weights import load_pretrained, save_checkpoint, tensors_digest


def training_parser(description: str) -> argparse.ArgumentParser:
    """Command line of the training scripts; `settings` is `config.training_settings` as JSON."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--name", required=True, help="of the experiment")
    parser.add_argument("--settings", required=True, type=json.loads, help="what decides the result, as JSON")
    parser.add_argument("--classes", required=True, type=Path, help="classes.csv")
    parser.add_argument("--manifest", required=True, type=Path, help="folder of the manifest")
    parser.add_argument(
        "--videos", required=True, type=Path, help="folder that the manifest's paths start from"
    )
    parser.add_argument(
        "--weights", type=Path, help="pretrained weights; without them training starts at random"
    )
    parser.add_argument("--state", required=True, type=Path, help="folder of resumable states")
    parser.add_argument("--output", required=True, type=Path, help="where the finished files go")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--threads", type=int, default=1, help="CPU cores of the computation")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode")
    parser.add_argument(
        "--max-bad-fraction", type=float, default=0.01, help="of an epoch, that may be left out as unreadable"
    )
    parser.add_argument("--cache-decoded", action="store_true", help="keep decoded clips in memory")
    parser.add_argument("--save-minutes", type=float, default=10.0, help="between two saves within an epoch")
    parser.add_argument("--time-budget", type=float, help="minutes after which to save and stop, unfinished")
    parser.add_argument("--log", type=Path)
    return parser


def build_network(settings: dict[str, Any], classes: int) -> TSM | FrameFlexibleNetwork:
    """The network of an experiment, drawn from torch's seeded generator.

    Args:
        settings: of `config.training_settings`.
        classes: number of classes.
    """
    if settings["method"] == "tsm":
        return TSM(classes=classes, **settings["network"])
    return FrameFlexibleNetwork(
        classes=classes,
        frame_counts=settings["train_frames"],
        training_shift=settings["training_shift"],
        adapter_init=settings["adapter_init"],
        **settings["network"],
    )


def loss_of(settings: dict[str, Any]) -> Callable[[Any, Tensor], Loss]:
    """The loss of an experiment: (output of the network, labels) -> loss."""
    if settings["method"] == "tsm":
        return classification_loss
    return partial(
        frame_flexible_loss,
        frame_counts=settings["train_frames"],
        distillation_weight=settings["distillation_weight"],
    )


def check_splits(manifest: Path, batch_size: int) -> None:
    """Refuse splits that nothing can be trained on, or scored on.

    Args:
        manifest: folder of the manifest.
        batch_size: of a step; an incomplete batch is dropped.

    Raises:
        PermanentError: too few videos.
    """
    train, validation = (manifest / f"{split}.parquet" for split in ("train", "validation"))
    if (count := len(pd.read_parquet(train, columns=["id"]))) < batch_size:
        raise PermanentError(
            f"{train}: {count} videos do not fill one batch of training.batch_size {batch_size}; lower it, or add videos"
        )
    if not len(pd.read_parquet(validation, columns=["id"])):
        raise PermanentError(
            f"{validation}: no videos, and validation chooses the best epoch; label some of the videos for it, or see in "
            f"{manifest / 'excluded.csv'} why they are left out"
        )


def run_experiment(arguments: argparse.Namespace, script: Path) -> None:
    """Train one experiment and write `model.pt`, `model.sha256`, `history.parquet` and `run.json`.

    Args:
        arguments: of `training_parser`.
        script: that calls this.

    Raises:
        PermanentError: too few videos, unfit weights, a loss that is not finite, gradients that float16 does not hold.
        UserError: no such device, no room for the state.
        Unfinished: stopped in time, or another process is at work on the same training.
    """
    settings: dict[str, Any] = arguments.settings
    recipe: dict[str, Any] = settings["training"]
    decides = training_decides(script, settings, manifest=arguments.manifest, weights=arguments.weights)
    state = StateDirectory(
        arguments.state,
        decides,
        about={"experiment": arguments.name, "seed": settings["seed"], "epochs": recipe["epochs"]},
        save_minutes=arguments.save_minutes,
    )
    device = choose_device(arguments.device)
    check_precision(recipe["precision"], device)
    torch.set_num_threads(arguments.threads)
    processes, device = start_processes(device, recipe["gpus"])
    made_here = provenance(device)  # now: while it trains, the checkout may move on
    with ExitStack() as stack:
        # First, so that a signal is only noted until the lease is given back.
        stop = stack.enter_context(StopRequest(end_of_job(arguments.time_budget)))
        if processes.first:
            stack.enter_context(state.held(partial(stop.check, arguments.name)))
            also_log_to(state.path / "log.txt")
            stop.announce()
        processes.wait()
        model, trained = train_experiment(arguments, device, state, stop, processes)
    if processes.first:
        model.load_state_dict(trained.best_model)
        save_checkpoint(arguments.output / "model.pt", model)
        digest = tensors_digest(trained.best_model)
        write_text(arguments.output / "model.sha256", digest + "\n")
        made_with = state.path / "made_with.json"
        # A network that is only written out again was not made here and now.
        if not made_with.exists() or json.loads(made_with.read_text(encoding="utf-8"))["model"] != digest:
            write_json(
                made_with,
                {"model": digest, "precision": precision_on(device, recipe["precision"]), **made_here},
            )
        write_record(
            arguments,
            trained,
            {
                **decides,
                "state": state.key,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                **json.loads(made_with.read_text(encoding="utf-8")),
            },
        )
    processes.end()


def train_experiment(
    arguments: argparse.Namespace,
    device: torch.device,
    state: StateDirectory,
    stop: StopRequest,
    processes: Processes,
) -> tuple[TSM | FrameFlexibleNetwork, Trained]:
    """Wire one experiment and train it.

    Args:
        arguments: of `training_parser`.
        device: that computes.
        state: that it continues from and saves to.
        stop: asked after each step.
        processes: that share each batch.

    Raises:
        PermanentError: too few videos, unfit weights, a loss that is not finite, gradients that float16 does not hold.
        Unfinished: asked to stop.
    """
    settings: dict[str, Any] = arguments.settings
    recipe: dict[str, Any] = settings["training"]
    frame_counts: list[int] = settings["train_frames"]
    check_splits(arguments.manifest, recipe["batch_size"])
    classes = len(pd.read_csv(arguments.classes))
    torch.manual_seed(settings["seed"])
    model = build_network(settings, classes)
    if arguments.weights is not None:
        try:
            load_pretrained(model, arguments.weights)
        except UserError as error:
            raise PermanentError(str(error)) from error
    place(model, device)

    loader = partial(_loader, settings=settings, arguments=arguments, device=device, processes=processes)
    groups = parameter_groups(
        model, learning_rate=recipe["learning_rate"], weight_decay=recipe["weight_decay"]
    )
    with (
        closing(loader("train", crop=recipe["crop"])) as batches,
        closing(loader("validation", crop="centre")) as validation,
    ):
        trained = train(
            model=model,
            batches=batches,
            compute_loss=loss_of(settings),
            optimizer=torch.optim.SGD(groups, momentum=recipe["momentum"]),
            learning_rate_factor=partial(
                learning_rate_factor,
                epochs=recipe["epochs"],
                schedule=recipe["schedule"],
                milestones=recipe["milestones"],
                warmup_epochs=recipe["warmup_epochs"],
            ),
            validate=partial(
                score,
                batches=validation,
                frame_counts=frame_counts,
                device=device,
                stop_reason=stop.reason,
                total=processes.total,
                name=f"{arguments.name}, validation",
            ),
            select_by=f"top1_{frame_counts[-1]}f",
            epochs=recipe["epochs"],
            clip_norm=recipe["clip_norm"],
            batchnorm_clips=recipe["batchnorm_clips"],
            precision=recipe["precision"],
            seed=settings["seed"],
            device=device,
            processes=processes,
            state=state,
            stop=stop,
            name=arguments.name,
        )
    return model, trained


def write_record(arguments: argparse.Namespace, trained: Trained, record: dict[str, Any]) -> None:
    """Write `history.parquet` and `run.json`: what is known of a trained network.

    Args:
        arguments: of `training_parser`.
        trained: the training.
        record: what decided it, the network's digest and size, and what it was made with.
    """
    history = pd.DataFrame(trained.history)
    scores = history.filter(like="validation_")
    with replacing(arguments.output / "history.parquet") as temporary:
        history.to_parquet(temporary, index=False)
    write_json(
        arguments.output / "run.json",
        {
            "experiment": arguments.name,
            **record,
            "best_epoch": trained.best_epoch,
            "best": scores.iloc[trained.best_epoch - 1].to_dict(),
            "last": scores.iloc[-1].to_dict(),
            "wall_seconds": history["seconds"].sum(),
        },
    )


def _loader(
    split: str,
    *,
    crop: str,
    settings: dict[str, Any],
    arguments: argparse.Namespace,
    device: torch.device,
    processes: Processes,
) -> VideoBatches:
    """This process's batches of a split: shuffled and whole in training, in order and complete in validation."""
    manifest = pd.read_parquet(arguments.manifest / f"{split}.parquet")
    batch_size = settings["training"]["batch_size"]
    frame_counts = settings["train_frames"]
    training = split == "train"
    if not training:
        manifest = manifest.iloc[processes.rank :: processes.count]
    common: dict[str, Any] = {
        "manifest": manifest,
        "videos": arguments.videos,
        "size": settings["crop_size"],
        "short_side": settings["short_side"],
        "crop": crop,
        "seed": settings["seed"],
        "cache": arguments.cache_decoded,
    }
    dataset = (
        ClipDataset(frames=frame_counts[0], **common)
        if len(frame_counts) == 1
        else FrameCountsDataset(frame_counts=frame_counts, **common)
    )
    return VideoBatches(
        dataset,
        batch_size=batch_size // processes.count,
        sampler=EpochSampler(
            len(manifest),
            seed=settings["seed"],
            batch_size=batch_size,
            rank=processes.rank,
            processes=processes.count,
        )
        if training
        else SequentialSampler(dataset),
        drop_last=training,
        workers=-(-arguments.workers // processes.count),
        pin_memory=device.type == "cuda",
        max_bad_fraction=arguments.max_bad_fraction if training else None,
    )
