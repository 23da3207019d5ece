"""The example of the library in README.md, and the commands in config/README.md, run as written."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ffnrepro.data.decode import open_video
from ffnrepro.data.labels import read_labels
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


def test_the_commands_for_hmdb51_write_labels_of_its_first_split(tmp_path: Path) -> None:
    text = (README.parent / "config/README.md").read_text("utf-8")
    (commands,) = re.findall(r"^```bash\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    splits = tmp_path / "testTrainMulti_7030_splits"
    splits.mkdir()
    (splits / "brush_hair_test_split1.txt").write_text("a_#1_f.avi.avi 1 \nb_np1_0.avi 2 \nc_np1_0.avi 0 \n")
    (splits / "wave_test_split1.txt").write_text("d_np1_0.avi 2 \ne_np1_0.avi 1 \n")
    (splits / "wave_test_split2.txt").write_text("d_np1_0.avi 1 \ne_np1_0.avi 2 \n")
    subprocess.run(["bash", "-e", "-c", commands], cwd=tmp_path, check=True)
    classes, table = read_labels(tmp_path / "data/labels")
    assert classes == ["brush_hair", "wave"]
    assert table.to_numpy().tolist() == [
        ["a_#1_f.avi", "train", 0], ["e_np1_0", "train", 1], ["b_np1_0", "validation", 0], ["d_np1_0", "validation", 1]
    ]  # fmt: skip
