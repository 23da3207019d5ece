"""Predictions of a network, one row per video, and their top-1 and top-5 accuracy."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import torch
from torch import nn
from tqdm import tqdm

from ffnrepro.errors import UserError
from ffnrepro.files import replacing
from ffnrepro.recipe.clips import Batch
from ffnrepro.recipe.scoring import best_classes, clip_logits, correct_within
from ffnrepro.training.devices import move


def predict(
    network: nn.Module, batches: Iterable[Batch], *, ids: Sequence[str], frames: int, device: torch.device
) -> pd.DataFrame:
    """Predict the class of each video from one clip.

    Args:
        network: on the device; it is put into evaluation mode.
        batches: clips and labels, each video once, in the order of `ids`.
        ids: ids of the videos.
        frames: frame count T of the clips.
        device: device of the network.

    Returns:
        One row per video: `id`, `label`, `class_1` ... `class_5` (best first), and `log_probabilities` (float16, for
        all classes).

    Raises:
        ValueError: the batches hold more or fewer videos than `ids`.
    """
    logits, labels = [], []
    for clips, targets in tqdm(batches, desc=f"{frames} frames", leave=False, disable=None, unit="step"):
        logits.append(clip_logits(network, {frames: move(clips[frames], device)})[frames].cpu())
        labels.append(targets)
    scores = torch.cat(logits)
    classes = best_classes(scores).numpy()
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
    """Read a split of the manifest in which every video has a class.

    Raises:
        UserError: some videos have none.
    """
    manifest = pd.read_parquet(path)
    if unlabelled := int(manifest["class"].isna().sum()):
        raise UserError(
            f"{path}: {unlabelled} of {len(manifest)} videos have no class to compare predictions with; choose "
            "evaluation.split: validation"
        )
    return manifest
