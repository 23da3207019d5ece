"""A throwaway SLURM cluster of one node on this machine, and the workflow on it through `profiles/slurm`."""

import getpass
import json
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from ffnrepro.training.loop import TIMES
from ffnrepro.weights import tensors_digest

from ..workflow.conftest import ROOT, make_workflow

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
END_WITH_PYTEST = ("setpriv", "--pdeathsig", "TERM")  # also where pytest is killed
HEARS_SIGNALS = ("env", "--default-signal=INT,HUP")  # also where pytest runs in the background, or by nohup
DAEMONS = ("munged", "slurmctld", "slurmd")

# Two GPUs that compute nothing: SLURM deals out device files, here two that every machine has. A node of more cores than
# the machine lets jobs run side by side on a small one. A job that is requeued waits for `cred_expire` seconds.
SLURM_CONF = """\
ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SchedulerParameters=sched_interval=2,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
GresTypes=gpu
MinJobAge=3600
ReturnToService=1
KillWait=30
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=200000 Gres=gpu:h200:2
PartitionName=gpu Nodes=ALL State=UP
PartitionName=cpu Nodes=ALL State=UP Default=YES
PartitionName=urgent Nodes=ALL State=UP PriorityTier=2
"""
# No cgroups are used, but slurmd looks for a plugin, and this one starts in a container without them, too.
CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
"""
GRES_CONF = """\
Name=gpu Type=h200 File=/dev/null
Name=gpu Type=h200 File=/dev/zero
"""

# The executor asks SLURM ever more seldom, every 3 minutes in the end. A test does not wait so long.
IMPATIENT = (
    "import asyncio, sys; sleep = asyncio.sleep; asyncio.sleep = lambda seconds: sleep(min(seconds, 1)); "
    "from snakemake.cli import main; main(sys.argv[1:])"
)


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait until the condition holds, and return its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


class Cluster:
    """munged, slurmctld and slurmd in the foreground, in a folder of their own; nothing of the machine's is touched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node = platform.node().split(".")[0]
        self.seen = 0
        self._daemons: list[subprocess.Popen[bytes]] = []
        # A job's inner snakemake drops SLURM_CONF, so `srun` is told where the configuration is.
        (folder / "bin").mkdir()
        srun = folder / "bin/srun"
        srun.write_text(
            f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun", path=PATH)} "$@"\n'
        )
        srun.chmod(0o755)
        outer = {
            name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))
        }
        self.environment = outer | {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{folder / 'bin'}:{PATH}",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(Path(__file__).parent / "slow_steps")]),
            "SECONDS_A_STEP": "0",
            "OMP_NUM_THREADS": "1",
        }

    def start(self) -> None:
        folder = self.folder
        for name in ("controller", "node"):
            (folder / name).mkdir()
        key = folder / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o600)
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            ports = [one.getsockname()[1], other.getsockname()[1]]
        settings = {"folder": folder, "host": self.node, "user": getpass.getuser(), "ports": ports}
        (folder / "slurm.conf").write_text(SLURM_CONF.format(**settings))
        (folder / "gres.conf").write_text(GRES_CONF)
        (folder / "cgroup.conf").write_text(CGROUP_CONF)
        munge = {
            "key-file": key, "socket": folder / "munge.socket", "pid-file": folder / "munged.pid",
            "log-file": folder / "munged.log", "seed-file": folder / "munged.seed",
        }  # fmt: skip
        self._daemon(
            "munged", "--foreground", "--force", *(f"--{name}={file}" for name, file in munge.items())
        )
        wait_for("munged", (folder / "munge.socket").exists)
        self._daemon("slurmctld", "-D", "-f", str(folder / "slurm.conf"))
        self._daemon("slurmd", "-D", "-f", str(folder / "slurm.conf"), "-N", self.node)
        wait_for("an idle node", self._is_idle)

    def _is_idle(self) -> bool:
        for name, daemon in zip(DAEMONS, self._daemons, strict=True):
            assert daemon.poll() is None, (self.folder / f"{name}.screen").read_text()
        return "idle" in self.command("sinfo", "--noheader", "--format=%T")

    def stop(self) -> None:
        try:
            if all(daemon.poll() is None for daemon in self._daemons):
                self.clear()
        finally:
            for daemon in reversed(self._daemons):
                daemon.terminate()
            for daemon in reversed(self._daemons):
                daemon.wait(30)

    def command(self, *arguments: str) -> str:
        """Output of a SLURM command; nothing where it fails."""
        result = subprocess.run(
            arguments, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        )
        return result.stdout

    def clear(self) -> None:
        """Cancel all jobs, and wait until they are gone."""
        self.command("scancel", "--user", getpass.getuser())
        wait_for("the jobs' end", lambda: not self.command("squeue", "--noheader"))

    def all_jobs(self) -> list[dict[str, str]]:
        """All jobs that there were and are, the oldest first, with what `scontrol show job` says of them."""
        shown = self.command("scontrol", "--details", "--oneliner", "show", "jobs")
        jobs = [dict(re.findall(r"(\S+?)=(\S+)", line)) for line in shown.splitlines() if "JobId=" in line]
        return sorted(jobs, key=lambda job: int(job["JobId"]))

    def jobs(self, rule: str = "") -> list[dict[str, str]]:
        """The jobs of a rule in this test."""
        jobs = self.all_jobs()[self.seen :]
        return [job for job in jobs if job.get("Comment", "").startswith(f"rule_{rule}")]

    def processes_ended(self, job: dict[str, str]) -> bool:
        """Whether the node is through with the first run of a job: its batch script and its step."""
        log = (self.folder / "slurmd.log").read_text()
        return all(f"[{job['JobId']}.{part}] done with job" in log for part in ("batch", "0"))

    def update(self, *arguments: str) -> None:
        """Change something, as an administrator does."""
        subprocess.run(["scontrol", *arguments], env=self.environment, timeout=60, check=True)

    def _daemon(self, name: str, *arguments: str) -> None:
        executable = shutil.which(name, path=PATH)
        assert executable is not None
        with (self.folder / f"{name}.screen").open("wb") as output:
            process = subprocess.Popen(
                [*END_WITH_PYTEST, executable, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self.environment,
            )
        self._daemons.append(process)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    missing = [name for name in (*DAEMONS, "srun", "setpriv") if shutil.which(name, path=PATH) is None]
    if missing:
        words = f"no {', '.join(missing)} here: apt-get install slurm-wlm munge"
        if os.environ.get("CI") or os.environ.get("FFNREPRO_REQUIRE_SLURM"):
            pytest.fail(words)
        pytest.skip(words)
    # A socket's path is short, so the folder is not pytest's.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder:
        cluster = Cluster(Path(folder))
        try:
            cluster.start()
            yield cluster
        finally:
            cluster.stop()


@dataclass
class ClusterWorkflow:
    """A working directory, and snakemake in it."""

    folder: Path
    cluster: Cluster
    controllers: list["Controller"] = field(default_factory=list)

    def configure(self, **changes: Any) -> None:
        """Change sections of the configuration."""
        config = yaml.safe_load((self.folder / "tiny.yaml").read_text())
        for section, values in changes.items():
            config[section] = {**config.get(section, {}), **values}
        (self.folder / "tiny.yaml").write_text(yaml.safe_dump(config))

    def profile(self, **site: Any) -> Path:
        """A copy of the profile with what a site changes, and with GPUs also for the device `cpu`, which asks for none."""
        text = (ROOT / "profiles/slurm/config.yaml").read_text()
        changes = {"slurm-init-seconds-before-status-checks": 1, "latency-wait": 10, "local-cores": 1, **site}
        for name, value in changes.items():
            text, count = re.subn(rf"^( *{name}:) \S+", rf"\1 {value}", text, count=1, flags=re.MULTILINE)
            assert count == 1, name
        if "runtime" not in yaml.safe_load((self.folder / "tiny.yaml").read_text()):
            text = text.replace("      slurm_partition: ?gpu", "      gpu: 1\n      slurm_partition: ?gpu")
        target = self.folder / "profile"
        target.mkdir(exist_ok=True)
        (target / "config.yaml").write_text(text)
        return target

    def start(self, *targets: str, step: float = 0, patient: bool = False, **site: Any) -> "Controller":
        """Start snakemake on the cluster; a training step takes `step` seconds more. Patient, it asks as seldom as it does."""
        run = ["-m", "snakemake"] if patient else ["-c", IMPATIENT]
        command = [
            *END_WITH_PYTEST, *HEARS_SIGNALS, sys.executable, *run, *targets,
            "--profile", str(self.profile(**site)), *self.files,
        ]  # fmt: skip
        screen = self.folder / f"screen{len(self.controllers)}.txt"
        with screen.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.cluster.environment | {"SECONDS_A_STEP": str(step)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.controllers.append(Controller(process, screen))
        return self.controllers[-1]

    def local(self, *targets: str) -> None:
        """Run snakemake here, without the cluster."""
        self._run(*targets, "--cores", "2")

    def unlock(self) -> None:
        """Take away the lock that a killed snakemake left."""
        self._run("--unlock", "--profile", str(self.profile()))

    def _run(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "snakemake", *arguments, *self.files]
        result = subprocess.run(
            command,
            cwd=ROOT,
            env=self.cluster.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert result.returncode == 0, result.stderr

    @property
    def files(self) -> list[str]:
        return [
            "--snakefile", str(ROOT / "Snakefile"), "--directory", str(self.folder),
            "--configfile", str(ROOT / "config/config.yaml"), str(ROOT / "config/demo.yaml"),
            str(self.folder / "tiny.yaml"),
        ]  # fmt: skip

    def output_of(self, job: dict[str, str]) -> str:
        """What a job wrote to the screen; SLURM's file of it, or the training's log where the job succeeded."""
        file = Path(job["StdOut"])
        return (file if file.exists() else self.folder / "logs/train/tsm/seed0.log").read_text()

    def trained(self, experiment: str = "tsm") -> tuple[str, str, list[dict[str, Any]]]:
        """What a training gives: the digests of its best and of its last network, and each epoch's loss and scores."""
        folder = self.folder / f"results/experiments/{experiment}/seed0"
        history = pd.read_parquet(folder / "history.parquet").drop(columns=list(TIMES))
        key = json.loads((folder / "run.json").read_text())["state"]
        saved = max((self.folder / "state/train" / key).glob("state-*-*.pt"))
        last = torch.load(saved, weights_only=True)["model"]
        return (folder / "model.sha256").read_text(), tensors_digest(last), history.to_dict("records")

    def log(self) -> str:
        """What the training said, in all its attempts."""
        return "".join(path.read_text() for path in self.folder.glob("state/train/*/log.txt"))

    def steps(self) -> list[tuple[str, str]]:
        """The training steps that were made, in order: SLURM job, and the GPUs that it saw (`slow_steps`)."""
        file = self.folder / "steps.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(job, devices) for job, devices in (line.split(" ") for line in lines)]

    def hold(self, steps: int) -> None:
        """Let training wait, alive, once so many steps are made."""
        (self.folder / "hold").write_text(str(steps))

    def release(self) -> None:
        """Let training go on."""
        (self.folder / "hold").unlink()


@dataclass
class Controller:
    """A snakemake that gives jobs to the cluster."""

    process: subprocess.Popen[bytes]
    screen: Path

    def text(self) -> str:
        return self.screen.read_text()

    def wait(self, seconds: float = 480) -> int:
        """Wait for its end and return its exit code."""
        return self.process.wait(seconds)

    def kill(self, number: signal.Signals) -> None:
        """Send a signal, as to a terminal's whole group of processes."""
        os.killpg(self.process.pid, number)
        self.process.wait(240)


TSM = "results/experiments/tsm/seed0/model.sha256"
EPOCHS = 16
STEPS = 3 * EPOCHS  # 24 videos, 8 a step


@pytest.fixture(scope="session")
def prepared(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> ClusterWorkflow:
    """A working directory in which all is made that TSM's training needs, locally. Tests copy it."""
    workflow = ClusterWorkflow(make_workflow(tmp_path_factory.mktemp("prepared")).folder, cluster)
    workflow.configure(training={"epochs": EPOCHS})
    workflow.local("results/checks/tsm.txt")
    return workflow


@pytest.fixture(scope="session")
def unbroken(prepared: ClusterWorkflow, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a training gives that nothing interrupted, here without the cluster."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    shutil.copytree(prepared.folder, folder)
    workflow = ClusterWorkflow(folder, prepared.cluster)
    workflow.local(TSM)
    assert len(workflow.steps()) == STEPS
    return workflow.trained()


@pytest.fixture
def workflow(prepared: ClusterWorkflow, tmp_path: Path, cluster: Cluster) -> Iterator[ClusterWorkflow]:
    """A working directory in which only the training is missing, on a cluster without jobs."""
    shutil.copytree(prepared.folder, tmp_path / "run")
    cluster.seen = len(cluster.all_jobs())
    workflow = ClusterWorkflow(tmp_path / "run", cluster)
    yield workflow
    for controller in workflow.controllers:
        if controller.process.poll() is None:
            controller.kill(signal.SIGKILL)
    (workflow.folder / "hold").unlink(missing_ok=True)
    cluster.clear()
