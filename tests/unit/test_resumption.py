"""Trainings by the real scripts, killed with their whole process group at random moments, end as unbroken ones.

Each attempt is a process of its own. They are forked from one process that has loaded torch and computed nothing, so
that an attempt costs no loading time: this file, started as a script.
"""

import argparse
import json
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from ffnrepro.config import read_config, training_settings
from ffnrepro.data.demo import make_demo_data
from ffnrepro.data.labels import read_labels
from ffnrepro.data.manifest import build_manifest
from ffnrepro.data.video_index import index_videos, list_videos
from ffnrepro.training.lease import Lease
from ffnrepro.training.loop import TIMES
from ffnrepro.weights import load_checkpoint

ROOT = Path(__file__).parents[2]

# --- the process that the attempts are forked from


def start(method: str, arguments: list[str], *, kill_in_save: int | None = None) -> int:
    """Start an attempt in a process group of its own; it may end in its so many-th save."""
    child = os.fork()
    if child:
        return child
    os.setsid()
    code = 1
    try:
        if kill_in_save is not None:
            saves = 0

            def die(file: int) -> None:
                nonlocal saves
                saves += 1
                if saves == kill_in_save:
                    os.ftruncate(file, os.fstat(file).st_size // 2)
                    os.killpg(0, signal.SIGKILL)

            os.fsync = die
        script = ROOT / f"workflow/scripts/train_{method}.py"
        sys.argv = [str(script), *arguments]
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        os._exit(code)
    raise AssertionError


def wait(child: int) -> tuple[int, float]:
    """Exit code, or minus the signal's number; and the seconds that it computed."""
    _, status, used = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime


def place_of(name: str) -> list[int]:
    """Epoch and step of a training's last save."""
    for file in Path(name).glob("state/*/about.json"):
        about = json.loads(file.read_text())
        return [about["epoch"], about["step"]]
    return []


def drive(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the attempts of a plan one after the other.

    Those with a signal get it so long after their first save, in units of the time that the first attempt took.
    """
    unit = 0.0
    ends = []
    for attempt in plan["attempts"]:
        name = attempt["name"]
        arguments = [
            *plan["arguments"], "--state", f"{name}/state", "--output", f"{name}/output", "--log", f"{name}/log",
            "--workers", str(attempt.get("workers", 0)), *attempt.get("more", []),
        ]  # fmt: skip
        started = time.monotonic()
        before = place_of(name)
        child = start(plan["method"], arguments, kill_in_save=attempt.get("kill_in_save"))
        if "signal" in attempt:
            while place_of(name) == before and time.monotonic() < started + 120:
                time.sleep(0.002)
            time.sleep(unit * attempt["after"])
            os.killpg(child, attempt["signal"])
        code, computed = wait(child)
        seconds = time.monotonic() - started
        unit = unit or computed  # not the time that passed: the machine may have stood still
        ends.append({"code": code, "seconds": round(seconds, 2), "epoch_and_step": place_of(name)})
    return ends


# --- the tests


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_demo_data(folder, seed=1, train_per_class=2, validation_per_class=1, frames=18, workers=1)
    classes, labels = read_labels(folder / "labels")
    pd.DataFrame({"class": classes}).to_csv(folder / "classes.csv", index=False)
    index = index_videos(folder / "videos", list_videos(folder / "videos"))
    build_manifest(classes, labels, index).save(folder / "manifest")
    return folder


def arguments_of(data: Path, method: str, **training: Any) -> list[str]:
    mapping = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    for section, values in yaml.safe_load((ROOT / "config/demo.yaml").read_text()).items():
        mapping[section] = {**mapping[section], **values} if isinstance(values, dict) else values
    mapping["training"] |= {"epochs": 3, "batch_size": 4, "warmup_epochs": 1, **training}
    mapping["network"]["dropout"] = 0.5  # it is drawn in each step
    settings = training_settings(read_config(mapping), method, seed=5)
    return [
        "--name", method, "--settings", json.dumps(settings), "--classes", str(data / "classes.csv"),
        "--manifest", str(data / "manifest"), "--videos", str(data / "videos"), "--device", "cpu", "--cache-decoded",
    ]  # fmt: skip


def newest_state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(max(folder.glob("state/*/state-*.pt")), weights_only=True)
    return state


def assert_same(one: Any, other: Any, where: str = "state") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            if key not in TIMES:
                assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    else:
        assert one == other, where


def carry_out(folder: Path, method: str, arguments: list[str], attempts: list[dict[str, Any]]) -> list[int]:
    """The exit codes of attempts; what they did is printed."""
    result = subprocess.run(
        [
            sys.executable,
            __file__,
            json.dumps({"method": method, "arguments": arguments, "attempts": attempts}),
        ],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    print(result.stderr)
    assert result.returncode == 0
    ends = json.loads(result.stdout.splitlines()[-1])
    for attempt, end in zip(attempts, ends, strict=True):
        print(attempt, end)
    return [end["code"] for end in ends]


def assert_ended_as_unbroken(folder: Path) -> None:
    unbroken, broken = folder / "unbroken", folder / "broken"
    assert_same(newest_state(unbroken), newest_state(broken))
    one, other = (
        pd.read_parquet(name / "output/history.parquet").drop(columns=list(TIMES))
        for name in (unbroken, broken)
    )
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    first, second = (load_checkpoint(name / "output/model.pt").state_dict() for name in (unbroken, broken))
    assert_same(dict(first), dict(second))
    assert not list(broken.glob("state/*/.*"))
    assert not list(broken.glob("state/*/lease.json"))


@pytest.mark.parametrize("method", ["tsm", "ffn"])
def test_a_run_killed_at_random_moments_ends_as_an_unbroken_one(
    tmp_path: Path, data: Path, method: str
) -> None:
    often = {"name": "broken", "more": ["--save-minutes", "0.0005"]}
    attempts: list[dict[str, Any]] = [
        {"name": "unbroken"},
        {**often, "kill_in_save": 2},
        *(
            {**often, "workers": n, "signal": signal.SIGKILL, "after": random.uniform(0, 0.12)}
            for n in (0, 2)
        ),
        {**often, "kill_in_save": 1},
        *(
            {**often, "workers": n, "signal": signal.SIGKILL, "after": random.uniform(0, 0.12)}
            for n in (2, 0)
        ),
        {**often, "workers": 1},
        # A finished key is written out again without a video being read.
        {**often, "more": ["--videos", "not/there"]},
    ]
    unbroken, *killed, last, again = carry_out(tmp_path, method, arguments_of(data, method), attempts)
    assert (unbroken, last, again) == (0, 0, 0)
    assert killed == [-signal.SIGKILL] * 6
    assert_ended_as_unbroken(tmp_path)


def test_sigterm_to_the_whole_process_group_saves_and_says_so(tmp_path: Path, data: Path) -> None:
    """As a cluster ends a job: the loader's workers are signalled too."""
    attempts: list[dict[str, Any]] = [
        {"name": "unbroken"},
        {"name": "broken", "workers": 2, "signal": signal.SIGTERM, "after": 0.2},
        {"name": "broken", "workers": 2, "more": ["--time-budget", "0"]},
        {"name": "broken", "workers": 1},
    ]
    arguments = arguments_of(data, "ffn", epochs=6)
    unbroken, terminated, no_time, last = carry_out(tmp_path, "ffn", arguments, attempts)
    assert (unbroken, last) == (0, 0)
    assert (terminated, no_time) == (75, 75)
    assert_ended_as_unbroken(tmp_path)
    (log,) = (tmp_path / "broken").glob("state/*/log.txt")  # of all attempts
    said = log.read_text()
    assert said.count("unfinished, run again") == 2
    assert said.count("ffn: continues at epoch") == 2
    assert [said.count(f"ffn: epoch {epoch}/6") for epoch in range(1, 7)] == [1] * 6


def test_a_second_trainer_writes_nothing_while_the_first_is_at_work(tmp_path: Path, data: Path) -> None:
    arguments = arguments_of(data, "tsm")
    assert carry_out(tmp_path, "tsm", arguments, [{"name": "a", "more": ["--time-budget", "0"]}]) == [75]
    (folder,) = (tmp_path / "a/state").iterdir()
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("state-*.pt")}
    with Lease(folder / "lease.json", expiry=1).held():  # gives a sign of life often
        assert carry_out(tmp_path, "tsm", arguments, [{"name": "a"}]) == [75]
    assert "is at work on this and alive; nothing was written" in (tmp_path / "a/log").read_text()
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("state-*.pt")} == kept
    assert not list(tmp_path.glob("a/output/*"))


