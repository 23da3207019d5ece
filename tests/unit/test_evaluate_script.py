"""What would stop an evaluation is found before it starts, in one line; and a video that goes bad later."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from ffnrepro import checks
from ffnrepro.runs import RUNS, run_name, run_settings, write_run
from ffnrepro.weights import save_checkpoint

from ..trainings import ROOT, configuration

SIZE = 24  # of data.crop_size


@pytest.fixture
def work(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with an untrained TSM; the folder of its seed is returned."""
    shutil.copytree(data, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    config = configuration(data={"short_side": 32, "crop_size": SIZE})
    run, settings = RUNS / run_name(config, "tsm"), run_settings(config, "tsm")
    write_run(run, settings)
    save_checkpoint(run / "seed0/model.pt", settings.method.build_seeded(12, settings.network, 0))
    record = {"wall_seconds": 9 * 3600, "device": "NVIDIA H200", "settings": {"training": {"gpus": 2}}}
    (run / "seed0/run.json").write_text(json.dumps(record))
    return run / "seed0"


def evaluate(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> Any:
    """Run the script and return its exit code."""
    options = {
        "run": folder.parent, "seed": 0, "split": "validation", "frames": 4, "videos": "data/videos", "device": "cpu",
        "batch-size": 8, "workers": 0, "log": "log", **options,
    }  # fmt: skip
    script = str(ROOT / "workflow/scripts/evaluate.py")
    monkeypatch.setattr(sys, "argv", [script, *(str(w) for k, v in options.items() for w in (f"--{k}", v))])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(script, run_name="__main__")
    return ended.value.code


def refusal(folder: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    """The only line that a refused evaluation prints."""
    assert evaluate(folder, monkeypatch, **options) == 1
    (line,) = Path("log").read_text().splitlines()
    assert not list(folder.glob("validation_*"))
    return line.partition(" ERROR error: ")[2]


def test_an_evaluation_that_would_run(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluate(work, monkeypatch) == 0
    assert json.loads((work / "validation_4f.json").read_text())["videos"] == 12


def test_an_ensemble_costs_the_sum_of_its_networks(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of networks with 30 and 60 clips per second, one after the other: 1 / (1/30 + 1/60) = 20."""
    assert evaluate(work, monkeypatch) == 0
    average = runpy.run_path(str(ROOT / "workflow/scripts/evaluate_ensemble.py"))["main"]
    record = json.loads((work / "validation_4f.json").read_text())
    members = [Path(f"{name}/seed0/validation_4f.json") for name in ("one", "two")]
    for path, speed in zip(members, (30, 60), strict=True):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({**record, "gflops": 1.5, "clips_per_second": speed}))
        shutil.copy(work / "validation_4f.parquet", path.with_suffix(".parquet"))
    output = Path("one+two/seed0/validation_4f.json")
    assert average(members, output) == 0
    of_both = json.loads(output.read_text())
    assert (of_both["gflops"], of_both["clips_per_second"]) == (3, pytest.approx(20))
    assert (of_both["run"], of_both["parameters"]) == ("one+two", 2 * record["parameters"])


def test_little_shared_memory_and_disk_space_are_named_together(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*_: object) -> None:
        raise AssertionError("the network is loaded, or a worker has started")

    usage = shutil.disk_usage(".")
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda _: usage._replace(free=20_000))
    monkeypatch.setattr("ffnrepro.weights.load_checkpoint", started)
    # 12 videos; 8 clips of 16 frames of 24 x 24 in 3 bytes, two of these batches for each of 3 workers
    assert refusal(work, monkeypatch, frames=16, workers=3) == (
        f"this evaluation would not run: disk: 20 kB free in {work}, 24 kB needed; free some space, or move the folder; "
        "shared memory: 20 kB free in /dev/shm, 1 MB needed; lower runtime.workers, or give the container more (--shm-size)"
    )
    assert pytest.approx(1.3e6, rel=0.03) == 16 * 8 * 3 * SIZE**2 * 2 * 3


def test_videos_that_are_not_there_are_one_problem(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(work, monkeypatch, videos="elsewhere").startswith(
        "this evaluation would not run: videos: elsewhere: no such folder; is its disk mounted"
    )


def test_a_split_without_videos(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Path("results/manifest/validation.parquet")
    pd.read_parquet(table).iloc[:0].to_parquet(table)
    assert refusal(work, monkeypatch).startswith(
        f"{table}: no videos to evaluate; see in results/manifest/ex"
    )


def test_a_damaged_network_can_be_written_again(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (work / "model.pt").read_bytes()
    (work / "model.pt").write_bytes(content[: len(content) // 2])
    assert refusal(work, monkeypatch).startswith(f"{work}/model.pt is damaged; delete it and run snakemake")


def test_a_gpu_that_is_full(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("ffnrepro.evaluation.predict", full)
    assert refusal(work, monkeypatch) == (
        f"{work.parent.name}: 8 videos at a time do not fit into the memory of the GPU; lower evaluation.batch_size, now 8"
    )


@pytest.mark.parametrize("gone", [False, True])
def test_a_video_that_goes_bad_later_is_named_with_what_the_advice_costs(
    work: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    path = Path("data/videos") / pd.read_parquet("results/manifest/validation.parquet")["path"][3]
    path.unlink() if gone else path.write_bytes(path.read_bytes()[:1500])
    line = refusal(work, monkeypatch)
    assert line.startswith(f"{path}: {'no such file;' if gone else 'too few frames ('}")
    assert "restore this file, then run again." in line
    run = work.parent.name
    assert line.endswith(f"every network is trained again ({run}, seed0, took 18 GPU hours)")
