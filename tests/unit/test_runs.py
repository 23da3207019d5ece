"""The runs of a working directory: list and plan, and the effect of accept, retry and prune on the files."""

import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from ffnrepro import __version__
from ffnrepro.cli import main
from ffnrepro.config import Config, read_files
from ffnrepro.errors import UserError
from ffnrepro.estimate import PastTraining, duration, estimate
from ffnrepro.recipe.methods.ffn import Ffn
from ffnrepro.recipe.methods.mixed import Mixed
from ffnrepro.recipe.methods.proportional import Proportional
from ffnrepro.recipe.methods.tsm import Tsm
from ffnrepro.recipe.network import NetworkSettings
from ffnrepro.run_list import RunList
from ffnrepro.runs import (
    RUNS,
    STATE,
    RunSettings,
    method_code,
    run_name,
    run_settings,
    scoring_code,
    write_run,
)
from ffnrepro.training.lease import Lease

from ..trainings import CONFIG, ROOT, configuration

DATA = "d" * 64


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test in a working directory that has a manifest of 100 training videos, and no run."""
    monkeypatch.chdir(tmp_path)
    use_data(DATA)
    pd.DataFrame({"id": range(100)}).to_parquet("results/manifest/train.parquet")


def use_data(digest: str) -> None:
    Path("results/manifest").mkdir(parents=True, exist_ok=True)
    Path("results/manifest/manifest.sha256").write_text(digest + "\n")


def settle(config: Config, experiment: str) -> str:
    """Write the settings of an experiment's selected run; return its name."""
    run = run_name(config, experiment)
    write_run(RUNS / run, run_settings(config, experiment))
    return run


def age(config: Config, experiment: str) -> str:
    """Write the settings of a run that differs from the selected one in the code of one module; return its name."""
    run = f"{experiment}-01d0c0de"
    (RUNS / settle(config, experiment)).rename(RUNS / run)
    path = RUNS / run / "settings.json"
    record = json.loads(path.read_text())
    record["code"]["ffnrepro.recipe.step"] = "0ther000"
    path.write_text(json.dumps(record))
    return run


def save_state(run: str, *, epoch: int, epochs: int = 44, seed: int = 0, data: str = DATA) -> Path:
    """Write the state of a training as far as it matters here."""
    folder = STATE / run / f"seed{seed}-{data[:8]}"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "about.json").write_text(
        json.dumps({"run": run, "seed": seed, "epochs": epochs, "data": data, "epoch": epoch, "step": 0})
    )
    (folder / f"state-{epoch:08d}-0123456789abcdef.pt").write_bytes(b"tensors")
    (folder / "log.txt").write_text("trained\n")
    return folder


