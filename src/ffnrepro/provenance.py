"""What a number was made with: versions, revision, device."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch


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
