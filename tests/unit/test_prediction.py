"""`ffnrepro predict`: the classes of videos that need not be in a manifest."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ffnrepro.cli import main
from ffnrepro.data.decode import open_video
from ffnrepro.errors import UserError
from ffnrepro.evaluation import predict
from ffnrepro.files import write_json
from ffnrepro.prediction import (
    Predictor,
    names_of_classes,
    predictor_of_file,
    read_frame_counts,
    within_budget,
)
from ffnrepro.recipe.clips import ClipDataset, evaluation_batches
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.training.loader import VideoBatches
from ffnrepro.weights import load_checkpoint, save_checkpoint

from ..trainings import CONFIG, write_network

COUNTS = (4, 6, 16)


@pytest.fixture(scope="module")
def seed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a seed of a run of FFN."""
    return write_network(tmp_path_factory.mktemp("workflow"), data, "ffn")


@pytest.fixture
def options(seed: Path) -> list[str]:
    """Options that name the run."""
    return ["--run", "ffn", "--directory", str(seed.parents[3]), "--configfile", *map(str, CONFIG)]


def test_a_folder_is_predicted_as_the_evaluation_does(seed, options, data, capsys):
    """The built-in videos, of which the manifest has the validation videos."""
    assert main(["predict", str(data / "data/videos"), "--frames", "4,6,16", "--json", *options]) == 0
    rows = pd.DataFrame(json.loads(capsys.readouterr().out))
    assert rows["video"].nunique() == 36

    manifest = pd.read_parquet(data / "results/manifest/validation.parquet")
    dataset = ClipDataset(
        manifest=manifest, videos=data / "data/videos", open_video=open_video, frame_counts=COUNTS, size=32,
        short_side=40, crop="centre",
    )  # fmt: skip
    evaluated = predict(
        load_checkpoint(seed / "model.pt"),
        VideoBatches(dataset).batches(evaluation_batches(len(manifest), batch_size=8)),
        ids=manifest["id"].tolist(),
        frame_counts=COUNTS,
        device=torch.device("cpu"),
    )
    names = pd.read_csv(data / "results/labels/classes.csv")["class"]
    for frames in COUNTS:
        for path, expected in zip(manifest["path"], evaluated[frames].to_dict("records"), strict=True):
            found = rows[(rows["video"] == str(data / "data/videos" / path)) & (rows["frames"] == frames)]
            best = [expected[f"class_{k}"] for k in range(1, 6)]
            assert found["index"].tolist() == best
            assert found["class"].tolist() == names[best].tolist()
            assert found["rank"].tolist() == [1, 2, 3, 4, 5]
            # The evaluation keeps log-probabilities as float16.
            probabilities = np.exp(expected["log_probabilities"].astype(np.float64)[best])
            assert found["probability"].tolist() == pytest.approx(probabilities, abs=2e-3)