def finish(run: str, *, seed: int = 0, hours: float = 1.0, top1: float = 50.0, device: str = "cpu") -> Path:
    """Write the files of a finished training, its evaluation at 4 frames and its state."""
    folder = RUNS / run / f"seed{seed}"
    folder.mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"network")
    (folder / "model.sha256").write_text("1234\n")
    (folder / "history.parquet").write_bytes(b"history")
    record = {
        "run": run, "seed": seed, "data": DATA, "videos": 100, "wall_seconds": 3600 * hours, "device": device,
        "code": {"ffnrepro.recipe.step": "0ther000"}, "best": {"validation_top1_4f": 1.0, "validation_top1_16f": top1},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    save_evaluation(folder, "4f", scoring_code())
    state = save_state(run, epoch=44, seed=seed)
    (state / "made_with.json").write_text(json.dumps({"model": "1234"}))
    return folder


def save_evaluation(folder: Path, frames: str, code: str) -> None:
    (folder / f"validation_{frames}.parquet").write_bytes(b"predictions")
    record = {"run": folder.parent.name, "model": "1234", "code": code}
    (folder / f"validation_{frames}.json").write_text(json.dumps(record))


def hold_lease(run: str) -> None:
    """Make a process of another machine, which is alive, work on a run."""
    path = STATE / run / f"seed0-{DATA[:8]}/lease.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"host": "node7", "machine": "node7", "pid": 1, "slurm_job": "42"}))


# --- Estimates, by hand: 168,913 videos in 50 epochs are 8,445,650 samples

TSM = Tsm(method="tsm", train_frames=(16,))
FFN = Ffn(method="ffn", train_frames=(4, 8, 16))


@pytest.mark.parametrize(
    ("settings", "cores", "hours", "side"),
    [
        # 8,445,650 samples at 16 a second and core are 18.33 hours with 8 cores.
        ({"method": TSM}, 8, 18.33, "decoding"),
        ({"method": FFN}, 8, 18.33, "decoding"),
        # 16 frames at 5,293 a second, and 28 at 4,758.
        ({"method": TSM}, 64, 7.09, "the GPU"),
        ({"method": FFN}, 64, 13.81, "the GPU"),
        ({"method": Tsm(method="tsm", train_frames=(8,))}, 64, 3.55, "the GPU"),
        # ResNet-18 has 1.8 GFLOPs a frame, ResNet-50 4.1; a quarter of the pixels, a quarter of the channels' products.
        ({"method": TSM, "network": NetworkSettings(depth=18)}, 1000, 7.09 * 1.8 / 4.1, "the GPU"),
        ({"method": TSM, "network": NetworkSettings(width=32)}, 1000, 7.09 / 4, "the GPU"),
        ({"method": TSM, "short_side": 128, "crop_size": 112}, 1000, 7.09 / 4, "the GPU"),
        ({"method": TSM, "training": {"epochs": 10}}, 64, 7.09 / 5, "the GPU"),
        # Two GPUs are twice as fast and cost the same; where they wait for the cores, they cost twice as much.
        ({"method": TSM, "training": {"gpus": 2}}, 1000, 7.09, "the GPU"),
        ({"method": TSM, "training": {"gpus": 2}}, 8, 36.66, "decoding"),
        # A cached frame takes 1.1 ms of a core. Of 48 frames, FFN reads 48 * (1 - 11/12 * 5/6 * 2/3) = 23.56.
        ({"method": TSM, "cache": "jpeg"}, 4, 10.32, "the frame cache"),
        ({"method": FFN, "cache": "jpeg"}, 4, 15.20, "the frame cache"),
        ({"method": TSM, "cache": "jpeg"}, 8, 7.09, "the GPU"),
        # On average 0.25 * 16 + 0.75 * 4 frames, 0.75 * 16 + 0.25 * 4, and 0.25 * 20 + 0.75 * 4.
        ({"method": Mixed(method="mixed", train_frames=(4, 16), rho=0.75)}, 64, 7.09 * 7 / 16, "the GPU"),
        ({"method": Proportional(method="proportional", train_frames=(4, 16), varrho=0.75)}, 64, 7.09 * 13 / 16, "the GPU"),
        ({"method": Mixed(method="mixed", train_frames=(4, 16), rho=0.75, unmixed="both")}, 64, 7.09 * 8 / 16, "the GPU"),
        # 12,000,000 samples from videos of 300 frames instead of 48, and 178,500 from videos of 95 frames.
        ({"method": TSM, "dataset": "kinetics-400"}, 8, 26.04 * 300 / 48, "decoding"),
        ({"method": FFN, "dataset": "hmdb51"}, 8, 178_500 / 16 / 8 / 3600 * 95 / 48, "decoding"),
        # Single frames, 4,300,850 times 16.
        ({"method": TSM, "dataset": "something-something-v1"}, 4, 5.257, "decoding"),
        ({"method": TSM, "dataset": "something-something-v1"}, 8, 3.611, "the GPU"),
    ],
)  # fmt: skip
def test_hours_by_hand(settings: dict[str, Any], cores: int, hours: float, side: str) -> None:
    found = estimate(RunSettings(**settings), videos=None, cores=cores, gpu=True, past=None)
    assert found.hours == pytest.approx(hours, rel=2e-3)
    assert found.basis.partition(";")[0] == f"on an H200 with {cores} cores, limited by {side}"


def test_what_more_cores_or_a_cache_would_save() -> None:
    found = estimate(RunSettings(method=TSM), videos=None, cores=4, gpu=True, past=None)
    assert found.basis.partition("; ")[2] == "7.1 GPU hours with 21 cores, 10 GPU hours with data.cache: jpeg"
    found = estimate(RunSettings(method=FFN, cache="jpeg"), videos=None, cores=4, gpu=True, past=None)
    assert found.basis.partition("; ")[2] == "14 GPU hours with 5 cores"
    # A cache of frames that are read singly saves nothing.
    found = estimate(
        RunSettings(method=TSM, dataset="something-something-v1"), videos=None, cores=4, gpu=True, past=None
    )
    assert found.basis.partition("; ")[2] == "3.6 GPU hours with 6 cores"


def test_the_hours_of_the_documentation() -> None:
    separate = [Tsm(method="tsm", train_frames=(frames,)) for frames in (4, 8, 16)]
    text = (ROOT / "docs/performance.md").read_text()
    for cache in ("none", "jpeg"):
        for name, methods in {"TSM": [TSM], "TSM-ST": separate, "TSM-FFN": [FFN]}.items():
            hours = [
                sum(
                    estimate(
                        RunSettings(method=method, cache=cache), videos=None, cores=cores, gpu=True, past=None
                    ).hours
                    or 0
                    for method in methods
                )
                for cores in (4, 8, 16)
            ]
            assert f"| {name} | `{cache}` | {' | '.join(f'{value:.0f}' for value in hours)} |\n" in text


def test_a_measured_time_is_scaled() -> None:
    past = PastTraining("tsm-1234, seed 0", RunSettings(method=TSM), videos=1000, hours=2.0)
    for settings, cores, gpu, hours in (
        ({"training": {"epochs": 25}}, 8, True, 2.0),
        ({"network": NetworkSettings(depth=18)}, 1000, True, 4.0 * 1.8 / 4.1),
        # Both would wait for the cores.
        ({"network": NetworkSettings(depth=18)}, 1, True, 4.0),
        # A CPU takes long for the network, and decoding does not matter.
        ({"network": NetworkSettings(depth=18)}, 1, False, 4.0 * 1.8 / 4.1),
        ({"training": {"gpus": 2}}, 1000, True, 4.0),
    ):
        found = estimate(RunSettings(method=TSM, **settings), videos=2000, cores=cores, gpu=gpu, past=past)
        assert found.hours == pytest.approx(hours), settings
        assert found.basis == "measured on tsm-1234, seed 0"


def test_hours_are_unknown_without_videos_or_similar_trainings() -> None:
    found = estimate(RunSettings(method=TSM), videos=None, cores=8, gpu=False, past=None)
    assert found == (None, "no similar training has finished here")
    found = estimate(RunSettings(method=TSM, dataset="mine"), videos=None, cores=8, gpu=True, past=None)
    assert found == (None, "the videos are not counted yet")


def test_durations_in_words() -> None:
    words = [duration(hours, gpu=True) for hours in (18.33, 7.09, 0.5, 1.4 / 60)]
    assert words == ["18 GPU hours", "7.1 GPU hours", "30 GPU minutes", "a GPU minute"]


# --- What is listed


def test_a_row_for_each_training() -> None:
    config = configuration(seeds=[0, 3])
    assert RunList(config).rows() == []
    run, old = settle(config, "ffn"), age(config, "tsm")
    finish(run, seed=3, top1=61.25)
    finish(old)
    state = save_state(run, epoch=7)
    Path(state / "state-00000007-0123456789abcdef.pt").write_bytes(b"0" * 2_600_000)
    failure = {"message": "the loss is nan", "version": __version__}
    Path(state / "failed.json").write_text(json.dumps(failure))
    hold_lease(run)
    gone = save_state("gone-12345678", epoch=1, epochs=2)
    (gone / "lease.json").write_text(json.dumps({"host": "node8", "pid": 5}))
    os.utime(gone / "lease.json", (0, time.time() - 4000))
    empty = dict.fromkeys(("epoch", "top-1", "process", "failure", "selected", "differs in"), "")
    assert RunList(config).rows() == [
        {**empty, "run": run, "seed": "0", "epoch": "7/44", "megabytes": "3", "failure": "the loss is nan",
         "process": "job 42, process 1 on node7", "selected": "yes"},
        {**empty, "run": run, "seed": "3", "epoch": "44/44", "top-1": "61.2", "megabytes": "0", "selected": "yes"},
        {**empty, "run": "gone-12345678", "seed": "0", "epoch": "1/2", "megabytes": "0",
         "process": "ended: process 5 on node8", "differs in": "its experiment is not in the configuration"},
        {**empty, "run": old, "seed": "0", "epoch": "44/44", "top-1": "50.0", "megabytes": "0",
         "differs in": "code of ffnrepro.recipe.step"},
    ]  # fmt: skip


# --- What is planned


def test_a_training_is_described_before_it_runs() -> None:
    config = configuration()
    runs = RunList(config)
    assert runs.describe_training("ffn", 0) == "hours unknown (no similar training has finished here)"
    # A run of other settings, which took an hour with the same videos, of as many frames.
    other = configuration(training={"learning_rate": 0.02})
    finish(settle(other, "ffn"), hours=1.0)
    measured = f"measured on {run_name(other, 'ffn')}, seed 0"
    change = f"differs from {run_name(other, 'ffn')} in training.learning_rate 0.02 -> 0.01"
    assert runs.describe_training("ffn", 0) == f"{change}; about 1.0 hours ({measured})"
    # A state of other data does not count; one of this data does.
    save_state(runs.selected["ffn"], epoch=44, data="e" * 64)
    assert runs.describe_training("ffn", 0) == f"{change}; about 1.0 hours ({measured})"
    state = save_state(runs.selected["ffn"], epoch=33)
    assert (
        runs.describe_training("ffn", 0)
        == f"{change}; continues after epoch 33 of 44; about 15 minutes ({measured})"
    )
    shutil.rmtree(state)
    save_state(runs.selected["ffn"], epoch=44)
    assert (
        runs.describe_training("ffn", 0)
        == f"{change}; already trained; if the data is unchanged, its network is only restored"
    )


def test_the_plan_names_the_command_that_keeps_networks_after_an_edit_of_code() -> None:
    config = configuration()
    runs, old = RunList(config), age(config, "ffn")
    # There is nothing to keep.
    assert "accept" not in runs.describe_training("ffn", 0)
    finish(old, hours=1.0)
    assert runs.describe_training("ffn", 0) == (
        f"differs from {old} in code of ffnrepro.recipe.step; about 1.0 hours (measured on {old}, seed 0); "
        f"if no number changes, keep its networks: ffnrepro runs accept {old}"
    )
    # With another setting, the networks are others.
    changed = configuration(training={"learning_rate": 0.02})
    assert "accept" not in RunList(changed).describe_training("ffn", 0)
    # The command is refused once the new run has files of its own.
    save_state(runs.selected["ffn"], epoch=1)
    assert "accept" not in runs.describe_training("ffn", 0)


def test_a_time_counts_for_its_family_and_kind_of_device() -> None:
    finish(settle(configuration(), "tsm"), hours=3.0, device="NVIDIA H200")
    on_gpu = configuration(runtime={"device": "cuda"}, training={"learning_rate": 0.02})
    on_cpu = configuration(training={"learning_rate": 0.02})
    assert RunList(on_gpu).hours("tsm", 0).hours == pytest.approx(3.0)
    assert RunList(on_gpu).hours("ffn", 0).basis.startswith("on an H200")
    assert RunList(on_cpu).hours("tsm", 0).hours is None


def test_the_plan_of_a_table() -> None:
    """Each training of the table, and those that they start from; the hours that are known."""
    experiments = {
        "first": {"method": "tsm", "train_frames": [16]},
        "second": {"method": "tsm", "train_frames": [16], "start": "first"},
        "other": {"method": "ffn", "train_frames": [4, 8, 16]},
    }
    tables = {"mine": {"frame_counts": [4], "rows": [{"label": "A", "experiments": "second"}]}}
    config = configuration(
        experiments=experiments, tables=tables, seeds=[0, 1], runtime={"device": "cuda", "threads": 1}
    )
    runs = RunList(config)
    settle(config, "first")
    finish(runs.selected["first"], seed=0, hours=4.4, device="NVIDIA H200")
    save_state(runs.selected["second"], epoch=11)
    rows, summary = runs.plan("mine")
    measured = f"measured on {runs.selected['first']}, seed 0"
    columns = ("run", "seed", "epoch", "GPU hours", "basis")
    expected = [
        (runs.selected["first"], "0", "44/44", "0.0", "trained"),
        (runs.selected["first"], "1", "0/44", "4.4", measured),
        (runs.selected["second"], "0", "11/44", "3.3", measured),
        (runs.selected["second"], "1", "0/44", "4.4", measured),
    ]
    assert rows == [dict(zip(columns, row, strict=True)) for row in expected]
    # 4.4 + 3.3 + 4.4 hours
    assert summary == "mine needs 4 trainings; finished: 1; the others take about 12.1 GPU hours."
    # On other data everything trains again.
    use_data("e" * 64)
    rows, summary = runs.plan("mine")
    assert [row["epoch"] for row in rows] == ["0/44"] * 4
    assert summary.startswith("mine needs 4 trainings; finished: 0; the others take about 17.6 GPU hours")
    with pytest.raises(UserError, match=r"there is no table yours; give one of table1, baselines, .*, mine"):
        runs.plan("yours")


# --- Accept


def test_accept_links_networks_states_and_current_evaluations() -> None:
    config = configuration(seeds=[0, 1, 2])
    old = age(config, "ffn")
    for seed in (0, 1):
        finish(old, seed=seed)
    save_evaluation(RUNS / old / "seed0", "8f", "0ther000")
    save_evaluation(RUNS / old / "seed0", "any_frame", "0ther000")
    # A seed that is not finished, and an unfinished state of other data.
    save_state(old, epoch=5, seed=2)
    save_state(old, epoch=6, seed=0, data="e" * 64)
    times = {path.name: path.stat().st_mtime_ns for path in (RUNS / old / "seed0").iterdir()}
    before = {path: path.read_bytes() for root in (RUNS, STATE) for path in root.rglob("*") if path.is_file()}

    runs = RunList(config)
    target = runs.selected["ffn"]
    message = runs.accept(old)
    assert (
        message == f"{old}: its networks are now also in results/runs/{target} (code of ffnrepro.recipe.step)"
    )

    for path, content in before.items():
        assert path.read_bytes() == content, path
    settings = json.loads((RUNS / target / "settings.json").read_text())
    assert settings["code"] == method_code("ffn")
    for seed in (0, 1):
        folder = RUNS / target / f"seed{seed}"
        names = {
            "model.pt", "model.sha256", "history.parquet", "run.json", "validation_4f.json", "validation_4f.parquet",
        }  # fmt: skip
        assert {path.name for path in folder.iterdir()} == names
        assert (folder / "model.pt").samefile(RUNS / old / f"seed{seed}/model.pt")
        record = json.loads((folder / "run.json").read_text())
        # The network was made with the old code.
        assert (record["run"], record["accepted_from"]) == (target, old)
        assert record["code"] == {"ffnrepro.recipe.step": "0ther000"}
        assert json.loads((folder / "validation_4f.json").read_text())["run"] == target
    # Nothing counts as newer than it is.
    assert {
        path.name: path.stat().st_mtime_ns for path in (RUNS / target / "seed0").iterdir()
    }.items() <= times.items()
    states = sorted(path.name for path in (STATE / target).iterdir())
    assert states == [f"seed0-{DATA[:8]}", f"seed1-{DATA[:8]}"]
    state = STATE / target / states[0]
    assert json.loads((state / "made_with.json").read_text())["accepted_from"] == old
    assert (state / "state-00000044-0123456789abcdef.pt").read_bytes() == b"tensors"
    # Each of the two has its own log.
    with (state / "log.txt").open("a") as log:
        log.write("written out again\n")
    assert (STATE / old / states[0] / "log.txt").read_text() == "trained\n"
    assert RunList(config).progress(target, 0) == (44, 44)


def other_settings(config: Config, run: str) -> None:  # noqa: ARG001
    path = RUNS / run / "settings.json"
    record = json.loads(path.read_text())
    record["settings"]["training"]["epochs"] = 43
    path.write_text(json.dumps(record))


def finished_target(config: Config, run: str) -> None:  # noqa: ARG001
    finish(settle(config, "ffn"))


def started_target(config: Config, run: str) -> None:  # noqa: ARG001
    save_state(run_name(config, "ffn"), epoch=1)


def leased_target(config: Config, run: str) -> None:  # noqa: ARG001
    hold_lease(run_name(config, "ffn"))


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (other_settings, "differs from ffn-.* in training.epochs 43 -> 44"),
        (lambda _, run: hold_lease(run), "ffn-01d0c0de: job 42, process 1 on node7 is working on it"),
        (leased_target, "job 42, process 1 on node7 is working on it"),
        (finished_target, "has files of its own; ffnrepro runs prune ffn-"),
        (started_target, "has files of its own; ffnrepro runs prune ffn-"),
        (lambda _, run: shutil.rmtree(RUNS / run / "seed0"), "ffn-01d0c0de: has no finished network"),
    ],
)
def test_accept_refuses(prepare: Callable[[Config, str], None], message: str) -> None:
    config = configuration()
    run = age(config, "ffn")
    finish(run)
    prepare(config, run)
    files = sorted(Path().rglob("*"))
    with pytest.raises(UserError, match=message):
        RunList(config).accept(run)
    assert sorted(Path().rglob("*")) == files


