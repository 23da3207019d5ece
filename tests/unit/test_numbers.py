"""The numbers of a tiny training, for each method, as they were: an edit that changes one of them is noticed.

Videos are decoded, three steps are trained and the network is evaluated, in float64. Weights are made by a formula and
no picture is resized, so the numbers depend on no library's random numbers and on no interpolation. Run as a script, this
file writes the numbers anew.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ffnrepro import methods
from ffnrepro.data.decode import open_video
from ffnrepro.recipe.clips import ClipDataset, Crop, collate_clips, evaluation_batches, training_batches
from ffnrepro.recipe.methods.method import Method
from ffnrepro.recipe.network import NetworkSettings
from ffnrepro.recipe.optim import learning_rate_factor, make_optimizer, set_learning_rate
from ffnrepro.recipe.scoring import best_classes, clip_logits
from ffnrepro.recipe.selection import is_better, selection_score
from ffnrepro.recipe.step import make_scaler, train_step

from ..golden import formula_weights

FOLDER = Path(__file__).parents[1] / "data/numbers"
FRAMES = (20, 9, 17, 24, 30, 18, 16, 5)
CLASSES = 3

SETTINGS: dict[str, dict[str, Any]] = {
    "tsm": {"train_frames": (4,)},
    "ffn": {"train_frames": (2, 4, 8)},
    "mixed": {"train_frames": (4, 8), "rho": 0.5},
    "proportional": {"train_frames": (4, 8), "varrho": 0.5},
}


def data_set(frame_counts: tuple[int, ...], crop: Crop) -> ClipDataset:
    names = [f"{number}.webm" for number in range(len(FRAMES))]
    labels = [number % CLASSES for number in range(len(FRAMES))]
    manifest = pd.DataFrame({"id": names, "path": names, "frames": FRAMES, "class": labels})
    return ClipDataset(
        manifest=manifest,
        videos=FOLDER,
        open_video=open_video,
        frame_counts=frame_counts,
        size=24,
        short_side=32,
        crop=crop,
        seed=3,
    )


def numbers(method: Method) -> dict[str, Any]:
    """Losses, norms and classes of three steps and an evaluation."""
    network = method.build(CLASSES, NetworkSettings(depth=10, width=8, stem=3, dropout=0.0))
    network.load_state_dict(formula_weights({k: list(v.shape) for k, v in network.state_dict().items()}))
    network.double().train()
    data = data_set(method.frame_counts, "random")
    optimizer = make_optimizer(network, learning_rate=0.02, momentum=0.9, weight_decay=5e-4)
    scaler = make_scaler(torch.device("cpu"), "float32")
    result: dict[str, Any] = {"steps": []}
    steps = [(epoch, step, keys) for epoch in (0, 1) for step, keys in enumerate(training_batches(8, seed=3, epoch=epoch, batch_size=4))]  # fmt: skip
    for epoch, step, keys in steps[:3]:
        clips, labels = collate_clips([data[key] for key in keys])
        factor = learning_rate_factor(epoch + step / 2, epochs=2, schedule="step", milestones=(1,))
        set_learning_rate(optimizer, factor)
        done = train_step(
            network,
            method,
            clips,
            labels,
            optimizer=optimizer,
            scaler=scaler,
            seeds=(3, epoch, step),
            precision="float32",
            clip_norm=2.0,
            micro_batch=2,
        )
        pixels = {str(frames): int(clip.sum()) for frames, clip in clips.items()}
        result["steps"].append({"pixels": pixels, "norm": done.gradient_norm, **done.losses})
    evaluated = data_set((2, 4, 6, 8), "centre")
    scores: dict[int, list[Any]] = {}
    for keys in evaluation_batches(8, batch_size=3):
        clips, _ = collate_clips([evaluated[key] for key in keys])
        for frames, logits in clip_logits(network, clips).items():
            scores.setdefault(frames, []).append(logits)
    result["logits"] = {str(n): torch.cat(parts).tolist() for n, parts in scores.items()}
    result["best"] = {str(n): best_classes(torch.cat(parts)).tolist() for n, parts in scores.items()}
    top1 = [selection_score({f"top1_{n}f": value for n in (2, 4, 8)}, method.frame_counts) for value in (30.0, 40.0, 40.0)]  # fmt: skip
    result["selected"] = [is_better(score, max(top1[:i], default=None)) for i, score in enumerate(top1)]
    return result


def all_numbers() -> dict[str, Any]:
    return {
        name: numbers(methods.CLASSES[name].model_validate({"method": name, **settings}))
        for name, settings in SETTINGS.items()
    }


def flat(value: Any, key: str = "") -> dict[str, float]:
    if isinstance(value, dict | list):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: number for k, item in pairs for name, number in flat(item, f"{key}/{k}").items()}
    return {key: value}


@pytest.mark.parametrize("method", SETTINGS)
def test_numbers_are_unchanged(method: str) -> None:
    expected = json.loads((FOLDER / "numbers.json").read_text())[method]
    found = numbers(methods.CLASSES[method].model_validate({"method": method, **SETTINGS[method]}))
    assert flat(found) == pytest.approx(flat(expected), rel=1e-9, abs=1e-12), (
        "numbers changed; if that is meant, the change must be in recipe/, or REVISION in recipe/__init__.py must be "
        "raised; then run this file as a script"
    )
    # The networks are not so alike that an evaluation at other frames would pass.
    logits = [np.array(found["logits"][n]) for n in ("2", "4", "6", "8")]
    assert min(np.abs(a - b).max() for i, a in enumerate(logits) for b in logits[:i]) > 1e-3


if __name__ == "__main__":
    (FOLDER / "numbers.json").write_text(json.dumps(all_numbers(), indent=1) + "\n")
