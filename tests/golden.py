"""Weights and clips made by the formula of tests/data/golden/README.md."""

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parent / "data" / "golden"


def golden_figures(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def formula_weights(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    return {name: _formula_weight(name, shape) for name, shape in shapes.items()}


def _formula_weight(name: str, shape: Sequence[int]) -> Tensor:
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    x = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        x = 1 + 0.1 * np.abs(x)
    elif name.endswith("running_mean"):
        x = 0.1 * x
    elif "adaconv" in name or "alteration" in name:
        x = 0.2 * x
    elif "fc." in name:
        x = 0.05 * x
    elif name.endswith("weight"):
        x = x * math.sqrt(1 / math.prod(shape[1:])) if len(shape) == 4 else 1 + 0.1 * x
    else:
        x = 0.1 * x
    return torch.from_numpy(x)


def formula_clips(frames: int, *, clips: int = 2) -> Tensor:
    """Normalised clips (N, 3, T, 64, 64), float64, with the channels last in memory."""
    x = np.random.RandomState(1000 + frames).standard_normal((clips, frames, 3, 64, 64))
    return torch.from_numpy(x).permute(0, 1, 3, 4, 2).contiguous().permute(0, 4, 1, 2, 3)


def formula_pixels(frames: int) -> Tensor:
    """Four uint8 clips (4, 3, T, 32, 32)."""
    x = np.random.RandomState(1000 + frames).randint(0, 256, (4, 3, frames, 32, 32))
    return torch.from_numpy(x.astype(np.uint8))
