"""A throwaway SLURM cluster of one node on this machine, and the workflow on it through `profiles/slurm`.

`make test-cluster` runs several tests at once. Each worker of pytest-xdist has a cluster of its own, so a test can take
its node down. The data and the results to compare with are made once, for all workers.
"""

import fcntl
import getpass
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
import yaml

from ffnrepro.data.demo import make_demo_data

from ..workflow.conftest import ROOT, TINY

EPOCHS = 8
STEPS = 3 * EPOCHS  # 24 videos, 8 a step

# All that the tests know about the layout of the workflow is here, and nowhere else.

CHANGES: dict[str, Any] = {
    "data": {"index_shards": 1},
    "training": {"epochs": EPOCHS},
    "tables": {"table1": {"frame_counts": [4]}},
}
"""What the tests change in the configuration, by section."""
TIMES = ["seconds", "frames_per_second", "data_wait"]
"""Columns of the history that differ between two runs of the same training."""
TABLE = "results/table1.csv"
PREPARE = ("--until", "check_training")
"""Arguments of snakemake that make all files that the trainings need."""
TRAIN_TSM = ("--until", "train_tsm")
"""Arguments of snakemake that train TSM and do nothing after it."""


def run_folder(folder: Path, experiment: str) -> Path:
    """The only run of an experiment, in a working directory."""
    (found,) = folder.glob(f"results/runs/{experiment}-????????")
    return found


def check_file(folder: Path, experiment: str) -> Path:
    """What was checked before the training of an experiment."""
    return folder / f"logs/check_training/{run_folder(folder, experiment).name}/seed0.log"


def result_folder(folder: Path, experiment: str) -> Path:
    """The results of one training."""
    return run_folder(folder, experiment) / "seed0"


def training_log(folder: Path, experiment: str) -> str:
    """What a training logged in all of its attempts."""
    return "".join(path.read_text() for path in folder.glob(f"state/{experiment}-*/seed0-*/log.txt"))


def log_of_last_attempt(folder: Path, experiment: str) -> str:
    """What the last successful attempt of a training logged."""
    return (folder / f"logs/train/{run_folder(folder, experiment).name}/seed0.log").read_text()


PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
# Ends also where pytest is killed.
END_WITH_PYTEST = ("setpriv", "--pdeathsig", "TERM")
# Receives signals also where pytest runs in the background or under nohup.
DEFAULT_SIGNALS = ("env", "--default-signal=INT,HUP")
DAEMONS = ("munged", "slurmctld", "slurmd")

# The two GPUs compute nothing: SLURM assigns device files, here two that every machine has. The node claims more cores than
# the machine may have, so that jobs run side by side. A requeued job waits for `cred_expire` seconds.
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
SlurmdDebug=debug
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
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
# No cgroups are used, but slurmd demands a plugin; this one also starts in a container without cgroups.
CGROUP_CONF = """\
CgroupPlugin=cgroup/v1
"""
GRES_CONF = """\
Name=gpu Type=h200 File=/dev/null
Name=gpu Type=h200 File=/dev/zero
"""

# The executor waits longer and longer between two status checks, up to 3 minutes. Here it waits for `sys.argv[1]` seconds
# at most, and appends to the file `sys.argv[2]` when it begins to wait.
SHORT_WAITS = """\
import asyncio, sys
most, waits = float(sys.argv.pop(1)), sys.argv.pop(1)
sleep = asyncio.sleep
def short_sleep(seconds):
    if seconds >= 1:
        print("waits", file=open(waits, "a"))
    return sleep(min(seconds, most))
asyncio.sleep = short_sleep
from snakemake.cli import main
main(sys.argv[1:])
"""


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait until the condition holds, and return its value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds:.0f} s")


