"""A tiny run of the whole workflow, as a user starts it."""

import fcntl
import json
import os
import pickle
import re
import shlex
import shutil
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
    """A working directory with data, and the project beside it."""

    folder: Path

    @property
    def project(self) -> Path:
        return self.folder.parent / "the project"

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.project / "src")}

    def run(self, *arguments: str, **config: Any) -> subprocess.CompletedProcess[str]:
        """Call snakemake, with `--config` for each key of `config`."""
        changes = [f"{key}={json.dumps(value)}" for key, value in config.items()]
        command = [
            sys.executable, "-m", "snakemake", "--snakefile", str(self.project / "Snakefile"), "--directory",
            str(self.folder), "--configfile", str(self.project / "config/demo.yaml"), str(self.folder / "tiny.yaml"),
            *(["--config", *changes] if changes else []), "--cores", "2", *arguments,
        ]  # fmt: skip
        return self.call(*command)

    def call(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the working directory."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    def plan(self, *arguments: str, **config: Any) -> tuple[dict[str, int], str]:
        """Number of jobs by rule of a dry run, without target rules; and all that it prints."""
        result = self.run("--dry-run", *arguments, **config)
        assert result.returncode == 0, result.stdout + result.stderr
        counts = {}
        if "Nothing to be done" not in result.stdout:
            stats = result.stdout.split("Job stats:")[1].partition("total")[0]
            counts = {name: int(n) for name, n in re.findall(r"^(\S+) +(\d+)$", stats, re.MULTILINE)}
        targets = {"all", "tsm", "ffn"}
        return {name: n for name, n in counts.items() if name not in targets}, result.stdout

    def made(self, *arguments: str, **config: Any) -> str:
        """What a call of snakemake that succeeds prints."""
        result = self.run(*arguments, **config)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stderr

    @property
    def options(self) -> list[str]:
        """Options of `ffnrepro runs` for this working directory."""
        files = [self.project / "config/config.yaml", self.project / "config/demo.yaml", "tiny.yaml"]
        return ["--configfile", *map(str, files), "--directory", "."]

    def ffnrepro(self, *arguments: str) -> str:
        """What the command `ffnrepro` prints where it succeeds."""
        result = self.call(sys.executable, "-m", "ffnrepro.cli", *arguments)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def bash(self, *commands: str) -> subprocess.CompletedProcess[str]:
        """Paste commands into a shell of the working directory, with the environment's programs."""
        path = f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH"
        return self.call("bash", "-e", "-c", "\n".join([path, *commands]))

    def seed(self, experiment: str, seed: int = 0) -> Path:
        """Folder of the only run of an experiment."""
        (run,) = self.folder.glob(f"results/runs/{experiment}-????????")
        return run / f"seed{seed}"

    def without_results(self, tree: Path) -> "Workflow":
        """A copy of the data and of the configuration."""
        copy = Workflow(tree / "run")
        shutil.copytree(self.folder / "my data", copy.folder / "my data")
        shutil.copy(self.folder / "tiny.yaml", copy.folder)
        copy.project.symlink_to(ROOT)
        return copy

    def copy(self, tree: Path, *, with_project: bool = False) -> "Workflow":
        """A copy that may be changed, and the project, or a copy of it."""
        copy = Workflow(tree / "run")
        shutil.copytree(self.folder, copy.folder)
        if with_project:
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            for name in ("workflow", "src", "config", "resources", "profiles"):
                shutil.copytree(ROOT / name, copy.project / name, ignore=ignored)
            for name in ("Snakefile", "environment.yml"):
                shutil.copy2(ROOT / name, copy.project)
        else:
            copy.project.symlink_to(ROOT)
        return copy


def make_workflow(folder: Path) -> Workflow:
    """A working directory with one damaged video, one missing and one without a label."""
    workflow = Workflow(folder)
    make_demo_data(
        folder / "my data", seed=1, train_per_class=2, validation_per_class=1, frames=18, workers=2
    )
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    workflow.project.symlink_to(ROOT)
    videos = folder / "my data/videos"
    (videos / "1.webm").write_bytes(b"<html>404</html>")
    (videos / "2.webm").unlink()
    (videos / "999.webm").write_bytes((videos / "3.webm").read_bytes())
    with (folder / "my data/labels/train.json").open("a") as labels:
        # Snakemake compares files of more than a million bytes by time.
        labels.write(" " * 1_100_000)
    return workflow


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workflow, subprocess.CompletedProcess[str]]:
    """A finished run, made once for all workers of pytest, and the output of snakemake. Tests only read it."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    workflow, output = Workflow(shared / "finished/run"), shared / "finished.pickle"
    with (shared / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not output.exists():
            make_workflow(workflow.folder)
            output.write_bytes(pickle.dumps(workflow.run()))
    return workflow, pickle.loads(output.read_bytes())
