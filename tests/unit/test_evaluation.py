"""Predictions against logits that the test computes itself."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from ffnrepro.errors import UserError
from ffnrepro.evaluation import (
    accuracy,
    predict,
    predict_with_ensemble,
    read_labelled_split,
    write_best_classes,
    write_predictions,
)

CPU = torch.device("cpu")
LOGITS = torch.tensor(
    [
        [0.0, 5.0, 1.0, 4.0, 2.0, 3.0, -1.0],
        # These differ in float32 and are equal in float16.
        [20.0, 20.0001, 20.0002, 1.0, 1.0, 20.0003, 20.0004],
        [-30.0, 0.0, 0.0, 0.0, 0.0, 0.0, 30.0],
    ]
)
IDS = ["7", "3", "5"]


class StoredLogits(nn.Module):
    """Gives the logits of `LOGITS` whose number the clip's pixels are, in evaluation mode; at 16 frames in reverse order."""

    def __init__(self) -> None:
        super().__init__()
        # The clips get the type of the weights.
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, clips: Tensor) -> Tensor:
        assert clips.shape[1:] in ((3, 4, 2, 2), (3, 16, 2, 2))
        assert not self.training
        # Back from the normalisation with ImageNet's mean and deviation of the red channel.
        pixels = 255 * (clips[:, 0, 0, 0, 0] * 0.229 + 0.485)
        logits = LOGITS[pixels.round().long()]
        return logits.flip(1) if clips.shape[2] == 16 else logits


def batch(*numbers: int, labels: list[int]) -> tuple[dict[int, Tensor], Tensor]:
    pixels = torch.tensor(numbers, dtype=torch.uint8)[:, None, None, None, None]
    clips = {frames: pixels.expand(-1, 3, frames, 2, 2) for frames in (4, 16)}
    return clips, torch.tensor(labels)


@pytest.fixture
def predictions() -> pd.DataFrame:
    batches = [batch(0, 1, labels=[1, 5]), batch(2, labels=[0])]
    return predict(StoredLogits().train(), batches, ids=IDS, frame_counts=[4], device=CPU)[4]


def test_a_row_per_video_with_its_best_classes_first(predictions: pd.DataFrame) -> None:
    columns = ["id", "label", "class_1", "class_2", "class_3", "class_4", "class_5", "log_probabilities"]
    assert predictions.columns.tolist() == columns
    assert predictions["id"].tolist() == IDS
    assert predictions["label"].tolist() == [1, 5, 0]
    classes = predictions.filter(like="class_").to_numpy().tolist()
    assert classes[:2] == [[1, 3, 5, 4, 2], [6, 5, 2, 1, 0]]
    assert classes[2][0] == 6
    for row, logits in zip(predictions["log_probabilities"], LOGITS.tolist(), strict=True):
        total = math.log(sum(map(math.exp, logits)))
        assert row.dtype == np.float16
        np.testing.assert_allclose(row, [value - total for value in logits], rtol=1e-3, atol=1e-4)


def test_accuracy_counts_the_label_among_the_best(predictions: pd.DataFrame) -> None:
    """By hand: the labels are at rank 1, at rank 2, and at the last rank."""
    assert accuracy(predictions) == {"top1": pytest.approx(100 / 3), "top5": pytest.approx(200 / 3)}


def test_each_video_is_predicted_once() -> None:
    with pytest.raises(ValueError, match="length"):
        predict(StoredLogits(), [batch(0, 1, labels=[1, 5])], ids=IDS, frame_counts=[4], device=CPU)


def test_the_best_class_at_each_frame_count(tmp_path: Path) -> None:
    batches = [batch(0, 1, labels=[1, 5]), batch(2, labels=[0])]
    both = predict(StoredLogits(), batches, ids=IDS, frame_counts=[16, 4], device=CPU)
    write_best_classes(both, tmp_path / "any.parquet")
    read = pd.read_parquet(tmp_path / "any.parquet")
    assert read.to_dict("list") == {
        "id": IDS, "label": [1, 5, 0], "class_16f": [5, 0, 0], "class_4f": [1, 6, 6]
    }  # fmt: skip
    # By hand: in reverse order the labels are at rank 3, 4 and 1.
    assert accuracy(both[16]) == {"top1": pytest.approx(100 / 3), "top5": 100}


def test_predictions_come_back_from_their_file(predictions: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "seed0/validation_4f.parquet"
    write_predictions(predictions, path)
    assert pq.read_schema(path).field("log_probabilities").type == pa.list_(pa.float16(), 7)
    read = pd.read_parquet(path)
    pd.testing.assert_frame_equal(
        read.drop(columns="log_probabilities"), predictions.drop(columns="log_probabilities")
    )
    stored = np.stack(read["log_probabilities"].tolist())
    assert stored.dtype == np.float16
    np.testing.assert_array_equal(stored, np.stack(predictions["log_probabilities"].tolist()))


def kept(probabilities: list[list[float]], ids: list[str]) -> pd.DataFrame:
    """The part of a network's predictions that an ensemble reads."""
    scores = [np.log(row).astype(np.float16) for row in probabilities]
    return pd.DataFrame({"id": ids, "label": [1, 2], "log_probabilities": scores})


def test_an_ensemble_averages_probabilities() -> None:
    """By hand. The mean of logits, or a vote, would prefer class 0 in the first row."""
    members = [
        kept([[0.50, 0.30, 0.20], [0.1, 0.2, 0.7]], ["7", "3"]),
        kept([[0.50, 0.45, 0.05], [0.6, 0.3, 0.1]], ["7", "3"]),
        kept([[0.02, 0.28, 0.70], [0.8, 0.1, 0.1]], ["7", "3"]),
    ]
    found = predict_with_ensemble(members)
    assert found.columns.tolist() == ["id", "label", "class_1", "class_2", "class_3", "log_probabilities"]
    assert (found["id"].tolist(), found["label"].tolist()) == (["7", "3"], [1, 2])
    means = [[0.34, 1.03 / 3, 0.95 / 3], [0.5, 0.2, 0.3]]
    np.testing.assert_allclose(np.exp(np.stack(found["log_probabilities"].tolist())), means, rtol=2e-3)
    assert found["log_probabilities"].iloc[0].dtype == np.float16
    assert found.filter(like="class_").to_numpy().tolist() == [[1, 0, 2], [0, 2, 1]]
    assert accuracy(found)["top1"] == 50
    with pytest.raises(ValueError, match="not of the same videos"):
        predict_with_ensemble([members[0], kept([[0.5, 0.3, 0.2]] * 2, ["7", "4"])])


def test_a_split_without_classes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "test.parquet"
    pd.DataFrame({"class": pd.array([0, None, None], dtype="Int64")}).to_parquet(path)
    with pytest.raises(UserError, match=r"test\.parquet: 2 of 3 videos have no class"):
        read_labelled_split(path)