def test_accept_takes_over_a_training_that_started_from_the_same_network() -> None:
    """Code that both trainings use was edited: the second one starts from a run of another key, of the same network."""
    experiments = read_files(CONFIG)["experiments"]
    config = configuration(experiments=experiments | {"longer": experiments["ffn"] | {"start": "ffn"}})
    first, second = age(config, "ffn"), age(config, "longer")
    path = RUNS / second / "settings.json"
    record = json.loads(path.read_text())
    record["settings"]["start"] = first.rpartition("-")[2]
    path.write_text(json.dumps(record))
    finish(first)
    trained = finish(second) / "run.json"
    trained.write_text(json.dumps(json.loads(trained.read_text()) | {"start_model": "1234"}))
    runs = RunList(config)
    with pytest.raises(
        UserError, match=r"longer-01d0c0de/seed0: began from another network than ffn-\w{8} has"
    ):
        runs.accept(second)
    runs.accept(first)
    assert f"in results/runs/{runs.selected['longer']} (" in runs.accept(second)


def test_accept_is_for_another_run_of_an_experiment() -> None:
    config = configuration()
    finish(settle(config, "ffn"))
    finish("gone-12345678")
    for name in ("ffn", "gone-12345678"):
        with pytest.raises(
            UserError, match="is already the selected run, or its experiment is not in the configuration"
        ):
            RunList(config).accept(name)


