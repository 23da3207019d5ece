"""The training loop (section 4.1): one function, to be read from top to bottom."""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.utils.tensorboard.writer import SummaryWriter
from tqdm import tqdm

from ffnrepro.data.dataset import EpochSampler
from ffnrepro.data.loading import VideoBatches
from ffnrepro.data.transforms import normalise
from ffnrepro.errors import UserError
from ffnrepro.losses import Loss
from ffnrepro.metrics import correct_within, top_k
from ffnrepro.state import StateDirectory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a finished training gives.

    Attributes:
        history: one row an epoch.
        best_epoch: counted from 1.
        best_model: state dict of that epoch's network, on the CPU.
    """

    history: list[dict[str, float]]
    best_epoch: int
    best_model: dict[str, Tensor]


def to_device(clips: Tensor | Sequence[Tensor], device: torch.device) -> Tensor | list[Tensor]:
    """Move uint8 clips to the device and normalise them there: a quarter of the bytes travels."""
    if isinstance(clips, Tensor):
        return normalise(clips.to(device, non_blocking=True))
    return [normalise(clip.to(device, non_blocking=True)) for clip in clips]


def train(
    *,
    model: nn.Module,
    batches: VideoBatches,
    compute_loss: Callable[[Any, Tensor], Loss],
    optimizer: torch.optim.Optimizer,
    learning_rate_factor: Callable[[float], float],
    validate: Callable[[nn.Module], dict[str, float]],
    select_by: str,
    epochs: int,
    clip_norm: float | None,
    mixed_precision: bool,
    seed: int,
    device: torch.device,
    state: StateDirectory,
    name: str,
) -> Trained:
    """Train to the last epoch, from the saved state where there is one.

    Args:
        model: on the device.
        batches: training batches; its sampler is an `EpochSampler` and the last, incomplete batch is dropped.
        compute_loss: (output of the model, labels) -> loss.
        optimizer: its groups carry `base_lr`.
        learning_rate_factor: epochs done, with fractions -> factor on `base_lr`.
        validate: network -> scores, by name.
        select_by: the score that chooses the best epoch.
        epochs: in all.
        clip_norm: bound of the gradient's norm, taken after unscaling; None leaves it alone.
        mixed_precision: float16 autocast and loss scaling, on CUDA only.
        seed: of dropout, with the epoch.
        device: where the model is.
        state: saved at the end of each epoch.
        name: of the experiment, for progress and log.

    Raises:
        UserError: the loss is not finite.
    """
    sampler = batches.sampler
    assert isinstance(sampler, EpochSampler)
    amp = mixed_precision and device.type == "cuda"
    scaler = torch.amp.GradScaler(device.type, enabled=amp)
    history: list[dict[str, float]] = []
    best: dict[str, Any] = {}

    if (saved := state.load()) is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        scaler.load_state_dict(saved["scaler"])
        history, best = saved["history"], saved["best"]
        logger.info("%s: continues after epoch %d of %d", name, len(history), epochs)

    for epoch in range(len(history), epochs):
        # The epoch's randomness is a function of (seed, epoch), so a resumed run draws what an unbroken one drew.
        torch.manual_seed(seed * 1_000_003 + epoch)
        sampler.set_epoch(epoch)
        model.train()
        started = time.perf_counter()
        sums: defaultdict[str, float] = defaultdict(float)
        samples = correct = frames = 0

        bar = tqdm(batches, desc=f"{name} {epoch + 1}/{epochs}", leave=False, disable=None, unit="step")
        for step, (clips, labels) in enumerate(bar):
            factor = learning_rate_factor(epoch + step / len(batches))
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            inputs, targets = to_device(clips, device), labels.to(device, non_blocking=True)

            with torch.autocast(device.type, dtype=torch.float16, enabled=amp):
                output = model(inputs)
            loss = compute_loss(output, targets)
            total = loss.total.item()
            if not math.isfinite(total):
                raise UserError(
                    f"{name}: the loss is {total} at epoch {epoch + 1}, step {step + 1}; lower "
                    f"training.learning_rate, or set training.mixed_precision: false. {state.file} holds the "
                    f"state after epoch {epoch}"
                )
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss.total).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            if clip_norm is not None:
                clip_grad_norm_(model.parameters(), clip_norm)
            scaler.step(optimizer)
            scaler.update()

            samples += len(labels)
            frames += sum(
                len(clip) * clip.shape[2] for clip in ([clips] if isinstance(clips, Tensor) else clips)
            )
            correct += correct_within(top_k(loss.logits, 1)[1], targets, 1)
            sums["loss"] += total * len(labels)
            for part, value in loss.parts.items():
                sums[part] += value.item() * len(labels)
            bar.set_postfix(loss=f"{total:.3f}", refresh=False)

        seconds = time.perf_counter() - started
        scores = validate(model)
        row = {
            "epoch": epoch + 1,
            "learning_rate": optimizer.param_groups[0]["lr"],
            **{f"train_{part}": value / samples for part, value in sums.items()},
            "train_top1": 100 * correct / samples,
            "bad_videos": batches.bad_videos,
            **{f"validation_{score}": value for score, value in scores.items()},
            "seconds": time.perf_counter() - started,
            "frames_per_second": frames / seconds,
        }
        history.append(row)
        if not best or scores[select_by] > best["score"]:
            best = {
                "epoch": epoch + 1,
                "score": scores[select_by],
                "model": {key: value.detach().cpu().clone() for key, value in model.state_dict().items()},
            }
        state.save(
            {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "scaler": scaler.state_dict(),
                "history": history,
                "best": best,
            }
        )
        _write_scalars(state, row)
        logger.info("%s", epoch_line(name, epochs, row))

    return Trained(history, best["epoch"], best["model"])


def epoch_line(name: str, epochs: int, row: dict[str, float]) -> str:
    """One line that tells of an epoch."""
    scores = " ".join(
        f"{key.removeprefix('validation_top1_')} {value:.1f}"
        for key, value in row.items()
        if key.startswith("validation_top1_")
    )
    return (
        f"{name}: epoch {row['epoch']:.0f}/{epochs}, loss {row['train_loss']:.3f}, top-1 train "
        f"{row['train_top1']:.1f}, validation {scores}, {row['frames_per_second']:.0f} frames/s, "
        f"{row['seconds']:.0f} s"
    )


def _write_scalars(state: StateDirectory, row: dict[str, float]) -> None:
    with SummaryWriter(str(state.path / "tensorboard")) as writer:
        for key, value in row.items():
            if key != "epoch":
                writer.add_scalar(key.replace("_", "/", 1), value, int(row["epoch"]))
