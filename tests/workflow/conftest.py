"""A tiny run of the whole workflow, as a user starts it."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from ffnrepro.data.demo import make_demo_data

ROOT = Path(__file__).parents[2]

TINY: dict[str, Any] = {
    # A space, everywhere a path goes; one video of 36 is damaged on purpose, and one is missing.
    "data": {"labels": "my data/labels", "videos": "my data/videos", "max_excluded": 0.1},
    # The high learning rate makes the predictions of two epochs differ between videos and between frame counts.
    "training": {"epochs": 2, "batch_size": 8, "warmup_epochs": 0, "learning_rate": 0.3},
    "evaluation": {"batch_size": 8},
}


@dataclass(frozen=True)
class Workflow:
    """A working directory with data, and snakemake in it."""

    folder: Path

    def configure(self, **changes: Any) -> None:
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump({**TINY, **changes}))

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        project = self.folder.parent / "the project"  # a space here, too
        if not project.exists():
            project.symlink_to(ROOT)
        command = [
            sys.executable, "-m", "snakemake", "--snakefile", str(project / "Snakefile"), "--directory", str(self.folder),
            "--configfile", str(project / "config/config.yaml"), str(project / "config/demo.yaml"),
            str(self.folder / "tiny.yaml"), "--cores", "2", *arguments,
        ]  # fmt: skip
        return subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )


def make_workflow(folder: Path) -> Workflow:
    make_demo_data(
        folder / "my data", seed=1, train_per_class=2, validation_per_class=1, frames=18, workers=2
    )
    workflow = Workflow(folder)
    workflow.configure()
    return workflow


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workflow, subprocess.CompletedProcess[str]]:
    """A finished run, with one damaged video, one missing and one without a label. Tests only read it."""
    workflow = make_workflow(tmp_path_factory.mktemp("finished"))
    videos = workflow.folder / "my data/videos"
    (videos / "1.webm").write_bytes(b"<html>404</html>")
    (videos / "2.webm").unlink()
    (videos / "999.webm").write_bytes((videos / "3.webm").read_bytes())
    with (workflow.folder / "my data/labels/train.json").open("a") as labels:
        labels.write(" " * 1_100_000)  # Snakemake compares by time what is larger than a million bytes
    return workflow, workflow.run()
