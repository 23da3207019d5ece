"""Validation after each epoch of a training (section 4.1): each video counts once, at each frame count."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from tqdm import tqdm

from ffnrepro.errors import Unfinished
from ffnrepro.recipe.clips import evaluation_batches
from ffnrepro.recipe.scoring import best_classes, clip_logits, correct_within
from ffnrepro.training.devices import move
from ffnrepro.training.loader import VideoBatches
from ffnrepro.training.processes import Processes


def validate(
    model: nn.Module,
    *,
    loader: VideoBatches,
    frame_counts: Sequence[int],
    batch_size: int,
    device: torch.device,
    stop_reason: Callable[[], str | None],
    processes: Processes,
    name: str,
) -> dict[str, float]:
    """Top-1 and top-5 in percent at each frame count, such as `top1_16f`, over all videos of the split.

    Args:
        model: the network, on the device.
        loader: loader of the validation split.
        frame_counts: frame counts that are validated.
        batch_size: videos per step of this process.
        device: device of the network.
        stop_reason: the reason to stop now, or None.
        processes: processes that share the videos.
        name: name of the validation, for progress and message.

    Raises:
        Unfinished: one of the processes was stopped.
    """
    plan = evaluation_batches(
        len(loader.dataset), batch_size=batch_size, rank=processes.rank, processes=processes.count
    )
    # All processes have the same names, even a process without videos.
    sums = dict.fromkeys(["videos", *(f"top{k}_{n}f" for n in frame_counts for k in (1, 5))], 0.0)
    reason = None
    bar = tqdm(
        loader.batches(plan),
        total=len(plan),
        desc=name,
        leave=False,
        disable=None if processes.first else True,
        unit="step",
    )
    for clips, labels in bar:
        if (reason := stop_reason()) is not None:
            break
        for frames, logits in clip_logits(
            model, {n: move(clip, device) for n, clip in clips.items()}
        ).items():
            classes = best_classes(logits).cpu()
            for k in (1, 5):
                sums[f"top{k}_{frames}f"] += 100 * correct_within(classes, labels, k)
        sums["videos"] += len(labels)
    # A process that stops comes here, too: the others, which may have more or fewer steps, wait here for its sums.
    totals = processes.total({**sums, "stops": reason is not None})
    if totals.pop("stops"):
        raise Unfinished(f"{name}: {reason or 'another process stops'}; earlier work is saved")
    videos = totals.pop("videos")
    return {key: total / videos for key, total in totals.items()}
