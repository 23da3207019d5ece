"""Predictions, one row a video, and their top-1 and top-5 accuracy."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from tqdm import tqdm

from ffnrepro.errors import Unfinished, UserError
from ffnrepro.recipe.clips import ClipDataset
from ffnrepro.recipe.scoring import correct_within, top_k
from ffnrepro.training.loader import VideoBatches
from ffnrepro.training.loop import to_device


@torch.inference_mode()
def score(
    model: nn.Module,
    batches: VideoBatches,
    *,
    frame_counts: Sequence[int],
    device: torch.device,
    stop_reason: Callable[[], str | None] = lambda: None,
    total: Callable[[Mapping[str, float]], dict[str, float]] = dict,
    name: str = "validation",
) -> dict[str, float]:
    """Top-1 and top-5 in percent at each frame count: `top1_16f`, `top5_16f`.

    Args:
        model: one output for each frame count, or one tensor where there is one.
        batches: clips as the model takes them, and labels.
        frame_counts: of the clips, in their order.
        device: where the model is.
        stop_reason: asked before each step: why to stop now, or None.
        total: sums over the processes that share the videos.
        name: for progress and log.

    Raises:
        Unfinished: there is a reason, in any of the processes.
    """
    model.eval()
    hits = {f"top{k}_{n}f": 0.0 for k in (1, 5) for n in frame_counts}
    videos = 0
    reason = None
    for clips, labels in tqdm(batches, desc=name, leave=False, disable=None, unit="step"):
        if (reason := stop_reason()) is not None:
            break
        output = model(to_device(clips, device))
        for frames, logits in zip(
            frame_counts, [output] if isinstance(output, Tensor) else output, strict=True
        ):
            best = top_k(logits)[1].cpu()
            for k in (1, 5):
                hits[f"top{k}_{frames}f"] += correct_within(best, labels, k)
        videos += len(labels)
    # A process that stops still comes here: the others, which have more steps or fewer, wait here for its sums.
    sums = total({**hits, "videos": videos, "stops": reason is not None})
    if sums["stops"]:
        raise Unfinished(f"{name}: {reason or 'another process stops'}; what was done before is saved")
    return {name: 100 * sums[name] / sums["videos"] for name in hits}


@torch.inference_mode()
def predict(
    model: nn.Module,
    manifest: pd.DataFrame,
    *,
    videos: Path,
    frames: int,
    short_side: int,
    crop_size: int,
    batch_size: int,
    workers: int,
    device: torch.device,
) -> pd.DataFrame:
    """Evaluate the centre crop of one clip a video; each video of the manifest exactly once, in its order.

    Args:
        model: TSM or FrameFlexibleNetwork, on the device.
        manifest: a split's rows: `id`, `path`, `frames`, `class`.
        videos: folder that `path` starts from.
        frames: frame count T of the clips.
        short_side: pixels.
        crop_size: pixels.
        batch_size: videos a step; changes no prediction.
        workers: processes that decode.
        device: where the model is.

    Returns:
        A row a video: `id`, `label`, `class_1` ... `class_5` and `score_1` ... `score_5` (probabilities).

    Raises:
        UserError: the split has videos without a class, or one that cannot be read.
    """
    if manifest["class"].isna().any():
        raise UserError(
            f"{int(manifest['class'].isna().sum())} of {len(manifest)} videos of the split have no class: nothing to "
            "compare with; choose evaluation.split: validation"
        )
    dataset = ClipDataset(
        manifest=manifest, videos=videos, frames=frames, size=crop_size, short_side=short_side, crop="centre"
    )
    model.eval()
    scores, classes = [], []
    with closing(
        VideoBatches(
            dataset,
            sampler=SequentialSampler(dataset),
            batch_size=batch_size,
            workers=workers,
            pin_memory=device.type == "cuda",
        )
    ) as batches:
        for clips, _ in tqdm(batches, desc=f"{frames} frames", leave=False, disable=None, unit="step"):
            values, indices = top_k(model(to_device(clips, device)))
            scores.append(values.cpu())
            classes.append(indices.cpu())
    table = pd.DataFrame(
        {"id": manifest["id"].to_numpy(), "label": manifest["class"].to_numpy(dtype="int64")}
    )
    for rank, column in enumerate(torch.cat(classes).unbind(dim=1), start=1):
        table[f"class_{rank}"] = column.numpy()
    for rank, column in enumerate(torch.cat(scores).unbind(dim=1), start=1):
        table[f"score_{rank}"] = column.numpy()
    return table


def accuracy(predictions: pd.DataFrame) -> dict[str, float]:
    """`top1` and `top5`, in percent, of the rows of `predict`."""
    best = torch.tensor(predictions.filter(regex=r"^class_\d+$").to_numpy())
    labels = torch.tensor(predictions["label"].to_numpy())
    return {f"top{k}": 100 * correct_within(best, labels, k) / len(predictions) for k in (1, 5)}
