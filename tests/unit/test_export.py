"""Export: folding, the files for PyTorch and ONNX, and the model card with its example."""

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ffnrepro import export
from ffnrepro.cli import main
from ffnrepro.errors import UserError
from ffnrepro.evaluation import accuracy, write_predictions
from ffnrepro.files import write_json
from ffnrepro.model_card import ModelCard
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork, SeparateNetworks
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.runs import run_settings
from ffnrepro.statistics import bootstrap_interval
from ffnrepro.weights import load_checkpoint, tensors_digest

from ..trainings import CONFIG, configuration, trained, write_network


@pytest.fixture
def workflow(data: Path, tmp_path: Path) -> list[str]:
    """A working directory with an FFN and two of its evaluations; the options of the command line that name it."""
    seed = write_network(tmp_path, data, "ffn")
    digest = tensors_digest(load_checkpoint(seed / "model.pt").state_dict())
    for frames, right, model in ((4, 30, digest), (8, 40, "another")):
        labels = np.zeros(48, dtype=np.int64)
        predictions = pd.DataFrame({"id": [str(i) for i in range(48)], "label": labels})
        for k in range(5):
            predictions[f"class_{k + 1}"] = k + 1
        predictions.loc[: right - 1, "class_1"] = 0
        predictions["log_probabilities"] = [np.zeros(12, dtype=np.float16)] * 48
        write_predictions(predictions, seed / f"validation_{frames}f.parquet")
        record = {"model": model, "videos": 48, **accuracy(predictions)}
        write_json(seed / f"validation_{frames}f.json", record)
    return ["--directory", str(tmp_path), "--configfile", *map(str, CONFIG)]


@pytest.mark.parametrize("frames", [4, 8, 12, 16])
@pytest.mark.parametrize(
    "network",
    [
        lambda: FrameFlexibleNetwork(classes=7, depth=10, width=8),
        lambda: FrameFlexibleNetwork(classes=7, depth=50, width=8, frame_counts=(4, 16)),
        lambda: FrameFlexibleNetwork(classes=7, depth=18, width=8, shift="every_second", weight_alteration=False),
        lambda: FrameFlexibleNetwork(classes=7, depth=10, width=8, shift="none", specialized_normalization=False),
        lambda: SeparateNetworks(classes=7, depth=10, width=8),
        lambda: TSM(classes=7, depth=10, width=8, stem=5),
    ],
)  # fmt: skip
def test_folding_changes_no_logit(network, frames):
    network = trained(network())
    before = tensors_digest(network.state_dict())
    clips = torch.randn(2, 3, frames, 32, 32)
    folded = export.fold(network, frames)
    with torch.inference_mode():
        expected = network(clips)
        assert 0.1 < expected.std() < 10  # so that the tolerance means something
        torch.testing.assert_close(folded(clips), expected, rtol=0, atol=1e-4)
    names = set(dict(folded.named_parameters()))
    assert not [name for name in names if "alteration" in name or re.search(r"bn|downsample\.1", name)]
    assert not list(folded.buffers())
    assert tensors_digest(network.state_dict()) == before


@pytest.mark.parametrize("frames", [8, 16])  # 4: below
def test_the_onnx_file_agrees_with_the_network(frames, tmp_path):
    import onnxruntime  # noqa: PLC0415

    network = trained(FrameFlexibleNetwork(classes=7, depth=10, width=8))
    differences = export.write_programs(network, tmp_path, frames=frames, crop_size=32)
    assert list(differences) == ["folded", "model.pt2", "model.onnx"]
    assert max(differences.values()) <= 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for clips in (torch.randn(n, 3, frames, 32, 32) for n in (1, 4)):
        with torch.inference_mode():
            expected = network(clips)
            torch.testing.assert_close(program(clips), expected, rtol=0, atol=1e-4)
        logits = torch.tensor(session.run(["logits"], {"clip": clips.numpy()})[0])
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_a_wrong_sub_network_is_not_exported(tmp_path, monkeypatch):
    network = trained(FrameFlexibleNetwork(classes=7, depth=10, width=8))
    monkeypatch.setattr(export, "nearest", lambda *_: 16)
    with pytest.raises(UserError, match="folded: a logit differs by"):
        export.write_programs(network, tmp_path, frames=4, crop_size=32)
    assert not list(tmp_path.iterdir())


