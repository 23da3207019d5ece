"""The workflow on a real SLURM: where its jobs run, and which interruptions it survives."""

import json
import re
import shutil
import signal
from collections.abc import Callable

import pandas as pd
import pytest

from .conftest import STEPS, TABLE, TRAIN_TSM, Cluster, ClusterWorkflow, check_file, result_folder, wait_for

pytestmark = pytest.mark.cluster

Local = Callable[[], ClusterWorkflow]


def states(cluster: Cluster) -> list[str]:
    """The states of the training jobs, in the order of their submission."""
    return [job["JobState"] for job in cluster.jobs("train_tsm")]


def wait_for_step(cluster: Cluster, workflow: ClusterWorkflow, step: int) -> dict[str, str]:
    """Let a training wait in the step after this one; once it does, return its job."""
    workflow.slow_down(after=step)

    def find() -> dict[str, str] | None:
        jobs = [job for job in cluster.jobs("train_tsm") if job["JobState"] == "RUNNING"]
        return jobs[-1] if jobs and workflow.waits_after(step) else None

    job: dict[str, str] = wait_for(f"step {step} of a training", find, 240)
    return job


def interrupt(
    cluster: Cluster, workflow: ClusterWorkflow, job: dict[str, str], action: Callable[[], object]
) -> None:
    """Let an action end a job whose training waits in a step, and let the training go on once it has the signal.

    The training waits again four steps later, in the job that follows.
    """
    before = cluster.signals(job)
    action()
    wait_for("the signal to the job", lambda: cluster.signals(job) > before)
    workflow.slow_down(after=len(workflow.steps()) + 4)


def test_the_whole_workflow(cluster: Cluster, workflow: ClusterWorkflow, local: Local) -> None:
    """Each rule runs on the right node with the right resources, and the numbers equal those of a local run.

    The terminal of snakemake closes meanwhile: both trainings go on unwatched, and a new snakemake finds their files.
    """
    shutil.rmtree(workflow.folder / "results")
    workflow.slow_down(after=0)
    controller = workflow.start()
    wait_for(
        "two trainings at once",
        lambda: [job["JobState"] for job in cluster.jobs("train")] == ["RUNNING"] * 2,
        240,
    )
    controller.kill(signal.SIGHUP)
    workflow.go_on()
    wait_for(
        "the end of the trainings",
        lambda: [job["JobState"] for job in cluster.jobs("train")] == ["COMPLETED"] * 2,
        240,
    )
    workflow.unlock()
    controller = workflow.start()
    assert controller.wait() == 0, controller.text()

    jobs = cluster.jobs()
    rules = [re.sub("_wildcards.*", "", job["Comment"]) for job in jobs]
    assert sorted(rules) == ["rule_evaluate"] * 2 + ["rule_index_videos", "rule_train_ffn", "rule_train_tsm"]
    limits = {"rule_train_tsm": "08:00:00", "rule_train_ffn": "08:00:00", "rule_evaluate": "01:00:00"}
    for job, rule in zip(jobs, rules, strict=True):
        assert job["JobState"] == "COMPLETED"
        assert job["Requeue"] == "1"
        assert job["NumCPUs"] == "1"
        if rule == "rule_index_videos":
            assert (job["Partition"], job["TimeLimit"]) == ("cpu", "02:00:00")
            assert "mem=2000M" in job["TRES"]
            assert "TresPerJob" not in job
        else:
            assert (job["Partition"], job["TimeLimit"]) == ("gpu", limits[rule])
            assert f"mem={16000 if rule == 'rule_evaluate' else 32000}M" in job["TRES"]
            assert job["TresPerJob"] == "gres:gpu:1"
    # Each training ran once, on a GPU of its own.
    steps = workflow.steps()
    assert len(steps) == 2 * STEPS
    assert sorted({devices for _, devices in steps}) == ["0", "1"]
    assert len(set(steps)) == 2
    for experiment in ("tsm", "ffn"):
        assert workflow.trained(experiment) == local().trained(experiment)
        # The node's device is not looked at where snakemake runs.
        checked = check_file(workflow.folder, experiment).read_text()
        assert "ok  videos" in checked
        assert "device" not in checked
        run = json.loads((result_folder(workflow.folder, experiment) / "run.json").read_text())
        assert run["slurm_job"] in {job for job, _ in steps}
    tables = [pd.read_csv(folder / TABLE) for folder in (workflow.folder, local().folder)]
    # The measured speed of a network differs from run to run.
    pd.testing.assert_frame_equal(
        *(table.drop(columns=table.filter(like="clips_per_second").columns) for table in tables)
    )


def test_the_time_limit(cluster: Cluster, workflow: ClusterWorkflow, local: Local) -> None:
    """A training that takes longer than its job stops in time, is submitted again, and continues where it stopped."""
    workflow.slow_down(after=4, seconds=3)  # longer than what a job of a minute has
    controller = workflow.start(*TRAIN_TSM, minutes=1, gpu_type="h200")  # the second spelling of the GPU
    wait_for("the end of the first job's time", lambda: "the time limit is near" in workflow.log(), 240)
    workflow.go_on()
    assert controller.wait() == 0, controller.text()
    jobs = cluster.jobs("train_tsm")
    assert {job["TresPerJob"] for job in jobs} == {"gres:gpu:h200:1"}
    # On a slow machine, the first job may end a little after its minute, and the second one may need another minute.
    assert states(cluster)[0] in ("FAILED", "TIMEOUT")
    assert states(cluster)[-1] == "COMPLETED"
    assert "unfinished, run again: tsm" in workflow.log()
    # No step was lost or repeated.
    assert len(workflow.steps()) == STEPS
    assert workflow.trained() == local().trained()


