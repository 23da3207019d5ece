"""The workflow on a real SLURM: where it runs, and what it survives."""

import json
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from .conftest import STEPS, TSM, Cluster, ClusterWorkflow, wait_for

pytestmark = pytest.mark.cluster


def states(cluster: Cluster) -> list[str]:
    """How the training jobs ended, in the order of their submission."""
    return [job["JobState"] for job in cluster.jobs("train_tsm")]


def running(cluster: Cluster, workflow: ClusterWorkflow, *, beyond: int = 0) -> dict[str, str]:
    """Wait until a training runs and has made an epoch more than `beyond` steps, and return its job."""

    def find() -> dict[str, str] | None:
        jobs = [job for job in cluster.jobs("train_tsm") if job["JobState"] == "RUNNING"]
        return jobs[-1] if jobs and len(workflow.steps()) > beyond + 3 else None

    job: dict[str, str] = wait_for("a training at work", find, 240)
    return job


def goes_on_where_it_stopped(workflow: ClusterWorkflow, times: int) -> bool:
    """Whether the training was interrupted so often, each time saved, and went on at that very step."""
    stopped = re.findall(
        r"unfinished, run again: .*, saved at epoch (\d+) of \d+, step (\d+)", workflow.log()
    )
    continued = re.findall(r"tsm: continues at epoch (\d+), after (\d+) steps", workflow.log())
    return stopped == continued and len(stopped) == times and len(workflow.steps()) == STEPS