def test_a_broken_file_is_named_and_the_rest_goes_on(options, data, tmp_path, capsys, caplog):
    folder = tmp_path / "videos"
    folder.mkdir()
    whole = sorted((data / "data/videos").glob("*.webm"))[:2]
    content = whole[0].read_bytes()
    for name, part in {"a": content, "b": content[: len(content) // 2], "c": whole[1].read_bytes()}.items():
        (folder / f"{name}.webm").write_bytes(part)
    (folder / "notes.txt").write_text("no video")
    command = ["predict", str(folder), "nowhere.webm", "--frames", "8", *options]
    assert main([*command, "--csv"]) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    errors = {row["video"]: row["error"] for row in rows}
    assert [error.partition(" (")[0] for error in errors.values()] == [
        "",
        "truncated or damaged",
        "",
        "no such file",
    ]
    assert [row["rank"] for row in rows] == ["1", "2", "3", "4", "5", "", "1", "2", "3", "4", "5", ""]
    assert f"{folder / 'b.webm'}: cannot be read: {errors[str(folder / 'b.webm')]}" in caplog.text
    assert "2 of 4 videos cannot be read" in caplog.text
    # As a table: a line for each class, and one for each broken file.
    assert main(command) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(rows)
    assert lines[0].split() == ["video", "class", "8", "frames"]
    first = rows[0]
    assert lines[2].split() == [first["video"], *first["class"].split(), f"{float(first['probability']):.3f}"]
    assert lines[7].split(maxsplit=1) == [
        str(folder / "b.webm"),
        f"cannot be read: {errors[str(folder / 'b.webm')]}",
    ]


def test_a_checkpoint_without_a_class_list(seed, options, data, tmp_path, capsys):
    video = str(next((data / "data/videos").glob("*.webm")))
    checkpoint = ["--checkpoint", str(seed / "model.pt"), "--short-side", "40", "--crop-size", "32"]
    outputs = []
    (tmp_path / "labels.txt").write_text("\n".join("abcdefghijkl") + "\n")
    for source in (options, checkpoint, [*checkpoint, "--labels", str(tmp_path / "labels.txt")]):
        assert main(["predict", video, "--frames", "8", "--json", *source]) == 0
        outputs.append(json.loads(capsys.readouterr().out))
    of_run, plain, named = outputs
    assert [row["probability"] for row in plain] == [row["probability"] for row in of_run]
    assert [row["class"] for row in plain] == [str(row["index"]) for row in of_run]
    assert [row["class"] for row in named] == ["abcdefghijkl"[row["index"]] for row in of_run]


def test_a_run_json_beside_an_older_checkpoint_tells_the_size_of_its_clips(seed, tmp_path):
    path = Path(shutil.copy(seed / "model.pt", tmp_path))
    for record, sizes in (({}, (256, 224)), ({"settings": {"short_side": 40, "crop_size": 32}}, (40, 32))):
        write_json(tmp_path / "run.json", record)
        predictor = predictor_of_file(path)
        assert (predictor.short_side, predictor.crop_size) == sizes


def test_a_copied_file_tells_the_size_of_its_clips(tmp_path):
    path = tmp_path / "copy.pt"
    save_checkpoint(path, TSM(classes=2, depth=10, width=8), sizes=(60, 48))
    # The sizes of the file come first: the record may be of another network.
    for record in (None, {"settings": "text"}, {"settings": {"short_side": 40, "crop_size": 32}}):
        if record:
            write_json(tmp_path / "run.json", record)
        predictor = predictor_of_file(path)
        assert (predictor.short_side, predictor.crop_size) == (60, 48)


def test_a_budget_chooses_the_frame_count():
    """ResNet-50 at 224 pixels; the paper has 16.4, 32.7 and 65.4 GFLOPs for TSM (Table 1)."""
    with torch.device("meta"):
        ffn = Predictor(
            FrameFlexibleNetwork(classes=174),
            train_frames=(4, 8, 16),
            class_names=None,
            short_side=256,
            crop_size=224,
        )
        tsm = Predictor(TSM(classes=174), train_frames=(), class_names=None, short_side=256, crop_size=224)
    assert [within_budget(ffn, ffn.train_frames, budget) for budget in (20, 40)] == [4, 8]
    assert [within_budget(tsm, (4, 8, 16), budget) for budget in (65.3, 65.5)] == [8, 16]
    with pytest.raises(
        UserError, match=r"--budget 16: every frame count takes more GFLOPs \(16.35 at 4 frames, 32.7 at 8"
    ):
        within_budget(tsm, (4, 8), 16)


def test_predict_with_a_budget(options, data, capsys, caplog):
    video = str(next((data / "data/videos").glob("*.webm")))
    assert main(["predict", video, "--budget", "0.005", *options]) == 0
    assert capsys.readouterr().out.splitlines()[0].split()[2:] == ["8", "frames"]
    assert "8 frames: GFLOPs per video are" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--frames", "8"], "give either --run or --checkpoint"),
        (["--frames", "8", "--run", "ffn", "--checkpoint", "x"], "give either --run or --checkpoint"),
        (["--run", "ffn", "--frames", "8", "--json", "--csv"], "not both"),
        (["--checkpoint", "nowhere.pt", "--frames", "8"], "nowhere.pt"),
        (["--checkpoint", "nowhere.pt", "--frames", "8;16"], "--frames 8;16: give whole numbers"),
    ],
)  # fmt: skip
def test_wrong_options_are_one_line(arguments, message, caplog):
    assert main(["predict", "video.webm", *arguments]) == 1
    assert message in caplog.text
    assert len(caplog.records) == 1


def test_neither_videos_nor_a_network(options, caplog):
    assert main(["predict", "--run", "ffn", "--frames", "8"]) == 1
    assert main(["predict", "video.webm", "--frames", "8", "--seed", "3", *options]) == 1
    first, second = caplog.messages
    assert "give videos" in first
    assert "seed3/model.pt: no such file; " in second
    assert "has a network for seed0" in second


def test_frame_counts_in_any_order():
    assert read_frame_counts("16,4, 8,4") == (4, 8, 16)
    for text in ("0", "257", "", "4.5"):
        with pytest.raises(UserError, match="from 1 to 256"):
            read_frame_counts(text)


def test_names_of_classes(tmp_path):
    predictor = Predictor(
        TSM(classes=2, depth=10, width=8), train_frames=(), class_names=None, short_side=40, crop_size=32
    )
    of_file = replace(predictor, class_names=("a", "b"))
    path = tmp_path / "classes.csv"
    path.write_text("class\nNull\n007\n")
    assert names_of_classes(predictor, path) == ["Null", "007"]
    assert names_of_classes(predictor, None) == ["0", "1"]
    assert names_of_classes(predictor, None, path) == ["Null", "007"]
    assert names_of_classes(of_file, None, path) == ["a", "b"]
    assert names_of_classes(of_file, path, None) == ["Null", "007"]
    with pytest.raises(UserError, match="cannot be read"):
        names_of_classes(predictor, tmp_path / "missing.txt")
    path.write_text("class\na\n")
    with pytest.raises(UserError, match=r"classes.csv: has 1 classes, but the network has 2"):
        names_of_classes(predictor, path)
    path.write_text("name\nx\n")
    with pytest.raises(UserError, match="no column `class`"):
        names_of_classes(predictor, path)


def test_a_crop_that_does_not_fit():
    predictor = Predictor(
        TSM(classes=2, depth=10, width=8), train_frames=(), class_names=None, short_side=40, crop_size=32
    )
    assert (predictor.resized(None, 36).crop_size, predictor.resized(64, None).short_side) == (36, 64)
    with pytest.raises(UserError, match="a crop of 32 pixels does not fit into a short side of 30"):
        predictor.resized(30, None)
    with pytest.raises(UserError, match="a crop of 0 pixels does not fit"):
        predictor.resized(None, 0)
