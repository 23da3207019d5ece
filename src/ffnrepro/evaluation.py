"""Predictions of a network or of an ensemble, one row per video, and their top-1 and top-5 accuracy."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ffnrepro.errors import UserError
from ffnrepro.estimate import duration
from ffnrepro.files import read_record, replacing
from ffnrepro.recipe.clips import Batch
from ffnrepro.recipe.scoring import (
    best_classes,
    clip_logits,
    correct_within,
    ensemble_log_probabilities,
)
from ffnrepro.training.devices import move


def predict(
    network: nn.Module,
    batches: Iterable[Batch],
    *,
    ids: Sequence[str],
    frame_counts: Sequence[int],
    device: torch.device,
) -> dict[int, pd.DataFrame]:
    """Predict the class of each video from one clip of each frame count.

    Args:
        network: on the device; it is put into evaluation mode.
        batches: clips and labels, each video once, in the order of `ids`.
        ids: ids of the videos.
        frame_counts: frame counts T of the clips.
        device: device of the network.

    Returns:
        Frame count -> one row per video: `id`, `label`, `class_1` ... `class_5` (best first), and `log_probabilities`
        (float16, for all classes).

    Raises:
        ValueError: the batches hold more or fewer videos than `ids`.
    """
    logits: dict[int, list[Tensor]] = {frames: [] for frames in frame_counts}
    labels = []
    for clips, targets in tqdm(batches, desc="evaluation", leave=False, disable=None, unit="step"):
        for frames in frame_counts:
            # One frame count after the other: only its clips are on the device.
            scores = clip_logits(network, {frames: move(clips[frames], device)})[frames]
            logits[frames].append(scores.cpu())
        labels.append(targets)
    predictions = {}
    for frames, parts in logits.items():
        scores = torch.cat(parts)
        log_probabilities = torch.log_softmax(scores, dim=1)
        predictions[frames] = _predictions(ids, torch.cat(labels), best_classes(scores), log_probabilities)
    return predictions


def _predictions(
    ids: Sequence[str], labels: Tensor, classes: Tensor, log_probabilities: Tensor
) -> pd.DataFrame:
    predictions = pd.DataFrame({"id": ids, "label": labels.numpy()})
    for column in range(classes.shape[1]):
        predictions[f"class_{column + 1}"] = classes[:, column].numpy()
    predictions["log_probabilities"] = list(log_probabilities.half().numpy())
    return predictions


def predict_with_ensemble(members: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Predict the class of each video from the mean class probabilities of several networks.

    The probabilities are those that `predict` stored as float16, so classes whose probabilities differ by less than a
    thousandth of their value may change places.

    Args:
        members: rows of `predict`, one table per network, all of the same videos in the same order.

    Returns:
        Rows as those of `predict`.

    Raises:
        ValueError: the tables are not of the same videos.
    """
    first = members[0]
    if not all(member[["id", "label"]].equals(first[["id", "label"]]) for member in members):
        raise ValueError("the evaluations of an ensemble are not of the same videos")
    scores = [torch.tensor(np.stack(member["log_probabilities"].tolist())) for member in members]
    mean = ensemble_log_probabilities(scores)
    return _predictions(
        first["id"].tolist(), torch.tensor(first["label"].to_numpy()), best_classes(mean), mean
    )


def write_predictions(predictions: pd.DataFrame, path: Path) -> None:
    """Write the rows of `predict` to a parquet file, `log_probabilities` as lists of a fixed size."""
    classes = len(predictions["log_probabilities"].iloc[0])
    plain = pa.Schema.from_pandas(predictions.drop(columns="log_probabilities"), preserve_index=False)
    schema = plain.append(pa.field("log_probabilities", pa.list_(pa.float16(), classes)))
    with replacing(path) as temporary:
        predictions.to_parquet(temporary, index=False, schema=schema)


def write_best_classes(predictions: Mapping[int, pd.DataFrame], path: Path) -> None:
    """Write the best class of each video at each frame count: `id`, `label`, `class_2f`, `class_3f`, ...

    Args:
        predictions: of `predict`.
        path: the parquet file.
    """
    best = {f"class_{frames}f": rows["class_1"] for frames, rows in predictions.items()}
    with replacing(path) as temporary:
        next(iter(predictions.values()))[["id", "label"]].assign(**best).to_parquet(temporary, index=False)


def accuracy(predictions: pd.DataFrame) -> dict[str, float]:
    """`top1` and `top5`, in percent, of the rows of `predict`."""
    best = torch.tensor(predictions.filter(regex=r"^class_\d+$").to_numpy())
    labels = torch.tensor(predictions["label"].to_numpy())
    return {f"top{k}": 100 * correct_within(best, labels, k) / len(predictions) for k in (1, 5)}


def training_time(folder: Path) -> str:
    """How long the training of a network took, such as `ffn-91b8ea30, seed0, took 18 GPU hours`.

    Args:
        folder: folder of the run's seed.
    """
    record = read_record(folder / "run.json")
    name = f"{folder.parent.name}, {folder.name}"
    if "imported" in record:
        return f"{name}, was imported, not trained"
    if "wall_seconds" not in record:
        return f"{name}, took an unknown time"
    hours = record["wall_seconds"] / 3600 * record["settings"]["training"]["gpus"]
    return f"{name}, took {duration(hours, gpu=record['device'] not in ('cpu', 'mps'))}"


def read_labelled_split(path: Path) -> pd.DataFrame:
    """Read a split of the manifest in which every video must have a class.

    Raises:
        UserError: it has no video, or some videos have no class.
    """
    manifest = pd.read_parquet(path)
    if manifest.empty:
        raise UserError(
            f"{path}: no videos to evaluate; see in {path.with_name('excluded.csv')} why they are left out, or choose another "
            "evaluation.split"
        )
    if unlabelled := int(manifest["class"].isna().sum()):
        raise UserError(
            f"{path}: {unlabelled} of {len(manifest)} videos have no class to compare predictions with; choose "
            "evaluation.split: validation"
        )
    return manifest