def test_interruptions_by_slurm(cluster: Cluster, workflow: ClusterWorkflow, local: Local) -> None:
    """A requeue, a preemption, scancel on a node that drains, and a node that fails, one after the other."""
    controller = workflow.start(*TRAIN_TSM)
    first = wait_for_step(cluster, workflow, 4)
    interrupt(cluster, workflow, first, lambda: cluster.update("requeue", first["JobId"]))
    assert wait_for_step(cluster, workflow, 8)["JobId"] == first["JobId"]

    # A job of a partition with precedence takes both GPUs.
    urgent = (
        "sbatch",
        "--parsable",
        "--partition=urgent",
        "--gpus=2",
        "--output=/dev/null",
        "--wrap=sleep 2",
    )
    interrupt(cluster, workflow, first, lambda: cluster.command(*urgent))
    assert wait_for_step(cluster, workflow, 12)["JobId"] == first["JobId"]
    assert [job["JobState"] for job in cluster.all_jobs() if job["Partition"] == "urgent"] == ["COMPLETED"]
    assert cluster.jobs("train_tsm")[0]["Restarts"] == "2"

    cluster.update("update", f"NodeName={cluster.node}", "State=DRAIN", "Reason=test")
    interrupt(cluster, workflow, first, lambda: cluster.command("scancel", first["JobId"]))
    wait_for("a new job", lambda: states(cluster) == ["CANCELLED", "PENDING"])
    cluster.update("update", f"NodeName={cluster.node}", "State=RESUME")
    second = wait_for_step(cluster, workflow, 16)
    stopped = re.findall(
        r"unfinished, run again: .*, saved at epoch (\d+) of \d+, step (\d+)", workflow.log()
    )
    continued = re.findall(r"tsm-\w+: continues at epoch (\d+), after (\d+) steps", workflow.log())
    assert stopped == continued
    assert len(stopped) == 3

    # SLURM runs the job again; at most the steps since the last save, an epoch, are repeated.
    fail = ("update", f"NodeName={cluster.node}", "State=DOWN", "Reason=test")
    interrupt(cluster, workflow, second, lambda: cluster.update(*fail))
    wait_for("the requeue", lambda: states(cluster) == ["CANCELLED", "PENDING"])
    wait_for("the end of the job on its node", lambda: cluster.ends(second) == 1)
    workflow.go_on()
    cluster.update("update", f"NodeName={cluster.node}", "State=RESUME")
    assert controller.wait() == 0, controller.text()
    assert states(cluster) == ["CANCELLED", "COMPLETED"]
    assert STEPS <= len(workflow.steps()) <= STEPS + 3
    assert workflow.trained() == local().trained()


def test_snakemake_is_stopped_and_killed(cluster: Cluster, workflow: ClusterWorkflow, local: Local) -> None:
    """Ctrl-C cancels the job, which saves. Killed, snakemake leaves its job running: a second job then writes nothing."""
    # Snakemake cannot cancel its jobs during a status check, so Ctrl-C comes between two of them.
    controller = workflow.start(*TRAIN_TSM, most_seconds_between_checks=5)
    cancelled = wait_for_step(cluster, workflow, 4)
    controller.wait_for_pause()
    interrupt(cluster, workflow, cancelled, lambda: controller.kill(signal.SIGINT))
    wait_for("the job's end", lambda: states(cluster) == ["CANCELLED"])

    # The same command continues, and no lock is in its way.
    controller = workflow.start(*TRAIN_TSM, gres="gpu:h200:1")  # the third spelling of the GPU
    first = wait_for_step(cluster, workflow, STEPS // 2)
    assert first["TresPerNode"] == "gres:gpu:h200:1"
    assert "TresPerJob" not in first
    controller.kill(signal.SIGKILL)
    locked = workflow.start(*TRAIN_TSM)
    assert locked.wait() != 0
    assert "--unlock" in locked.text()

    workflow.unlock()
    controller = workflow.start(*TRAIN_TSM)
    wait_for("the second job's end", lambda: states(cluster)[2:3] == ["FAILED"], 240)
    second = workflow.output_of(cluster.jobs("train_tsm")[2])
    assert f"job {first['JobId']}, process" in second
    assert "is working on this training; nothing was written" in second
    workflow.go_on()
    assert controller.wait() == 0, controller.text()
    assert "is already trained" in workflow.output_of(cluster.jobs("train_tsm")[-1])
    # No step was lost or repeated.
    assert len(workflow.steps()) == STEPS
    assert {job for job, _ in workflow.steps()} == {cancelled["JobId"], first["JobId"]}
    assert workflow.trained() == local().trained()
