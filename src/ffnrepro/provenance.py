"""What a number was made with: versions, revision and device; and the files behind the numbers of a table."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml

from ffnrepro.errors import UserError


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, git revision of the package's checkout, and device, as plain values."""
    packages = {}
    for name in ("ffnrepro", "torch", "torchvision", "decord", "eva-decord", "av", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            # decord and eva-decord exclude each other.
            continue
    return {
        "python": platform.python_version(),
        "packages": packages,
        "git_revision": _git_revision(),
        "host": platform.node(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _git_revision() -> str | None:
    """Revision of the checkout that the package runs from, with `+changes` if files differ from it."""
    # Installed elsewhere, the package may lie within another repository.
    if not (Path(__file__).parents[2] / ".git").exists():
        return None
    folder = str(Path(__file__).parent)
    command = ["git", "-C", folder, "describe", "--always", "--abbrev=40", "--dirty=+changes"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def chain_of_table(table: Path) -> str:
    """Describe, for each number of a table, the evaluations that it is the mean of and the networks behind them.

    A line in capitals warns of a file that was made again after the number.

    Args:
        table: `results/{table}.csv`; the files behind it lie in `results/runs`.

    Raises:
        UserError: one of the files cannot be read, or is of another version.
    """
    try:
        return "\n".join(_chain(table.with_suffix(".json")))
    except (KeyError, TypeError, AttributeError) as error:
        problem = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{table} or a file behind it is of another version ({problem}); run snakemake for it"
        ) from error


def _chain(record: Path) -> Iterator[str]:
    root = record.parent.parent
    for row in _read(record)["rows"]:
        numbers = row["numbers"]
        yield row["label"]
        evaluated: dict[Path, set[str]] = {}
        for frames, paths in row["evaluations"].items():
            evaluations = {path: _read(root / path) for path in paths}
            mean = fmean(evaluation["top1"] for evaluation in evaluations.values())
            yield f"  {frames} frames: {_describe_number(numbers, frames)}"
            if abs(mean - numbers[f"top1_{frames}f"]) > 0.006:
                yield f"    THE MEAN IS NOW {mean:.2f}: an evaluation was made again after the table; run snakemake"
            for path, evaluation in evaluations.items():
                top1, videos, model = evaluation["top1"], evaluation["videos"], evaluation["model"]
                yield f"    evaluation {path}: top-1 {top1:.4f} of {videos} videos"
                if model not in numbers["checkpoint"].split():
                    yield "      ANOTHER NETWORK WAS EVALUATED after the table was made; run snakemake"
                yield f"      network {model}, scoring code {evaluation['code']}"
                yield from (f"      {line}" for line in _describe_job(evaluation))
                evaluated.setdefault(Path(path).with_name("run.json"), set()).add(model)
        for path, models in evaluated.items():
            run = _read(root / path)
            yield f"  network {path}: {run['model']}"
            if models != {run["model"]}:
                yield "    THE NETWORK WAS TRAINED AGAIN after it was evaluated; run snakemake"
            if "accepted_from" in run:
                yield f"    taken over from {run['accepted_from']}, whose code is another, by ffnrepro runs accept"
            settings = _read(root / path.parent.parent / "settings.json")
            yield f"    settings: {yaml.safe_dump(settings, default_flow_style=True, width=10_000).strip()}"
            yield f"    seed {run['seed']}, best epoch {run['best_epoch']}"
            yield from (f"    {line}" for line in _describe_job(run))


def _describe_number(numbers: dict[str, Any], frames: str) -> str:
    """A number of the table, and the numbers beside it there."""
    values = {
        "top-1": numbers[f"top1_{frames}f"],
        **{name: numbers.get(f"{name}_{frames}f") for name in ("deviation", "published", "difference")},
    }
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items() if value is not None)


def _describe_job(record: dict[str, Any]) -> list[str]:
    """The lines that `run.json` and the record of an evaluation have in common."""
    packages = ", ".join(f"{name} {number}" for name, number in record["packages"].items())
    job = f", SLURM job {record['slurm_job']}" if record["slurm_job"] else ""
    return [
        f"data {record['data']}",
        f"git revision {record['git_revision'] or 'unknown'}",
        f"versions: Python {record['python']}, {packages}",
        f"device {record['device']} on {record['host']} ({record['platform']}){job}, {record['wall_seconds']:.0f} s",
    ]


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); give the path of a table, such as results/table1.csv, and run "
            "snakemake for it"
        ) from error