def test_the_example_of_the_card_says_what_predict_says(
    workflow, data, tmp_path, monkeypatch, capsys, caplog
):
    where = tmp_path / "an export"
    assert main(["export", "ffn", "--frames", "4", "--output", str(where), *workflow]) == 0
    differences = re.findall(
        r"^(\S+): largest difference .* (\d\.\de-\d\d)$", capsys.readouterr().out, re.MULTILINE
    )
    assert [name for name, _ in differences] == ["folded", "model.pt2", "model.onnx"]
    assert max(float(value) for _, value in differences) <= 1e-4
    assert "validation_8f.json: not in the model card, because it belongs to another network" in caplog.text
    assert sorted(path.name for path in where.iterdir()) == [
        "README.md",
        "labels.txt",
        "model.onnx",
        "model.pt2",
    ]

    card = (where / "README.md").read_text()
    low, high = bootstrap_interval(np.array([[1] * 30 + [0] * 18], dtype=np.int8))
    assert re.search(rf"\| 4 +\| 62.50 +\| {low:.2f} to {high:.2f} +\| 62.50 +\| validation +\| 48 +\|", card)
    assert "short side of 40 pixels" in card
    assert "5e1f" in card

    (example,) = re.findall(r"^```python\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    videos = sorted((data / "data/videos").glob("*.webm"))[:6]
    command = ["predict", *map(str, videos), "--run", "ffn", "--frames", "4", "--json", *workflow]
    assert main(command) == 0
    rows = json.loads(capsys.readouterr().out)
    monkeypatch.chdir(where)
    for number, video in enumerate(videos):
        shutil.copy(video, "video.webm")
        values: dict[str, np.ndarray] = {}
        exec(compile(example, "README.md", "exec"), values)  # noqa: S102 (the card is ours)
        best = rows[5 * number : 5 * number + 5]
        assert capsys.readouterr().out == f"{best[0]['class']}\n"
        probabilities = torch.softmax(torch.tensor(values["logits"]), 0).numpy()
        # Pillow rounds a resized pixel otherwise than torchvision.
        expected = [row["probability"] for row in best]
        assert probabilities[[row["index"] for row in best]].tolist() == pytest.approx(expected, abs=2e-3)


def test_a_folder_that_is_not_for_an_export_is_refused(workflow, tmp_path, caplog):
    (tmp_path / "README.md").write_text("mine")
    for output, says in (
        (
            tmp_path,
            f"{tmp_path}/README.md: exists already, and is not that of an export; give another folder",
        ),
        (tmp_path / "README.md", f"{tmp_path}/README.md: cannot be made (File exists); give another path"),
    ):
        assert main(["export", "ffn", "--frames", "4", "--output", str(output), *workflow]) == 1
        assert says in caplog.messages[-1]
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_missing_package_is_one_line(workflow, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    monkeypatch.setattr(
        export.importlib.util, "find_spec", lambda name: None if name == "onnxscript" else True
    )
    assert main(["export", "ffn", "--frames", "4", *workflow]) == 1
    assert "ffnrepro export needs onnxscript" in caplog.text
    assert "pip install -e '.[export]'" in caplog.text


@pytest.mark.parametrize(
    ("experiment", "record", "frame_counts", "subnetwork", "expected"),
    [
        ({"method": "tsm", "train_frames": [16]}, {"videos": 24}, (16,), None,
         ["a TSM (Lin et al., ICCV 2019) on a ResNet-10, trained at 16 frames.\nBatchNorm is folded", "24 videos"]),
        ({"method": "ffn", "train_frames": [4, 8]}, {"videos": 24}, (4, 8), 8,
         ["sub-network of 8 frames (the nearest to 12 that was trained) of", "on a ResNet-10, trained at 4, 8 frames", "train_frames 4 8", "random weights"]),
        ({"method": "checkpoint", "path": "somewhere/a.pth"}, {"imported": {"path": "somewhere/a.pth", "source": "x", "sha256": "12ab"}}, (), None,
         ["on a ResNet-10, whose file does not say at which frame counts it was trained.\n", "Data set of the scores: demo", "Imported, not trained here: from a.pth, in the format of x, SHA-256 `12ab`"]),
    ],
)  # fmt: skip
def test_the_card_tells_where_a_network_comes_from(experiment, record, frame_counts, subnetwork, expected):
    settings = run_settings(configuration(experiments={"own": experiment}), "own")
    text = ModelCard(
        name="own-1", settings=settings, record=record, frames=12, train_frames=frame_counts, subnetwork=subnetwork, parameters=1,
        classes=2, scores=[], differences={}, digests={},
    ).text()  # fmt: skip
    for part in expected:
        assert part in text
    assert "no evaluations" in text


def test_the_card_tells_how_the_frames_of_its_scores_were_kept():
    settings = run_settings(configuration(data={"cache": "jpeg", "jpeg_quality": 80}), "tsm")
    row = {"frames": "8", "split": "validation"}
    card = ModelCard(
        name="own-1", settings=settings, record={"best_epoch": 3}, frames=8, train_frames=(16,), subnetwork=None, parameters=1,
        classes=2, scores=[row], differences={}, digests={},
    )  # fmt: skip
    assert "had been stored as JPEG of quality 80.\n\nThe kept epoch is the best one" in card.text()
