"""The workflow with a frame cache, on a finished run that used none."""

import re
import shutil
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from .conftest import Workflow

DATA: dict[str, Any] = {"cache": "jpeg", "cache_folder": "my cache", "watch": "stat"}


def decoded(workflow: Workflow) -> list[str]:
    """What the jobs of the cache say of the videos that they decode."""
    logs = sorted((workflow.folder / "logs/cache_frames").glob("*/*.log"))
    return [
        found for log in logs for found in re.findall(r"\d+ videos to decode, \d+ are kept", log.read_text())
    ]


def test_a_cache_is_made_used_repaired_and_renewed(
    finished: tuple[Workflow, CompletedProcess[str]], tmp_path: Path
) -> None:
    copy = finished[0].copy(tmp_path)
    network = next(copy.folder.glob("results/runs/tsm-*"))
    target = "tsm"
    tables = {"table1": {"frame_counts": [4], "rows": [{"label": "TSM", "experiments": "tsm"}]}}
    config = {"data": DATA, "tables": tables}
    jobs, output = copy.plan(target, **config)
    assert f"differs from {network.name} in cache none -> jpeg" in output
    assert {name: jobs[name] for name in ("cache_frames", "train_tsm", "evaluate")} == {
        "cache_frames": 4, "train_tsm": 1, "evaluate": 1
    }  # fmt: skip
    copy.made(target, **config)
    assert sum(int(text.split()[0]) for text in decoded(copy)) == 34
    runs = {
        path.parent.parent.name: path.read_text()
        for path in copy.folder.glob("results/runs/tsm-*/seed0/model.sha256")
    }
    assert len(set(runs.values())) == 2, "the networks of videos and of JPEGs are the same"
    assert copy.plan(target, **config)[0] == {}

    # A scratch disk that was cleaned up.
    shutil.rmtree(copy.folder / "my cache")
    (cached,) = (path for path in copy.folder.glob("results/runs/tsm-*") if path != network)
    (cached / "seed0/validation_4f.json").unlink()
    trained = (cached / "seed0/model.pt").stat().st_mtime_ns
    result = copy.run(target, **config)
    assert result.returncode != 0
    (line,) = {line for line in result.stderr.splitlines() if line.startswith("error: ")}
    fix = re.fullmatch(
        r"error: my cache/validation/0-of-2\.arrow: no such file; make it again, with your --directory and --configfile: "
        "snakemake --cores 1 (--until cache_frames --forcerun cache_frames); then run snakemake again",
        line,
    )
    assert fix, line
    # The network was made from the same frames, so it is not trained again.
    copy.made(target, *fix[1].split(), **config)
    jobs, output = copy.plan(target, **config)
    assert jobs == {"evaluate": 1}, output
    copy.made(target, **config)
    assert (cached / "seed0/model.pt").stat().st_mtime_ns == trained

    # A video is replaced by another of the same length; no other video is decoded.
    videos = copy.folder / "my data/videos"
    shutil.copy(videos / "4.webm", videos / "5.webm")
    records = [
        f"results/frame_cache/{split}/part-{shard}.json"
        for split in ("train", "validation")
        for shard in (0, 1)
    ]
    copy.made(*records, **config)
    (text,) = decoded(copy)
    assert text.startswith("1 videos to decode, ")

    # Other data, in a call that ends with the manifest, as `ffnrepro doctor` asks for it.
    (videos / "5.webm").unlink()
    copy.made("results/manifest/manifest.sha256", **config)
    jobs, output = copy.plan(target, **config)
    assert jobs == {"cache_frames": 4, "check_training": 1, "train_tsm": 1, "evaluate": 1}, output
