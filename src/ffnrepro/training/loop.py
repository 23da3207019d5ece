"""The training loop (section 4.1): one function, to be read from top to bottom."""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, get_total_norm
from tqdm import tqdm

from ffnrepro.errors import PermanentError, Unfinished
from ffnrepro.recipe.clips import EpochSampler
from ffnrepro.recipe.losses import Loss
from ffnrepro.recipe.models.grouped_forward import forward_in_groups
from ffnrepro.recipe.scoring import correct_within, top_k
from ffnrepro.recipe.transforms import normalise
from ffnrepro.training.checkpoints import StateDirectory
from ffnrepro.training.devices import move, precision_on
from ffnrepro.training.loader import VideoBatches
from ffnrepro.training.processes import Processes
from ffnrepro.training.progress import epoch_line, warn_of_norms, warnings, write_scalars
from ffnrepro.training.stopping import StopRequest

logger = logging.getLogger(__name__)


TIMES = ("seconds", "frames_per_second", "data_wait")
"""Columns of the history that are not the same when a run is repeated."""

SMALLEST_SCALE = 2.0**-10
"""Of the loss, with float16: it starts at 2^16, is halved at each skipped step, and is mostly far above 1."""


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
    if not isinstance(clips, Tensor):
        return [normalise(move(clip, device)) for clip in clips]
    return normalise(move(clips, device))


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
    batchnorm_clips: int | None,
    precision: str,
    seed: int,
    device: torch.device,
    processes: Processes,
    state: StateDirectory,
    stop: StopRequest,
    name: str,
) -> Trained:
    """Train to the last epoch, from the saved state where there is one.

    A run that is interrupted at any moment and continued gives the same tensors and the same history (`TIMES`
    apart) as one that is not: a sample is a function of (seed, epoch, index), a step's dropout of (seed, epoch,
    step), and everything else is in the state.

    Args:
        model: on the device.
        batches: this process's part of the training batches; its sampler is an `EpochSampler` and the last, incomplete batch is dropped.
        compute_loss: (output of the model, labels) -> loss.
        optimizer: its groups carry `base_lr`.
        learning_rate_factor: epochs done, with fractions -> factor on `base_lr`.
        validate: network -> scores, by name, the same in all processes.
        select_by: the score that chooses the best epoch.
        epochs: in all.
        clip_norm: bound of the gradient's norm, taken after unscaling; None leaves it alone.
        batchnorm_clips: clips that are normalised together; None: all of a step.
        precision: float16 (with loss scaling), bfloat16 or float32, of the forward pass on CUDA; elsewhere it is float32.
        seed: of dropout, with epoch and step.
        device: where the model is.
        processes: that share each batch.
        state: saved every so many minutes, at the end of each epoch, and before an early stop.
        stop: asked after each step.
        name: of the experiment, for progress and log.

    Raises:
        PermanentError: the loss is not finite, or float16 does not hold the gradients.
        Unfinished: asked to stop, in any of the processes; the state is saved.
    """
    sampler = batches.sampler
    assert isinstance(sampler, EpochSampler)
    precision = precision_on(device, precision)
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")
    history: list[dict[str, float]] = []
    best: dict[str, Any] = {}
    first_step = 0
    losses: defaultdict[str, float] = defaultdict(float)  # sums over the samples of an epoch
    counts: defaultdict[str, float] = defaultdict(float)

    def save(epoch: int, step: int) -> None:
        sums = {"losses": processes.total(losses), "counts": processes.total(counts)}
        if processes.first:
            state.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "scaler": scaler.state_dict(),
                    "epoch": epoch,
                    "step": step,
                    **sums,
                    "history": history,
                    "best": best,
                }
            )

    if (saved := state.load()) is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        if saved["scaler"] and scaler.is_enabled():  # a run may go on on another kind of device
            scaler.load_state_dict(saved["scaler"])
        history, best, first_step = saved["history"], saved["best"], saved["step"]
        if processes.first:  # they are sums over all processes
            losses.update(saved["losses"])
            counts.update(saved["counts"])
        if len(history) < epochs:
            logger.info("%s: continues at epoch %d, after %d steps", name, len(history) + 1, first_step)
        else:
            logger.info("%s: was trained before, nothing is left to do; its log is in %s", name, state.path)

    if not processes.same((len(history), first_step)):
        raise Unfinished(
            f"{name}: {state.path}: one process cannot read the save that another continues from"
        )
    network = processes.wrap(model)

    for epoch in range(len(history), epochs):
        sampler.set_epoch(epoch, start=first_step * batches.batch_size)
        model.train()
        bar = tqdm(
            batches,
            desc=f"{name} {epoch + 1}/{epochs}",
            initial=first_step,
            total=len(batches),
            leave=False,
            disable=None if processes.first else True,
            unit="step",
        )
        longest, bad_before = 0.0, counts["bad_videos"]
        asked = time.perf_counter()
        for step, (clips, labels) in enumerate(bar, start=first_step):
            received = time.perf_counter()
            torch.manual_seed(step_seed(seed, epoch, step, processes.rank))
            factor = learning_rate_factor(epoch + step / len(batches))
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * factor
            inputs, targets = to_device(clips, device), move(labels, device)

            with torch.autocast(device.type, dtype=getattr(torch, precision), enabled=precision != "float32"):
                output = forward_in_groups(network, inputs, batchnorm_clips)
            if (
                step == first_step
            ):  # what keeps or puts a norm in the other mode may do so in the forward pass only
                warn_of_norms(model, training=True)
            loss = compute_loss(output, targets)
            total = loss.total.item()
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss.total).backward()  # type: ignore[no-untyped-call]
            scaler.unscale_(optimizer)
            norm = (
                get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
                if clip_norm is None
                else clip_grad_norm_(model.parameters(), clip_norm)
            ).item()
            # A gradient that overflows float16 is an everyday event: the scaler skips the step and scales less.
            if processes.any(not math.isfinite(total) or not (math.isfinite(norm) or scaler.is_enabled())):
                parts = ", ".join(f"{part} {value.item():.3g}" for part, value in loss.parts.items())
                raise PermanentError(
                    f"{name}: the loss is {total:.3g} ({parts}) and the gradient's norm {norm:.3g} at epoch {epoch + 1}, "
                    f"step {step + 1}, learning rate {optimizer.param_groups[0]['lr']:.3g}; look at gradient_norm and "
                    f"train_loss of the epochs before (tensorboard --logdir {state.path}), lower "
                    f"training.learning_rate, or set training.precision: float32. {state.last_finite()}"
                )
            scale = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()

            if scaler.get_scale() < scale:
                counts["skipped_steps"] += 1
                if scaler.get_scale() < SMALLEST_SCALE:  # in all processes, since they share the gradients
                    raise PermanentError(
                        f"{name}: float16 does not hold the gradients: steps are skipped, at last epoch {epoch + 1}, step "
                        f"{step + 1}, though the loss ({total:.3g}) is scaled by {scaler.get_scale():.1g} only; set "
                        f"training.precision to bfloat16 or float32, or lower training.learning_rate. {state.last_finite()}"
                    )
            else:
                counts["norm"] += norm
            counts["bad_videos"] = bad_before + batches.bad_videos
            counts["steps"] += 1
            counts["samples"] += len(labels)
            counts["frames"] += sum(
                len(clip) * clip.shape[2] for clip in ([clips] if isinstance(clips, Tensor) else clips)
            )
            ranked = top_k(loss.logits)[1]
            for k in (1, 5):
                counts[f"top{k}"] += correct_within(ranked, targets, k)
            losses["loss"] += total * len(labels)
            for part, value in loss.parts.items():
                losses[part] += value.item() * len(labels)
            bar.set_postfix(loss=f"{total:.3f}", refresh=False)

            now = time.perf_counter()
            counts["seconds"] += now - asked
            counts["waited"] += received - asked
            longest = max(longest, now - asked)
            reason = stop.reason(reserve=2 * (longest + state.save_seconds))
            stops = processes.any(reason is not None)
            if stops or processes.any(processes.first and state.is_due()):
                save(epoch, step + 1)
            if stops:
                processes.wait()  # the first is saving, and the end of another would end it
                raise Unfinished(
                    f"{name}: {reason or 'another process stops'}, saved at epoch {epoch + 1} of {epochs}, step {step + 1}"
                )
            asked = time.perf_counter()

        save(epoch, len(batches))  # a validation that is cut short costs no step
        started = time.perf_counter()
        processes.share_statistics(model)
        scores = validate(model)
        warn_of_norms(model, training=False)
        seconds = processes.total({"validation": time.perf_counter() - started})["validation"]
        sums, counted = processes.total(losses), defaultdict(float, processes.total(counts))
        row = {
            "epoch": epoch + 1,
            "learning_rate": optimizer.param_groups[0]["lr"],
            **{f"train_{part}": value / counted["samples"] for part, value in sums.items()},
            **{f"train_top{k}": 100 * counted[f"top{k}"] / counted["samples"] for k in (1, 5)},
            "gradient_norm": counted["norm"] / max(1, counted["steps"] - counted["skipped_steps"]),
            "skipped_steps": counted["skipped_steps"] / processes.count,
            "bad_videos": counted["bad_videos"],
            **{f"validation_{score}": value for score, value in scores.items()},
            "seconds": (counted["seconds"] + seconds) / processes.count,
            "frames_per_second": processes.count * counted["frames"] / counted["seconds"],
            "data_wait": 100 * counted["waited"] / counted["seconds"],
        }
        history.append(row)
        if not best or scores[select_by] > best["score"]:
            best = {
                "epoch": epoch + 1,
                "score": scores[select_by],
                "model": {key: value.detach().cpu().clone() for key, value in model.state_dict().items()},
            }
        if processes.first:
            write_scalars(state.path / "tensorboard" / name, row)
        first_step = 0
        losses.clear()
        counts.clear()
        save(epoch + 1, 0)
        if processes.first:
            logger.info("%s", epoch_line(name, epochs, row))
            for warning in warnings(history, select_by=select_by):
                logger.warning("%s: %s", name, warning)

    return Trained(history, best["epoch"], best["model"])


def step_seed(seed: int, epoch: int, step: int, rank: int) -> int:
    """Seed of what is random in a step of a process beside its samples: dropout."""
    return int(np.random.SeedSequence([seed, epoch, step, rank], spawn_key=(1,)).generate_state(1)[0])
