"""Provenance of results: versions, git revision and device; and the files behind the numbers of a table."""

import os
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml

from ffnrepro.ensembles import network_folders
from ffnrepro.errors import UserError
from ffnrepro.files import read_record


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, git revision of the package's checkout, and device, as plain values."""
    names = {"ffnrepro", "torch", "torchvision", "decord", "eva-decord", "av", "numpy"}
    return {
        "python": platform.python_version(),
        "packages": {found.name: found.version for found in distributions() if found.name in names},
        "git_revision": _git_revision(),
        "host": platform.node(),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def _git_revision() -> str | None:
    """Git revision of the checkout that the package runs from, with `+changes` if files differ from it."""
    # An installed package may be inside some other repository.
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
    """Each number of a table with the records of the evaluations and networks behind it, as YAML.

    A `WARNING` marks a number whose evaluation or network was remade after the table.

    Args:
        table: `results/{table}.csv`; the files behind it are in `results/runs`.

    Raises:
        UserError: one of the files cannot be read, or was written by another version.
    """
    root = table.parent.parent
    chain: dict[str, dict[str, Any]] = {}
    try:
        for row in _read(table.with_suffix(".json"))["rows"]:
            numbers, of_row = row["numbers"], chain.setdefault(row["label"], {})
            of_row["networks"] = {}
            for frames, paths in row["evaluations"].items():
                evaluations = {path: _read(root / path) for path in paths}
                runs = [folder / "run.json" for folder in network_folders(map(Path, paths))]
                networks = {str(run): _read(root / run) for run in runs}
                of_row["networks"] |= networks
                kinds = ("top1", "low", "high", "deviation", "published", "difference")
                names = [f"{kind}_{frames}f" for kind in kinds]
                cell = of_row[f"{frames} frames"] = {name: numbers[name] for name in names if name in numbers}
                mean = fmean(evaluation["top1"] for evaluation in evaluations.values())
                evaluated, trained = (
                    {digest for file in files.values() for digest in file["model"].split()}
                    for files in (evaluations, networks)
                )
                known = evaluated == trained <= set(numbers["checkpoint"].split())
                if not known or round(mean, 2) != numbers[f"top1_{frames}f"]:
                    cell["WARNING"] = "a network or its evaluation was remade after the table; run snakemake"
                cell["evaluations"] = evaluations
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{table} or a file behind it was written by another version ({error!r}); run snakemake {table}"
        ) from error
    return yaml.safe_dump(chain, sort_keys=False, allow_unicode=True, width=120)


def _read(path: Path) -> dict[str, Any]:
    record = read_record(path)
    if not record:
        raise UserError(
            f"{path}: cannot be read; give the path of a table, such as results/table1.csv, and make it with snakemake"
        )
    return record
