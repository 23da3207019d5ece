"""The weights and clips on which the original networks' logits in tests/data/golden were computed."""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1] / "data" / "golden"


def figures(name: str) -> dict[str, dict]:
    return json.loads((FOLDER / f"{name}_figures.json").read_text())


def weights(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    return {key: _weight(key, shape) for key, shape in shapes.items()}


def _weight(key: str, shape: list[int]) -> Tensor:
    if key.endswith("num_batches_tracked"):
        return torch.tensor(0)
    x = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape).astype(np.float32)
    if key.endswith("running_var"):
        x = 1 + 0.1 * np.abs(x)
    elif key.endswith("running_mean"):
        x = 0.1 * x
    elif "adaconv" in key:
        x = 0.2 * x
    elif "new_fc" in key:
        x = 0.05 * x
    elif key.endswith("weight"):
        x = x * math.sqrt(1 / math.prod(shape[1:])) if len(shape) == 4 else 1 + 0.1 * x
    else:
        x = 0.1 * x
    return torch.from_numpy(x)


def clips(frames: int) -> Tensor:
    x = np.random.RandomState(1000 + frames).standard_normal((2, frames, 3, 64, 64)).astype(np.float32)
    return torch.from_numpy(x).transpose(1, 2)