def test_a_loss_that_is_not_finite_is_not_tried_twice(tmp_path: Path, data: Path) -> None:
    arguments = arguments_of(data, "tsm", learning_rate=1e30, clip_norm=None)
    # The second attempt would fail on the videos, if it got so far.
    attempts = [{"name": "a"}, {"name": "a", "more": ["--videos", "not/there"]}]
    assert carry_out(tmp_path, "tsm", arguments, attempts) == [1, 1]
    assert "the loss is nan" in (tmp_path / "a/log").read_text()
    assert "are not tried again before: ffnrepro state retry" in (tmp_path / "a/log").read_text()


def test_splits_that_nothing_can_be_trained_on_are_a_permanent_failure(tmp_path: Path, data: Path) -> None:
    arguments = arguments_of(data, "tsm", batch_size=100)
    assert carry_out(tmp_path, "tsm", arguments, [{"name": "a"}] * 2) == [1, 1]
    assert "24 videos do not fill one batch of training.batch_size 100" in (tmp_path / "a/log").read_text()
    assert "ffnrepro state retry" in (tmp_path / "a/log").read_text()


def test_without_validation_nothing_is_trained(tmp_path: Path, data: Path) -> None:
    shutil.copytree(data / "manifest", tmp_path / "manifest")
    table = tmp_path / "manifest/validation.parquet"
    pd.read_parquet(table).iloc[:0].to_parquet(table)
    more = ["--manifest", str(tmp_path / "manifest")]
    assert carry_out(tmp_path, "tsm", arguments_of(data, "tsm"), [{"name": "a", "more": more}]) == [1]
    (line,) = (tmp_path / "a/log").read_text().splitlines()
    assert f"error: {table}: no videos, and validation chooses the best epoch" in line
    assert not list(tmp_path.glob("a/state/*/state-*.pt"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=json.loads)
    print(json.dumps(drive(parser.parse_args().plan)))
