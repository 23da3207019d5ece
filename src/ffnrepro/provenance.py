"""What a number was made with: versions, revision, device; and the whole chain behind the numbers of the table."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch

from ffnrepro.decides import key_of
from ffnrepro.errors import UserError
from ffnrepro.plan import flat


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, git revision of the package's checkout, and device, as plain values."""
    packages = {}
    for name in ("ffnrepro", "torch", "torchvision", "decord", "eva-decord", "av", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:  # decord and eva-decord exclude each other
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
    """Revision of the checkout that the package runs from, with `+changes` where files differ from it."""
    if not (
        Path(__file__).parents[2] / ".git"
    ).exists():  # installed elsewhere, maybe below another repository
        return None
    command = [
        "git",
        "-C",
        str(Path(__file__).parent),
        "describe",
        "--always",
        "--abbrev=40",
        "--dirty=+changes",
    ]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def chain_of_table(table: Path) -> str:
    """For each number of a table the evaluations that it is the mean of, and the networks that they are of.

    What was made again since the number was is named in capitals: then a line is not about this number.

    Args:
        table: `table1.csv`; beside it lie `table1.json`, `evaluation` and `experiments`.

    Raises:
        UserError: one of these files is not there, or of another version.
    """
    try:
        return "\n".join(_chain(table))
    except (KeyError, TypeError, AttributeError) as error:
        lack = f"{error} is not there" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{table} or a file behind it is of another version ({lack}); run snakemake for it"
        ) from error


def _chain(table: Path) -> Iterator[str]:
    root = table.parent.parent
    numbers = _read_table(table)
    for method, cells in _read(table.with_suffix(".json"))["settings"]["rows"]:
        row = numbers[method]
        networks: dict[str, set[str]] = {}  # record of a training -> networks of it that were evaluated
        yield method
        for frames, paths in cells:
            summaries = [(path, _read(root / path)) for path in paths]
            mean = fmean(summary["top1"] for _, summary in summaries)
            yield f"  {frames} frames: {_number(row, frames)}"
            if abs(mean - row[f"top1_{frames}f"]) > 0.006:
                yield f"    THE EVALUATIONS BELOW GIVE {mean:.2f}: they were made again since; run snakemake"
            for path, summary in summaries:
                yield f"    evaluation {path}: top-1 {summary['top1']:.4f} of {summary['videos']} videos"
                if summary["model"] not in row["checkpoint"].split():
                    yield "      THE NUMBER IS NOT OF THIS NETWORK: it was evaluated after the table was made; run snakemake"
                yield from (f"      {line}" for line in _told(summary))
                record = f"results/experiments/{summary['experiment']}/seed{summary['seed']}/run.json"
                networks.setdefault(record, set()).add(summary["model"])
        for path, evaluated in networks.items():
            record = _read(root / path)
            yield f"  network {path}: {record['model']}"
            if evaluated != {record["model"]}:
                yield "    THE NUMBERS ABOVE ARE NOT OF THIS NETWORK: it was trained after they were made; run snakemake"
            yield from (f"    {line}" for line in [*_told(record), f"best epoch {record['best_epoch']}"])


def _number(row: dict[str, Any], frames: int) -> str:
    """A number of the table, and what stands beside it there."""
    words = [f"top-1 {row[f'top1_{frames}f']:.2f}"]
    for name in ("deviation", "published", "difference"):
        value = row.get(f"{name}_{frames}f")
        if not pd.isna(value):
            words.append(f"{name} {value:.2f}")
    return ", ".join(words)


def _told(record: dict[str, Any]) -> list[str]:
    """Lines of what `run.json` and the summary of an evaluation have in common."""
    settings = ", ".join(f"{key} {value}" for key, value in flat(record["settings"]))
    packages = ", ".join(f"{name} {number}" for name, number in record["packages"].items())
    job = f", SLURM job {record['slurm_job']}" if record["slurm_job"] else ""
    lines = [
        f"config: {settings}",
        f"code {key_of(record['code'])}, git revision {record['git_revision'] or 'unknown'}",
        f"data {record['data']}",
    ]
    lines.append(
        f"network {record['model']}"
        if "videos" in record
        else f"pretrained weights {record['weights'] or 'none'}"
    )
    lines.append(f"seed {record['seed'] if 'seed' in record else record['settings']['seed']}")
    lines.append(f"versions: Python {record['python']}, {packages}")
    lines.append(
        f"device {record['device']} on {record['host']} ({record['platform']}){job}, {record['wall_seconds']:.0f} s"
    )
    return lines


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); run snakemake for it") from error


def _read_table(path: Path) -> Any:
    try:
        return pd.read_csv(path, index_col="method").to_dict("index")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of table1.csv") from error
    except (KeyError, ValueError) as error:  # no such column, no table, or no text
        raise UserError(f"{path}: is no table of results; give the path of table1.csv") from error
