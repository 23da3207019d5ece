"""The doctor finds problems that would stop a training, and trains real steps if there are none."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from ffnrepro import checks, doctor
from ffnrepro.cli import main
from ffnrepro.config import Config
from ffnrepro.doctor import configured_job, examine
from ffnrepro.errors import Unfinished, UserError
from ffnrepro.runs import run_settings

from ..trainings import CONFIG, ROOT, configuration
from .test_job import raise_out_of_memory


@pytest.fixture(autouse=True)
def _directory(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in the working directory of a workflow, made up to the manifest."""
    monkeypatch.chdir(data)


@pytest.fixture
def little_disk_space(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))


def settings(*, training: dict[str, Any] | None = None, **changes: Any) -> Config:
    return configuration(
        training={"batch_size": 4, **(training or {})}, data={"short_side": 48, "crop_size": 40}, **changes
    )


def problems(config: Config, experiment: str = "ffn", steps: int = 2) -> str:
    """What the doctor refuses a training for."""
    with pytest.raises(UserError) as refused:
        examine(configured_job(config, experiment), run_settings(config, experiment), steps=steps)
    return str(refused.value).removeprefix("this training would not run: ")


def test_a_training_that_would_run(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, in another folder than the workflow's."""
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump({"training": {"batch_size": 4}}))
    # These files override config/config.yaml, as they do for snakemake.
    files = [str(path) for path in [*CONFIG[1:], small]]
    monkeypatch.chdir(ROOT)
    assert main(["doctor", "ffn", "--directory", str(data), "--steps", "3", "--configfile", *files]) == 0
    output = capsys.readouterr().out
    for words in (
        "device: cpu",
        "shared memory: none needed",
        "disk: ",
        " ms for ",
        "s per step of 4 videos",
        "for 44 epochs, validation not counted; measured in the first epoch, later epochs need no decoding",
    ):
        assert words in output, output
    # It leaves nothing behind.
    assert sorted(path.name for path in data.iterdir()) == ["data", "results"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["ffn", "--directory", "nowhere"], "--directory nowhere: no such folder"),
        (["fnn"], "there is no experiment fnn; give one of tsm, "),
        (["ffn"], "this training would not run: weights: "),
    ],
)
def test_the_command_ends_in_one_line(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["doctor", *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.usefixtures("little_disk_space")
def test_too_little_disk_space() -> None:
    assert "disk: 1 MB free" in problems(settings())
    # 4 clips of 28 frames of 40 x 40 in 3 bytes for training and as many for validation, two of each for each worker
    found = problems(settings(runtime={"workers": 4}))
    assert "shared memory: 1 MB free in /dev/shm, 9 MB needed; lower runtime.workers" in found
    # 16 clips, two of their halves for each of two workers of two processes, and as many for validation
    found = problems(settings(training={"batch_size": 16, "gpus": 2}, runtime={"workers": 3}))
    assert "shared memory: 1 MB free in /dev/shm, 17 MB needed" in found
    # Validation has the clips of a micro-batch: 2 x 28 frames of 40 x 40 in 3 bytes of 20 clips for each of 3 workers
    found = problems(settings(training={"batch_size": 16, "micro_batch": 4}, runtime={"workers": 3}))
    assert "shared memory: 1 MB free in /dev/shm, 16 MB needed" in found


@pytest.mark.usefixtures("little_disk_space")
def test_for_training_on_another_machine_only_shared_things_are_checked() -> None:
    """The machine that submits jobs has no GPU, and its shared memory is not the node's; the disk is."""
    found = problems(settings(runtime={"device": "cuda", "workers": 4}), steps=0)
    assert found.startswith("disk: 1 MB free")
    assert "shared memory" not in found
    if not torch.cuda.is_available():
        found = problems(settings(runtime={"device": "cuda"}))
        assert found.startswith("device: config: runtime.device is cuda")


def test_too_few_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: torch.device, count: int) -> None:
        raise UserError(f"{count} on {device}")

    monkeypatch.setattr(doctor, "check_count", refuse)
    assert problems(settings()) == "device: 1 on cpu"


def test_time_threads_and_folder_are_those_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two GPUs one process takes its half of the batch, and a step is one of the whole batch."""
    seen: list[Any] = []

    def steps(*arguments: Any) -> None:
        _, tried, _, checkpoints, stop, processes = arguments
        # At last it waited for data.
        stop.ends = [10.0, 11.0, 12.0, 13.0, 20.0]
        seen.extend([torch.get_num_threads(), tried.training.batch_size, processes.count, checkpoints.folder])
        raise Unfinished("enough")

    monkeypatch.setattr(doctor, "train_network", steps)
    (tmp_path / "large disk").mkdir()
    config = settings(training={"batch_size": 8, "gpus": 2, "epochs": 10}, runtime={"threads": 3})
    job = dataclasses.replace(configured_job(config, "ffn"), state=tmp_path / "large disk/state")
    before = torch.get_num_threads()
    try:
        last = examine(job, run_settings(config, "ffn"), steps=5).splitlines()[-1]
    finally:
        torch.set_num_threads(before)
    # 24 videos are 3 steps an epoch; 8 clips of 28 frames.
    assert last.startswith("ok  steps: 2.500 s per step of 8 videos (90 frames/s")
    assert ": about a minute for 10 epochs" in last
    *values, folder = seen
    assert values == [3, 4, 1]
    assert folder.is_relative_to(tmp_path / "large disk")
    assert not list((tmp_path / "large disk").iterdir())


def test_a_step_that_does_not_fit_on_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The advice is that of the training; with two GPUs it speaks of one process's part of the batch."""
    monkeypatch.setattr("ffnrepro.training.loop.train_step", raise_out_of_memory)
    found = problems(settings(training={"batch_size": 16, "gpus": 2}))
    assert "a step of 8 clips does not fit into the memory of the GPU; set training.recompute: true" in found
    found = problems(settings(training={"recompute": True}))
    assert "does not fit into the memory of the GPU; set training.micro_batch: 2, which" in found


@pytest.mark.parametrize("steps", [0, 2])
def test_splits_are_checked(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    assert "videos do not fill a batch" in problems(settings(training={"batch_size": 100}), steps=steps)
    shutil.copytree(data / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    table = Path("results/manifest/validation.parquet")
    pd.read_parquet(table).iloc[:0].to_parquet(table)
    assert f"videos: {table}: no videos" in problems(settings(), steps=steps)


def test_missing_files_are_named_with_their_fix(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = settings(network={"weights": "own.pth", "weights_sha256": "12345678"})
    assert "weights: own.pth: no such file; set network.weights to a file" in problems(own)
    imagenet = settings(network={"weights": "imagenet", "depth": 18})
    fix = "snakemake --cores 1 --until fetch_weights"
    assert f"weights: results/weights/resnet18.pth does not exist yet; {fix}" in problems(imagenet)
    experiments = {name: {"method": "tsm", "train_frames": [4]} for name in ("tsm", "tuned")}
    experiments["tuned"]["start"] = "tsm"
    found = problems(settings(experiments=experiments), "tuned")
    assert "/seed0/model.pt does not exist yet; snakemake --cores 1 --until train_tsm" in found
    # Videos of the manifest that lie elsewhere, and no manifest.
    shutil.copytree(data / "results", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    assert "videos: data/videos: no such folder; is its disk mounted" in problems(settings())
    Path("data/videos").mkdir(parents=True)
    assert "videos: data/videos/" in problems(settings())
    shutil.rmtree("results")
    assert "train.parquet does not exist yet; snakemake --cores 1 --until build_manifest" in problems(
        settings()
    )
