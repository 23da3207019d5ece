"""The doctor finds what would stop a training, and trains real steps where nothing does."""

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from ffnrepro import doctor
from ffnrepro.cli import main
from ffnrepro.config import read_config, read_files
from ffnrepro.data.demo import make_demo_data
from ffnrepro.data.labels import read_labels
from ffnrepro.data.manifest import build_manifest
from ffnrepro.data.video_index import index_videos, list_videos
from ffnrepro.doctor import examine, training_arguments
from ffnrepro.errors import Unfinished, UserError
from ffnrepro.training.checkpoints import StateDirectory

ROOT = Path(__file__).parents[2]
CONFIG = [ROOT / "config/config.yaml", ROOT / "config/demo.yaml"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("doctor")
    make_demo_data(folder / "data", seed=1, train_per_class=2, validation_per_class=1, frames=18, workers=1)
    classes, labels = read_labels(folder / "data/labels")
    (folder / "results/labels").mkdir(parents=True)
    pd.DataFrame({"class": classes}).to_csv(folder / "results/labels/classes.csv", index=False)
    videos = folder / "data/videos"
    build_manifest(classes, labels, index_videos(videos, list_videos(videos))).save(
        folder / "results/manifest"
    )
    return folder


def settings(**runtime: Any) -> Any:
    mapping = read_files(CONFIG)
    mapping["training"]["batch_size"] = 4
    mapping["data"] |= {"short_side": 48, "crop_size": 40}
    mapping["runtime"] |= runtime
    return read_config(mapping)


def test_a_training_that_would_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump({"training": {"batch_size": 4}}))
    files = [str(path) for path in [*CONFIG[1:], small]]  # on top of config/config.yaml, as of snakemake
    monkeypatch.chdir(ROOT)
    assert main(["doctor", "ffn", "--directory", str(folder), "--steps", "3", "--configfile", *files]) == 0
    said = capsys.readouterr().out
    assert "PROBLEM" not in said
    for word in (
        "device: cpu",
        "shared memory: none needed",
        "disk: ",
        "decoder: ",
        "s a step of 4 clips",
        "for 44 epochs, validation not counted; of the first epoch, which decodes: later ones are quicker",
    ):
        assert word in said, said
    assert not (folder / "state").exists()  # it leaves nothing behind


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--steps", "-1"], "--steps -1: give a number of steps, or 0"),
        (["--directory", "nowhere"], "nowhere: no such"),
    ],
)
def test_what_cannot_be_looked_at_is_refused(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["doctor", "ffn", *options]) == 1
    assert words in capsys.readouterr().err


def problems(folder: Path, config: Any, steps: int = 2) -> str:
    return "\n".join(
        finding.text
        for finding in examine(training_arguments(config, "ffn", folder), steps=steps)
        if not finding.good
    )


def test_too_little_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    assert "disk: 1 MB free" in problems(folder, settings())
    # 4 clips of 28 frames of 40 x 40 in 3 bytes, two of them for each worker
    assert "shared memory: 1 MB free, 4 MB needed; lower runtime.workers" in problems(
        folder, settings(workers=4)
    )


def test_shared_memory_of_several_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has half of a batch and half of the workers."""
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    mapping = read_files(CONFIG)
    mapping["training"] |= {"batch_size": 16, "gpus": 2}
    mapping["data"] |= {"short_side": 48, "crop_size": 40}
    mapping["runtime"] |= {"workers": 3}
    # 16 clips of 28 frames of 40 x 40 in 3 bytes, two of their halves for each of two workers of two processes
    assert "shared memory: 1 MB free, 9 MB needed" in problems(folder, read_config(mapping))


def test_time_threads_and_place_are_those_of_the_training(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def steps(arguments: Any, device: Any, state: StateDirectory, stop: Any, processes: Any) -> None:  # noqa: ARG001
        stop.ends = [10.0, 11.0, 12.0, 13.0, 20.0]  # at last it waited for data
        seen.extend([torch.get_num_threads(), state.path])
        raise Unfinished("enough")

    monkeypatch.setattr(doctor, "train_experiment", steps)
    arguments = training_arguments(settings(threads=3), "ffn", folder)
    arguments.state = tmp_path / "large/disk/state/train"
    (tmp_path / "large/disk").mkdir(parents=True)
    before = torch.get_num_threads()
    try:
        found = examine(arguments, steps=5)
    finally:
        torch.set_num_threads(before)
    assert "time: 2.500 s a step of 4 clips" in found[-1].text
    assert seen[0] == 3
    assert seen[1].is_relative_to(tmp_path / "large/disk")
    assert not list((tmp_path / "large/disk").iterdir())


def test_too_few_gpus_are_found_before(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device, count: int) -> None:
        raise UserError(f"{count} on {device}")

    with pytest.raises(UserError, match=r"training\.gpus is 100, and \d+ can be seen here; ask for as many"):
        doctor.check_count(torch.device("cuda"), 100)
    monkeypatch.setattr(doctor, "check_count", refuse)
    assert problems(folder, settings()) == "device: 1 on cpu"


@pytest.mark.parametrize("steps", [0, 2])
def test_splits_are_looked_at_where_nothing_is_tried_too(folder: Path, tmp_path: Path, steps: int) -> None:
    shutil.copytree(folder / "results", tmp_path / "results")
    (tmp_path / "data").symlink_to(folder / "data")
    assert not problems(tmp_path, settings(), steps=steps)
    mapping = read_files(CONFIG)
    mapping["training"] |= {"batch_size": 100}
    assert "videos do not fill one batch" in problems(tmp_path, read_config(mapping), steps=steps)
    table = tmp_path / "results/manifest/validation.parquet"
    pd.read_parquet(table).iloc[:0].to_parquet(table)
    assert f"videos: {table}: no videos" in problems(tmp_path, settings(), steps=steps)


def test_missing_pieces_are_named_with_their_mend(folder: Path, tmp_path: Path) -> None:
    assert "videos: no" in problems(tmp_path, settings())
    assert "--until build_manifest" in problems(tmp_path, settings())
    mapping = read_files(CONFIG)
    mapping["network"] |= {"weights": "own.pth", "weights_sha256": "ab"}
    assert "own.pth" not in problems(folder, settings())
    assert "resnet10.pth not there yet; snakemake --cores 1 --until fetch_weights" in problems(
        folder, read_config(mapping)
    )


def test_of_another_machine_only_what_is_shared_is_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine that submits jobs has no GPU, and its shared memory is not the node's; the disk is."""
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    assert problems(folder, settings(device="cuda", workers=4), steps=0).startswith("disk: 1 MB free")
    assert "shared memory" not in problems(folder, settings(workers=4), steps=0)
    if not torch.cuda.is_available():
        assert "device: config: runtime.device is cuda" in problems(folder, settings(device="cuda"))


def test_several_gpus_share_a_batch(folder: Path) -> None:
    mapping = read_files(CONFIG)
    mapping["training"] |= {"batch_size": 8, "gpus": 2}
    found = examine(training_arguments(read_config(mapping), "ffn", folder), steps=2)
    assert all(finding.good for finding in found), found
    assert "s a step of 8 clips" in found[-1].text


def test_a_video_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(folder / "results", moved / "results")
    assert "decoder: " in problems(moved, settings())


def test_later_files_change_what_they_name(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("training: {epochs: 3, batch_size: 8}\nseeds: [1]\n")
    (tmp_path / "b.yaml").write_text("training: {epochs: 4}\n")
    merged = read_files([tmp_path / "a.yaml", tmp_path / "b.yaml"])
    assert merged == {"training": {"epochs": 4, "batch_size": 8}, "seeds": [1]}