def test_two_jobs_see_different_gpus(cluster: Cluster, tmp_path: Path) -> None:
    script = (
        "echo $CUDA_VISIBLE_DEVICES; touch $SLURM_JOB_ID; until test $(ls | wc -l) = 2; do sleep 0.1; done"
    )
    command = ["srun", "--partition=gpu", "--gpus=1", "sh", "-c", script]
    jobs = [
        subprocess.Popen(command, cwd=tmp_path, env=cluster.environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    assert sorted(job.communicate(timeout=60)[0].strip() for job in jobs) == ["0", "1"]


def test_the_whole_workflow(cluster: Cluster, workflow: ClusterWorkflow, tmp_path: Path) -> None:
    """Each rule runs where it should with what it should, and the numbers are those of a local run."""
    workflow.configure(data={"index_shards": 1}, training={"epochs": 2}, evaluation={"frame_counts": [4, 16]})
    shutil.rmtree(workflow.folder / "results")
    local = ClusterWorkflow(tmp_path / "local", cluster)
    shutil.copytree(workflow.folder, local.folder)
    local.local()
    workflow.hold(0)  # until both trainings are at work
    controller = workflow.start()
    wait_for(
        "two trainings at once",
        lambda: [job["JobState"] for job in cluster.jobs("train")] == ["RUNNING"] * 2,
        240,
    )
    workflow.release()
    assert controller.wait() == 0, controller.text()

    jobs = cluster.jobs()
    rules = [re.sub("_wildcards.*", "", job["Comment"]) for job in jobs]
    assert sorted(rules) == ["rule_evaluate"] * 4 + ["rule_index_videos", "rule_train_ffn", "rule_train_tsm"]
    asked = {"rule_train_tsm": "08:00:00", "rule_train_ffn": "08:00:00", "rule_evaluate": "01:00:00"}
    for job, rule in zip(jobs, rules, strict=True):
        assert job["JobState"] == "COMPLETED"
        assert job["Requeue"] == "1"
        assert job["NumCPUs"] == "1"
        if rule == "rule_index_videos":
            assert (job["Partition"], job["TimeLimit"]) == ("cpu", "02:00:00")
            assert "mem=2000M" in job["TRES"]
            assert "TresPerJob" not in job
        else:
            assert (job["Partition"], job["TimeLimit"]) == ("gpu", asked[rule])
            assert f"mem={16000 if rule == 'rule_evaluate' else 32000}M" in job["TRES"]
            assert job["TresPerJob"] == "gres:gpu:1"
    # Each training has a GPU of its own; what is looked at before it is looked at here, without the node's device.
    steps = workflow.steps()
    assert len(steps) == 2 * 2 * 3
    assert sorted({devices for _, devices in steps}) == ["0", "1"]
    assert len(set(steps)) == 2
    for experiment in ("tsm", "ffn"):
        checked = (workflow.folder / f"results/checks/{experiment}.txt").read_text()
        assert "ok  decoder" in checked
        assert "device" not in checked
        run = json.loads((workflow.folder / f"results/experiments/{experiment}/seed0/run.json").read_text())
        assert run["slurm_job"] in {job for job, _ in steps}
        assert workflow.trained(experiment) == local.trained(experiment)
    pd.testing.assert_frame_equal(
        *(pd.read_csv(folder / "results/table1.csv") for folder in (workflow.folder, local.folder))
    )


def test_the_time_limit(cluster: Cluster, workflow: ClusterWorkflow, unbroken: Any) -> None:
    """A training that takes longer than its job stops in time, is submitted again, and goes on where it stopped."""
    # All steps take longer than what a job of a minute has, and `h200` is another spelling of the GPU.
    controller = workflow.start(TSM, step=1.2, minutes=1, gpu_type="h200")
    assert controller.wait() == 0, controller.text()
    jobs = cluster.jobs("train_tsm")
    assert {job["TresPerJob"] for job in jobs} == {"gres:gpu:h200:1"}
    assert len(jobs) >= 2
    assert states(cluster) == ["FAILED"] * (len(jobs) - 1) + ["COMPLETED"]
    assert workflow.log().count("the time is nearly used") == len(jobs) - 1
    assert goes_on_where_it_stopped(workflow, len(jobs) - 1), workflow.log()
    assert workflow.trained() == unbroken


def test_requeue_drain_and_scancel(cluster: Cluster, workflow: ClusterWorkflow, unbroken: Any) -> None:
    controller = workflow.start(TSM, step=0.4)
    job = running(cluster, workflow)
    cluster.update("requeue", job["JobId"])
    wait_for("the requeue", lambda: cluster.jobs("train_tsm")[0].get("Restarts") == "1")
    again = running(cluster, workflow, beyond=len(workflow.steps()))
    assert again["JobId"] == job["JobId"]

    cluster.update("update", f"NodeName={cluster.node}", "State=DRAIN", "Reason=test")
    subprocess.run(["scancel", job["JobId"]], env=cluster.environment, check=True)
    wait_for("a new job", lambda: states(cluster) == ["CANCELLED", "PENDING"])
    cluster.update("update", f"NodeName={cluster.node}", "State=RESUME")
    assert controller.wait() == 0, controller.text()
    assert states(cluster) == ["CANCELLED", "COMPLETED"]
    assert goes_on_where_it_stopped(workflow, 2), workflow.log()
    assert workflow.trained() == unbroken


def test_preemption(cluster: Cluster, workflow: ClusterWorkflow, unbroken: Any) -> None:
    """A job of a partition that goes first takes the GPU away; the training saves, waits, and goes on."""
    controller = workflow.start(TSM, step=0.4)
    job = running(cluster, workflow)
    urgent = [
        "sbatch",
        "--parsable",
        "--partition=urgent",
        "--gpus=2",
        "--output=/dev/null",
        "--wrap=sleep 2",
    ]
    (number,) = re.findall(r"^\d+", cluster.command(*urgent))
    wait_for("the preemption", lambda: cluster.jobs("train_tsm")[0].get("Restarts") == "1")
    again = running(cluster, workflow, beyond=len(workflow.steps()))
    assert again["JobId"] == job["JobId"]
    assert {job["JobId"]: job["JobState"] for job in cluster.all_jobs()}[number] == "COMPLETED"
    assert controller.wait() == 0, controller.text()
    assert states(cluster) == ["COMPLETED"]
    assert goes_on_where_it_stopped(workflow, 1), workflow.log()
    assert workflow.trained() == unbroken


def test_ctrl_c(cluster: Cluster, workflow: ClusterWorkflow, unbroken: Any) -> None:
    """It cancels the job, which saves; the same command goes on, without a lock in its way."""
    # While it asks SLURM for its jobs, Snakemake has none to cancel, so here it asks seldom, as it does elsewhere. A step is
    # long, and what is between SLURM and the training has to wait for its end.
    controller = workflow.start(TSM, step=3, patient=True, **{"slurm-init-seconds-before-status-checks": 10})
    running(cluster, workflow)
    controller.kill(signal.SIGINT)
    wait_for("the job's end", lambda: states(cluster) == ["CANCELLED"])
    controller = workflow.start(TSM)
    assert controller.wait() == 0, controller.text()
    assert states(cluster) == ["CANCELLED", "COMPLETED"]
    assert goes_on_where_it_stopped(workflow, 1), workflow.log()
    assert workflow.trained() == unbroken


def test_a_node_that_fails(cluster: Cluster, workflow: ClusterWorkflow, unbroken: Any) -> None:
    """SLURM runs the same job again; at most the steps since the last save, an epoch, are repeated."""
    controller = workflow.start(TSM, step=0.4)
    job = running(cluster, workflow)
    cluster.update("update", f"NodeName={cluster.node}", "State=DOWN", "Reason=test")
    wait_for("the requeue", lambda: states(cluster) == ["PENDING"])
    # The node is the same one, and SLURM holds a job that comes back to one where it still ends.
    wait_for("the end of its processes", lambda: cluster.processes_ended(job))
    cluster.update("update", f"NodeName={cluster.node}", "State=RESUME")
    assert controller.wait() == 0, controller.text()
    assert states(cluster) == ["COMPLETED"]
    assert "tsm: continues at epoch" in workflow.log()
    assert STEPS <= len(workflow.steps()) <= STEPS + 3
    assert workflow.trained() == unbroken


def test_the_controller_is_killed(cluster: Cluster, workflow: ClusterWorkflow, unbroken: Any) -> None:
    """Started again while its job runs on, it submits a second one, which does not write; each step is made once."""
    workflow.hold(STEPS // 2)
    controller = workflow.start(TSM)
    wait_for("half of the training", lambda: len(workflow.steps()) == STEPS // 2, 240)
    controller.kill(signal.SIGKILL)
    locked = workflow.start(TSM)
    assert locked.wait() != 0
    assert "--unlock" in locked.text()
    workflow.unlock()
    controller = workflow.start(TSM)
    first, second = wait_for(
        "a second job", lambda: len(jobs := cluster.jobs("train_tsm")) == 2 and jobs, 240
    )
    wait_for(
        "the second job's end",
        lambda: cluster.jobs("train_tsm")[1]["JobState"] not in ("PENDING", "RUNNING"),
        240,
    )
    assert f"job {first['JobId']}, process" in workflow.output_of(second)
    assert "is at work on this and alive; nothing was written" in workflow.output_of(second)
    workflow.release()
    assert controller.wait() == 0, controller.text()
    assert {job for job, _ in workflow.steps()} == {first["JobId"]}
    assert len(workflow.steps()) == STEPS
    assert "was trained before, nothing is left to do" in workflow.output_of(cluster.jobs("train_tsm")[-1])
    assert workflow.trained() == unbroken


def test_the_terminal_of_the_controller_closes(
    cluster: Cluster, workflow: ClusterWorkflow, unbroken: Any
) -> None:
    """The job runs on and ends unwatched; the controller, started again, finds its files."""
    workflow.hold(STEPS // 2)
    controller = workflow.start(TSM, gres="gpu:h200:1")  # the third spelling of the GPU
    wait_for("half of the training", lambda: len(workflow.steps()) == STEPS // 2, 240)
    controller.kill(signal.SIGHUP)
    (job,) = cluster.jobs("train_tsm")
    assert job["JobState"] == "RUNNING"
    assert job["TresPerNode"] == "gres:gpu:h200:1"
    assert "TresPerJob" not in job
    workflow.release()
    wait_for("the end of the training", lambda: states(cluster) == ["COMPLETED"], 240)
    workflow.unlock()
    controller = workflow.start(TSM)
    assert controller.wait() == 0, controller.text()
    assert {job for job, _ in workflow.steps()} == {job["JobId"]}
    assert len(workflow.steps()) == STEPS
    assert workflow.trained() == unbroken


def test_what_fails_for_good_is_not_tried_for_ever(cluster: Cluster, workflow: ClusterWorkflow) -> None:
    workflow.configure(training={"learning_rate": 1e30})
    controller = workflow.start(TSM, retries=1)
    assert controller.wait() != 0
    assert states(cluster) == ["FAILED", "FAILED"]
    first, second = (workflow.output_of(job) for job in cluster.jobs("train_tsm"))
    assert "error: tsm: the loss is nan" in first
    assert "error: tsm: the loss is nan" in second
    assert "(so it ended on" in second


def test_a_training_without_its_gpu_stops(cluster: Cluster, workflow: ClusterWorkflow) -> None:
    """SLURM deals a GPU out, but not a real one: the training does not go on on the CPU."""
    workflow.configure(runtime={"device": "auto"})
    controller = workflow.start(TSM, retries=0)
    assert controller.wait() != 0
    (job,) = cluster.jobs("train_tsm")
    assert job["TresPerJob"] == "gres:gpu:1"
    said = workflow.output_of(job)
    assert f"error: SLURM job {job['JobId']} sees no GPU (CUDA_VISIBLE_DEVICES is 0)" in said
    assert workflow.steps() == []
