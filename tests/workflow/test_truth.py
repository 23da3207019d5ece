"""Every stored prediction and every cell of the table, computed again from video and label files by a naive loop.

Nothing but the networks is ours here: PyAV decodes, Pillow resizes, and sampling, crop, normalisation, softmax, ranking
and accuracy are written out. So a fault that the workflow makes everywhere in the same way shows.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.models.tsm import TSM

from .conftest import Workflow

# --- Layout of the results ---------------------------------------------------------------------------------------

EXPERIMENTS = {"tsm": "TSM", "ffn": "TSM-FFN"}  # with the row of the table
FRAME_COUNTS = (4, 8, 16)


def seed_folder(folder: Path, experiment: str) -> Path:
    """Folder of the one training of an experiment."""
    (found,) = folder.glob(f"results/runs/{experiment}-????????/seed0")
    return found


def network_file(folder: Path, experiment: str) -> Path:
    return seed_folder(folder, experiment) / "model.pt"


def predictions(folder: Path, experiment: str, frames: int) -> pd.DataFrame:
    path = seed_folder(folder, experiment) / f"validation_{frames}f.parquet"
    return pd.read_parquet(path).set_index("id")


def stored_classes(rows: pd.DataFrame) -> NDArray[np.int64]:
    """(videos, 5), best first."""
    return rows[[f"class_{rank}" for rank in range(1, 6)]].to_numpy()


def stored_scores(rows: pd.DataFrame) -> NDArray[np.float64]:
    """(videos, 5): the log-probabilities of these classes."""
    scores = np.stack(rows["log_probabilities"].tolist()).astype(np.float64)
    return np.take_along_axis(scores, stored_classes(rows), axis=1)


def build(architecture: dict[str, Any]) -> torch.nn.Module:
    kind = {"tsm": TSM, "ffn": FrameFlexibleNetwork}[architecture.pop("method")]
    return kind(**architecture)


# --- The naive loop ----------------------------------------------------------------------------------------------

SHORT_SIDE, CROP = 40, 32  # as config/demo.yaml has them; the pictures are 64 x 64
UNREADABLE = {"1", "2"}  # what the fixture damages and deletes

TOLERANCE = 0.02
"""Tolerance of a log-probability: PyAV and Pillow differ here and there by a grey level from the workflow's decoder and resizing."""


def naive_clip(video: Path, frames: int) -> torch.Tensor:
    """The normalised clip (1, 3, T, S, S) of a video's segment centres."""
    with av.open(str(video)) as container:
        pictures = [frame.to_image() for frame in container.decode(video=0)]
    planes = []
    for segment in range(frames):
        picture = pictures[(2 * segment + 1) * len(pictures) // (2 * frames)]
        assert picture.size == (64, 64)
        resized = picture.resize((SHORT_SIDE, SHORT_SIDE), Image.Resampling.BILINEAR)
        margin = (SHORT_SIDE - CROP) // 2
        pixels = np.asarray(resized.crop((margin, margin, margin + CROP, margin + CROP)), dtype=np.float64)
        planes.append((pixels / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225])
    return torch.tensor(np.stack(planes)).permute(3, 0, 1, 2)[None].float()


def naive_log_probabilities(
    folder: Path, experiment: str, frames: int, videos: list[str]
) -> NDArray[np.float64]:
    """(videos, classes), one video after the other."""
    content = torch.load(network_file(folder, experiment), weights_only=True)
    network = build(dict(content["architecture"]))
    network.load_state_dict(content["state_dict"])
    network.train(False)
    rows = []
    for name in videos:
        with torch.no_grad():
            logits = network(naive_clip(folder / f"my data/videos/{name}.webm", frames))[0].double().numpy()
        rows.append(logits - np.log(np.exp(logits).sum()))
    return np.array(rows)


def labels_of(folder: Path) -> dict[str, int]:
    """Class index of each readable video of the validation split."""
    texts = [(folder / f"my data/labels/{name}.json").read_text() for name in ("labels", "validation")]
    classes, entries = map(json.loads, texts)
    return {
        entry["id"]: int(classes[entry["template"].replace("[", "").replace("]", "")])
        for entry in entries
        if entry["id"] not in UNREADABLE
    }


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_predictions_and_table_are_those_of_a_naive_loop(
    finished: tuple[Workflow, subprocess.CompletedProcess[str]], experiment: str
) -> None:
    folder = finished[0].folder
    labels = labels_of(folder)
    table = pd.read_csv(folder / "results/table1.csv").set_index("method").loc[EXPERIMENTS[experiment]]
    naive = {n: naive_log_probabilities(folder, experiment, n, list(labels)) for n in FRAME_COUNTS}
    for one, other in ((4, 8), (8, 16), (4, 16)):
        # Otherwise the comparison below could not distinguish the frame counts.
        assert np.abs(naive[one] - naive[other]).max() > 5 * TOLERANCE

    assert table["videos"] == len(labels)
    for frames in FRAME_COUNTS:
        rows = predictions(folder, experiment, frames)
        assert sorted(rows.index) == sorted(labels)
        rows = rows.loc[list(labels)]
        assert rows["label"].tolist() == list(labels.values())
        classes = stored_classes(rows)
        expected = np.take_along_axis(naive[frames], classes, axis=1)
        np.testing.assert_allclose(stored_scores(rows), expected, rtol=0, atol=TOLERANCE)
        # The classes are the five best, best first, where their order is no matter of rounding.
        best = -np.sort(-naive[frames], axis=1)[:, :5]
        np.testing.assert_allclose(expected, best, rtol=0, atol=2 * TOLERANCE)
        assert all(len(set(row)) == 5 for row in classes.tolist())
        hits = sum(row[0] == label for row, label in zip(classes.tolist(), labels.values(), strict=True))
        assert table[f"top1_{frames}f"] == round(100 * hits / len(labels), 2)
