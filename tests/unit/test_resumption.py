"""Trainings by the real scripts, killed with their whole process group at random moments, end as unbroken ones.

Each attempt is a process of its own. They are forked from one process that has loaded torch and computed nothing, so
that an attempt costs no loading time: this file, started as a script.
"""

import argparse
import json
import os
import random
import runpy
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
from ffnrepro.models.weights import load_checkpoint
from ffnrepro.training import TIMES

ROOT = Path(__file__).parents[2]
KILLS = 6


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


def wait(child: int) -> int:
    """Exit code, or minus the signal's number."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def drive(plan: dict[str, Any]) -> dict[str, Any]:
    """Run an unbroken training and a broken one."""
    method, chance = plan["method"], random.Random(plan["seed"])

    def arguments(name: str, workers: int) -> list[str]:
        own = [
            "--state",
            f"{name}/state",
            "--output",
            f"{name}/output",
            "--log",
            f"{name}/log",
            "--workers",
            str(workers),
        ]
        often = [] if name == "unbroken" else ["--save-minutes", "0.0005"]
        return [*plan["arguments"], *own, *often]

    started = time.monotonic()
    codes = [wait(start(method, arguments("unbroken", 0)))]
    seconds = time.monotonic() - started
    reached = []
    for attempt in range(KILLS):
        child = start(
            method,
            arguments("broken", workers=2 * (attempt % 2)),
            kill_in_save={0: 2, 3: 1}.get(attempt),
        )
        if attempt not in (0, 3):
            time.sleep(seconds * chance.uniform(0.2, 0.7))
            os.killpg(child, signal.SIGKILL)
        codes.append(wait(child))
        reached.append(
            [
                json.loads(file.read_text())[key]
                for file in Path("broken").glob("state/*/about.json")
                for key in ("epoch", "step")
            ]
        )
    codes.append(wait(start(method, arguments("broken", workers=1))))
    started = time.monotonic()
    codes.append(wait(start(method, [*arguments("broken", workers=0), "--videos", "not/there"])))
    return {"codes": codes, "reached": reached, "seconds": seconds, "again": time.monotonic() - started}


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


@pytest.mark.parametrize("method", ["tsm", "ffn"])
def test_a_run_killed_at_random_moments_ends_as_an_unbroken_one(
    tmp_path: Path, data: Path, method: str
) -> None:
    plan = {"method": method, "seed": random.randrange(10**6), "arguments": arguments_of(data, method)}
    print("plan seed", plan["seed"])
    result = subprocess.run(
        [sys.executable, __file__, json.dumps(plan)],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    ends = json.loads(result.stdout.splitlines()[-1])
    print(ends)
    unbroken, *killed, last, again = ends["codes"]
    assert (unbroken, last, again) == (0, 0, 0), result.stderr
    assert killed.count(-signal.SIGKILL) >= 5, killed
    assert killed[0] == killed[3] == -signal.SIGKILL  # those inside a save
    assert_same(newest_state(tmp_path / "unbroken"), newest_state(tmp_path / "broken"))
    histories = [
        pd.read_parquet(tmp_path / name / "output/history.parquet") for name in ("unbroken", "broken")
    ]
    pd.testing.assert_frame_equal(
        *[history.drop(columns=list(TIMES)) for history in histories], check_exact=True
    )
    models = [
        load_checkpoint(tmp_path / name / "output/model.pt").state_dict() for name in ("unbroken", "broken")
    ]
    assert_same(dict(models[0]), dict(models[1]))
    # A finished key is written out again without a video being read: the folder of videos was not there.
    assert not list((tmp_path / "broken/state").glob("*/.*"))
    assert not list((tmp_path / "broken/state").glob("*/lease.json"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("plan", type=json.loads)
    print(json.dumps(drive(parser.parse_args().plan)))
