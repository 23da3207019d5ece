"""Predictions of a network, one row per video, and their top-1 and top-5 accuracy."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ffnrepro.errors import Unfinished, UserError
from ffnrepro.files import replacing
from ffnrepro.recipe.scoring import correct_within, top_k
from ffnrepro.recipe.transforms import normalise
from ffnrepro.training.devices import move

Batch = tuple[Mapping[int, Tensor], Tensor]
"""Frame count T -> clips, uint8 `(N, 3, T, S, S)`; and labels `(N,)`."""


@torch.inference_mode()
def score(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    frame_counts: Sequence[int],
    device: torch.device,
    stop_reason: Callable[[], str | None] = lambda: None,
    total: Callable[[Mapping[str, float]], dict[str, float]] = dict,
    name: str = "validation",
) -> dict[str, float]:
    """Top-1 and top-5 accuracy in percent at each frame count: `top1_16f`, `top5_16f`.

    Args:
        network: on the device; it is put into evaluation mode.
        batches: clips of each frame count, and labels.
        frame_counts: that are scored.
        device: that computes.
        stop_reason: called before each step: the reason to stop now, or None.
        total: sums over the processes that share the videos.
        name: for the progress bar and the log.

    Raises:
        Unfinished: one of the processes has a reason to stop.
    """
    network.eval()
    hits = {f"top{k}_{frames}f": 0.0 for k in (1, 5) for frames in frame_counts}
    videos = 0
    reason = None
    for clips, labels in tqdm(batches, desc=name, leave=False, disable=None, unit="step"):
        if (reason := stop_reason()) is not None:
            break
        for frames in frame_counts:
            best = top_k(_logits(network, clips[frames], device))[1]
            for k in (1, 5):
                hits[f"top{k}_{frames}f"] += correct_within(best, labels, k)
        videos += len(labels)
    # A process that stops also sums: the others may have another number of steps, and wait here for its sums.
    sums = total({**hits, "videos": videos, "stops": reason is not None})
    if sums["stops"]:
        raise Unfinished(f"{name}: {reason or 'another process stops'}; all earlier work is saved")
    return {name: 100 * sums[name] / sums["videos"] for name in hits}


def _logits(network: nn.Module, clips: Tensor, device: torch.device) -> Tensor:
    logits: Tensor = network(normalise(move(clips, device)))
    return logits.float().cpu()


@torch.inference_mode()
def predict(
    network: nn.Module, batches: Iterable[Batch], *, ids: Sequence[str], frames: int, device: torch.device
) -> pd.DataFrame:
    """Predict the class of each video from one clip.

    Args:
        network: on the device; it is put into evaluation mode.
        batches: clips and labels, each video once, in the order of `ids`.
        ids: of the videos.
        frames: frame count T of the clips that are predicted from.
        device: that computes.

    Returns:
        One row per video: `id`, `label`, `class_1` ... `class_5` (best first), and `log_probabilities` (float16, of
        all classes).

    Raises:
        ValueError: the batches hold more or fewer videos than `ids`.
    """
    network.eval()
    logits, labels = [], []
    for clips, targets in tqdm(batches, desc=f"{frames} frames", leave=False, disable=None, unit="step"):
        logits.append(_logits(network, clips[frames], device))
        labels.append(targets)
    scores = torch.cat(logits)
    classes = top_k(scores)[1].numpy()
    predictions = pd.DataFrame({"id": ids, "label": torch.cat(labels).numpy()})
    for column in range(classes.shape[1]):
        predictions[f"class_{column + 1}"] = classes[:, column]
    predictions["log_probabilities"] = list(torch.log_softmax(scores, dim=1).half().numpy())
    return predictions


def write_predictions(predictions: pd.DataFrame, path: Path) -> None:
    """Write the rows of `predict` to a parquet file, `log_probabilities` as lists of a fixed size."""
    classes = len(predictions["log_probabilities"].iloc[0])
    plain = pa.Schema.from_pandas(predictions.drop(columns="log_probabilities"), preserve_index=False)
    schema = plain.append(pa.field("log_probabilities", pa.list_(pa.float16(), classes)))
    with replacing(path) as temporary:
        predictions.to_parquet(temporary, index=False, schema=schema)


def accuracy(predictions: pd.DataFrame) -> dict[str, float]:
    """`top1` and `top5`, in percent, of the rows of `predict`."""
    best = torch.tensor(predictions.filter(regex=r"^class_\d+$").to_numpy())
    labels = torch.tensor(predictions["label"].to_numpy())
    return {f"top{k}": 100 * correct_within(best, labels, k) / len(predictions) for k in (1, 5)}


def read_labelled_split(path: Path) -> pd.DataFrame:
    """Read a split of the manifest of which every video has a class.

    Raises:
        UserError: some videos have none.
    """
    manifest = pd.read_parquet(path)
    if lacking := int(manifest["class"].isna().sum()):
        raise UserError(
            f"{path}: {lacking} of {len(manifest)} videos have no class to compare predictions with; choose "
            "evaluation.split: validation"
        )
    return manifest