# --- Retry, prune, and names


def test_retry_removes_the_marks_of_a_failure() -> None:
    config = configuration()
    mark = save_state(settle(config, "ffn"), epoch=1) / "failed.json"
    mark.write_text("{}")
    run = run_name(config, "ffn")
    assert RunList(config).retry("ffn") == f"{run}: can be tried again; run snakemake"
    assert not mark.exists()
    assert RunList(config).retry("ffn") == f"{run}: has not failed; nothing to do"


def test_prune_deletes_one_run() -> None:
    config = configuration()
    run, old = settle(config, "ffn"), age(config, "tsm")
    for name in (run, old):
        finish(name)
    hold_lease(old)
    with pytest.raises(UserError, match="is working on it; stop that process first"):
        RunList(config).prune(old)
    assert RunList(config).prune("ffn") == f"results/runs/{run}, state/{run}: deleted (0 MB)"
    assert [path.name for root in (RUNS, STATE) for path in root.iterdir()] == [old, old]
    # A process of this machine that has ended holds nothing up.
    (STATE / old / f"seed0-{DATA[:8]}/lease.json").unlink()
    with Lease(STATE / old / f"seed0-{DATA[:8]}/lease.json").held():
        lease = (STATE / old / f"seed0-{DATA[:8]}/lease.json").read_text()
    dead = json.dumps(json.loads(lease) | {"pid": 2**22 + 1, "host": platform.node()})
    (STATE / old / f"seed0-{DATA[:8]}/lease.json").write_text(dead)
    RunList(config).prune(f"results/runs/{old}/")
    assert [*RUNS.iterdir(), *STATE.iterdir()] == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", "runs", "/", "results", "ffn", "ffn-00000000", "../../x-12345678"]
)
def test_a_name_that_is_not_a_run_is_refused(name: str, tmp_path: Path) -> None:
    finish(age(configuration(), "tsm"))
    (tmp_path / "x-12345678").mkdir()
    files = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        UserError, match=r"^there is no run .* in .*/results/runs; ffnrepro runs lists all runs"
    ):
        RunList(configuration()).prune(name)
    assert sorted(tmp_path.rglob("*")) == files