class Cluster:
    """munged, slurmctld and slurmd in the foreground, in a folder of their own, apart from any SLURM of the machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.node = platform.node().split(".")[0]
        self.jobs_before = 0
        self._daemons: list[subprocess.Popen[bytes]] = []
        # A job's inner snakemake drops SLURM_CONF, so `srun` is given the path of the configuration.
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
        """All jobs, finished ones included, the oldest first, each with the fields of `scontrol show job`."""
        shown = self.command("scontrol", "--details", "--oneliner", "show", "jobs")
        jobs = [dict(re.findall(r"(\S+?)=(\S+)", line)) for line in shown.splitlines() if "JobId=" in line]
        return sorted(jobs, key=lambda job: int(job["JobId"]))

    def jobs(self, rule: str = "") -> list[dict[str, str]]:
        """The jobs of a rule in this test, the oldest first."""
        jobs = self.all_jobs()[self.jobs_before :]
        return [job for job in jobs if job.get("Comment", "").startswith(f"rule_{rule}")]

    def signals(self, job: dict[str, str]) -> int:
        """How often SLURM has sent SIGTERM to the processes of a job."""
        return self._node_log().count(f"Sent signal 15 to StepId={job['JobId']}.0")

    def ends(self, job: dict[str, str]) -> int:
        """How often the node has finished a job; SLURM holds a job that returns to a node before that."""
        return self._node_log().count(f"completed epilog for jobid {job['JobId']}\n")

    def _node_log(self) -> str:
        return (self.folder / "slurmd.log").read_text()

    def update(self, *arguments: str) -> None:
        """Change something as an administrator, by scontrol."""
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
        """A copy of the profile with a site's changes. It requests a GPU even if the device is `cpu`."""
        text = (ROOT / "profiles/slurm/config.yaml").read_text()
        changes = {"slurm-init-seconds-before-status-checks": 1, "latency-wait": 10, "local-cores": 1, **site}
        for name, value in changes.items():
            text, count = re.subn(rf"^( *{name}:) \S+", rf"\1 {value}", text, count=1, flags=re.MULTILINE)
            assert count == 1, name
        text = text.replace("      slurm_partition: ?gpu", "      gpu: 1\n      slurm_partition: ?gpu")
        target = self.folder / "profile"
        target.mkdir(exist_ok=True)
        (target / "config.yaml").write_text(text)
        return target

    def start(self, *targets: str, most_seconds_between_checks: float = 1, **site: Any) -> "Controller":
        """Start snakemake on the cluster, with a site's changes of the profile."""
        screen = self.folder / f"screen{len(self.controllers)}.txt"
        waits = self.folder / f"waits{len(self.controllers)}.txt"
        command = [
            *END_WITH_PYTEST, *DEFAULT_SIGNALS,
            sys.executable, "-c", SHORT_WAITS, str(most_seconds_between_checks), str(waits),
            *targets, "--profile", str(self.profile(**site)), *self.files,
        ]  # fmt: skip
        with screen.open("w") as output:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.cluster.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.controllers.append(Controller(process, screen, waits))
        return self.controllers[-1]

    def local(self, *targets: str) -> None:
        """Run snakemake here, without the cluster."""
        self._run(*targets, "--cores", "2")

    def unlock(self) -> None:
        """Remove the lock that a killed snakemake left."""
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
            "--configfile", str(ROOT / "config/demo.yaml"),
            str(self.folder / "tiny.yaml"),
        ]  # fmt: skip

    def output_of(self, job: dict[str, str]) -> str:
        """A job's screen output: SLURM's file, or the training's log where the job succeeded."""
        file = Path(job["StdOut"])
        return file.read_text() if file.exists() else log_of_last_attempt(self.folder, "tsm")

    def trained(self, experiment: str = "tsm") -> tuple[str, list[dict[str, Any]]]:
        """What a training gives: the digest of its best network, and the loss and scores of each epoch.

        The last epoch's loss and scores depend on every step before.
        """
        folder = result_folder(self.folder, experiment)
        history = pd.read_parquet(folder / "history.parquet").drop(columns=TIMES)
        return (folder / "model.sha256").read_text(), history.to_dict("records")

    def log(self) -> str:
        """What TSM's training logged in all of its attempts."""
        return training_log(self.folder, "tsm")

    def steps(self) -> list[tuple[str, str]]:
        """The training steps so far, in order: SLURM job, and the GPUs that it saw (`slow_steps`)."""
        file = self.folder / "steps.txt"
        lines = file.read_text().splitlines() if file.exists() else []
        return [(job, devices) for job, devices in (line.split(" ") for line in lines)]

    def waits_after(self, step: int) -> bool:
        """Whether training waits in the step after this one, and not in a validation or in an earlier step."""
        file = self.folder / "waiting"
        return file.exists() and file.read_text() == str(step)

    def slow_down(self, *, after: int, seconds: float = 1e9) -> None:
        """Slow down each training step after the first `after` steps; without `seconds`, training waits there."""
        pace = self.folder / "pace"
        pace.with_suffix(".new").write_text(f"{after} {seconds}")
        pace.with_suffix(".new").replace(pace)

    def go_on(self) -> None:
        """Let training go on at full speed."""
        (self.folder / "pace").unlink(missing_ok=True)


@dataclass
class Controller:
    """A snakemake that submits jobs to the cluster."""

    process: subprocess.Popen[bytes]
    screen: Path
    waits: Path

    def text(self) -> str:
        return self.screen.read_text()

    def wait(self, seconds: float = 480) -> int:
        """Wait for its end and return its exit code."""
        return self.process.wait(seconds)

    def kill(self, number: signal.Signals) -> None:
        """Send a signal, as a terminal does, to the whole group of processes."""
        os.killpg(self.process.pid, number)
        self.process.wait(240)

    def wait_for_pause(self) -> None:
        """Wait until it begins to wait for its next status check."""

        def count() -> int:
            return len(self.waits.read_text().splitlines()) if self.waits.exists() else 0

        before = count()
        wait_for("a status check", lambda: count() > before)


def make_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first worker to request it makes, and that the others share."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / name).exists():
            make(root / f"{name} unfinished")
            (root / f"{name} unfinished").rename(root / name)
    return root / name


@pytest.fixture(scope="session")
def prepared(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with all files that the trainings need, made locally. Tests copy it."""

    def make(folder: Path) -> None:
        make_demo_data(
            folder / "my data", seed=1, train_per_class=2, validation_per_class=1, frames=18, workers=2
        )
        (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
        workflow = ClusterWorkflow(folder, cluster)
        workflow.configure(**CHANGES)
        workflow.local(*PREPARE)

    return make_once(tmp_path_factory, "prepared", make)


@pytest.fixture(scope="session")
def local(
    cluster: Cluster, prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[], ClusterWorkflow]:
    """Gives the finished workflow of a run without cluster and without interruption; the first call runs it."""

    def make(folder: Path) -> None:
        shutil.copytree(prepared, folder)
        workflow = ClusterWorkflow(folder, cluster)
        workflow.local()
        assert len(workflow.steps()) == 2 * STEPS

    return lambda: ClusterWorkflow(make_once(tmp_path_factory, "local", make), cluster)


@pytest.fixture
def workflow(prepared: Path, tmp_path: Path, cluster: Cluster) -> Iterator[ClusterWorkflow]:
    """A working directory in which TSM is ready to be trained, on a cluster without jobs."""
    shutil.copytree(prepared, tmp_path / "run")
    cluster.jobs_before = len(cluster.all_jobs())
    workflow = ClusterWorkflow(tmp_path / "run", cluster)
    yield workflow
    for controller in workflow.controllers:
        if controller.process.poll() is None:
            controller.kill(signal.SIGKILL)
    workflow.go_on()
    cluster.clear()
