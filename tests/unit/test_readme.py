"""The README's example of the library runs as written."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ffnrepro.data.decode import open_video
from ffnrepro.recipe.clips import ClipDataset, collate_clips
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.scoring import clip_logits
from ffnrepro.weights import save_checkpoint

README = Path(__file__).parents[2] / "README.md"


def test_the_example_scores_a_video_as_the_evaluation_does(
    write_video: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", README.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    torch.manual_seed(0)
    network = FrameFlexibleNetwork(classes=7, depth=18, width=8).eval()
    save_checkpoint(tmp_path / "model.pt", network)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 240, 320, 3), dtype=np.uint8)
    write_video(tmp_path / "video.webm", pixels)
    names = [f"name {index}" for index in range(7)]
    (tmp_path / "results/labels").mkdir(parents=True)
    pd.DataFrame({"class": names}).to_csv(tmp_path / "results/labels/classes.csv")
    monkeypatch.chdir(tmp_path)
    values: dict[str, torch.Tensor] = {}
    exec(compile(example, str(README), "exec"), values)  # noqa: S102 (the README is ours)
    manifest = pd.DataFrame({"id": ["video"], "path": ["video.webm"], "frames": [20], "class": [0]})
    dataset = ClipDataset(
        manifest=manifest, videos=tmp_path, open_video=open_video, frame_counts=(8,), crop="centre"
    )
    clips, _ = collate_clips([dataset[0]])
    expected = clip_logits(network, clips)[8]
    torch.testing.assert_close(values["logits"], expected)
    assert capsys.readouterr().out == f"{names[int(expected.argmax())]}\n"