# --- The command


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration()
    run = settle(config, "ffn")
    finish(run)
    monkeypatch.chdir(ROOT)
    place = ["--directory", str(tmp_path), "--configfile", str(CONFIG[-1])]
    assert main(["runs", *place]) == 0
    assert run in capsys.readouterr().out
    assert main(["runs", "--plan", "table1", *place]) == 0
    # On a CPU nothing is known of TSM, which has not been trained here.
    assert capsys.readouterr().out.endswith(
        "table1 needs 2 trainings; finished: 1; the others take about 0.0 hours (without 1 whose hours are unknown).\n"
    )
    assert main(["runs", "prune", "tsm", *place]) == 1
    assert (
        f"error: there is no run {run_name(config, 'tsm')} in {tmp_path}/results/runs; ffnrepro runs lists all runs; "
        "--directory and --configfile are those that snakemake was given" in capsys.readouterr().err
    )
    assert main(["runs", "prune", *place]) == 1
    assert "ffnrepro runs prune: give the names of runs" in capsys.readouterr().err
    assert main(["runs", "prune", "ffn", *place]) == 0
    assert capsys.readouterr().out == f"results/runs/{run}, state/{run}: deleted (0 MB)\n"
    assert main(["runs", *place]) == 0
    assert capsys.readouterr().out == f"no runs yet in {tmp_path}\n"
