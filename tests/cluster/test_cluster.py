"""The workflow on a real SLURM: where its jobs run, and which interruptions it survives."""

import json
import re
import shutil
import signal
import subprocess
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
    """Wait until a training runs and has made so many steps, and return its job."""

    def find() -> dict[str, str] | None:
        jobs = [job for job in cluster.jobs("train_tsm") if job["JobState"] == "RUNNING"]
        return jobs[-1] if jobs and len(workflow.steps()) >= step else None

    job: dict[str, str] = wait_for(f"step {step} of a training", find, 240)
    return job


def next_slow_steps(cluster: Cluster, workflow: ClusterWorkflow) -> dict[str, str]:
    """Wait until a training is 4 steps further than now, where steps begin to take two seconds, and return its job."""
    step = len(workflow.steps()) + 4
    workflow.slow_down(after=step, seconds=2)
    return wait_for_step(cluster, workflow, step)


def continued_where_it_stopped(workflow: ClusterWorkflow) -> int:
    """Check that each attempt of the training began at the step where the last one stopped; return how many stopped."""
    stopped = re.findall(
        r"unfinished, run again: .*, saved at epoch (\d+) of \d+, step (\d+)", workflow.log()
    )
    continued = re.findall(r"tsm: continues at epoch (\d+), after (\d+) steps", workflow.log())
    assert stopped == continued, workflow.log()
    return len(stopped)


def test_the_whole_workflow(cluster: Cluster, workflow: ClusterWorkflow, local: Local) -> None:
    """Each rule runs where it should with what it should, and the numbers are those of a local run.

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
        assert "ok  decoder" in checked
        assert "device" not in checked
        run = json.loads((result_folder(workflow.folder, experiment) / "run.json").read_text())
        assert run["slurm_job"] in {job for job, _ in steps}
    pd.testing.assert_frame_equal(
        *(pd.read_csv(folder / TABLE) for folder in (workflow.folder, local().folder))
    )


def test_the_time_limit(cluster: Cluster, workflow: ClusterWorkflow, local: Local) -> None:
    """A training that takes longer than its job stops in time, is submitted again, and continues where it stopped."""
    workflow.slow_down(after=4, seconds=3)  # longer than what a job of a minute has
    controller = workflow.start(*TRAIN_TSM, minutes=1, gpu_type="h200")  # the second spelling of the GPU
    wait_for("the first job's end", lambda: "FAILED" in states(cluster), 240)
    workflow.go_on()
    assert controller.wait() == 0, controller.text()
    jobs = cluster.jobs("train_tsm")
    assert {job["TresPerJob"] for job in jobs} == {"gres:gpu:h200:1"}
    assert states(cluster) == ["FAILED", "COMPLETED"]
    assert workflow.log().count("the time is nearly used") == 1
    assert continued_where_it_stopped(workflow) == 1
    assert len(workflow.steps()) == STEPS
    assert workflow.trained() == local().trained()


def test_interruptions_by_slurm(cluster: Cluster, workflow: ClusterWorkflow, local: Local) -> None:
    """A requeue, a preemption, scancel on a node that drains, and a node that fails, one after the other."""
    controller = workflow.start(*TRAIN_TSM)
    job = next_slow_steps(cluster, workflow)
    cluster.update("requeue", job["JobId"])
    wait_for("the requeue", lambda: cluster.jobs("train_tsm")[0].get("Restarts") == "1")
    assert next_slow_steps(cluster, workflow)["JobId"] == job["JobId"]

    # A job of a partition with precedence takes both GPUs.
    urgent = ("--partition=urgent", "--gpus=2", "--output=/dev/null", "--wrap=sleep 2")
    (number,) = re.findall(r"^\d+", cluster.command("sbatch", "--parsable", *urgent))
    wait_for("the preemption", lambda: cluster.jobs("train_tsm")[0].get("Restarts") == "2")
    assert next_slow_steps(cluster, workflow)["JobId"] == job["JobId"]
    assert {job["JobId"]: job["JobState"] for job in cluster.all_jobs()}[number] == "COMPLETED"

    cluster.update("update", f"NodeName={cluster.node}", "State=DRAIN", "Reason=test")
    subprocess.run(["scancel", job["JobId"]], env=cluster.environment, check=True)
    wait_for("a new job", lambda: states(cluster) == ["CANCELLED", "PENDING"])
    cluster.update("update", f"NodeName={cluster.node}", "State=RESUME")
    job = next_slow_steps(cluster, workflow)
    assert continued_where_it_stopped(workflow) == 3

    # SLURM runs the job again; at most the steps since the last save, an epoch, are repeated.
    cluster.update("update", f"NodeName={cluster.node}", "State=DOWN", "Reason=test")
    wait_for("the requeue", lambda: states(cluster) == ["CANCELLED", "PENDING"])
    # The node is the same one, and SLURM holds a job that comes back to a node where it has not ended yet.
    wait_for("the end of its processes", lambda: cluster.processes_ended(job))
    workflow.go_on()
    cluster.update("update", f"NodeName={cluster.node}", "State=RESUME")
    assert controller.wait() == 0, controller.text()
    assert states(cluster) == ["CANCELLED", "COMPLETED"]
    assert workflow.log().count("tsm: continues at epoch") == 4
    assert STEPS <= len(workflow.steps()) <= STEPS + 3
    assert workflow.trained() == local().trained()


def test_snakemake_is_stopped_and_killed(cluster: Cluster, workflow: ClusterWorkflow, local: Local) -> None:
    """Ctrl-C cancels the job, which saves. Killed, snakemake leaves its job running: a second job then writes nothing."""
    # Snakemake cannot cancel its jobs while it asks SLURM for them, so Ctrl-C comes between two questions.
    controller = workflow.start(*TRAIN_TSM, most_seconds_between_checks=5)
    next_slow_steps(cluster, workflow)
    controller.wait_for_pause()
    controller.kill(signal.SIGINT)
    wait_for("the job's end", lambda: states(cluster) == ["CANCELLED"])

    half = STEPS // 2
    workflow.slow_down(after=half)
    controller = workflow.start(
        *TRAIN_TSM, gres="gpu:h200:1"
    )  # the third spelling of the GPU; no lock is left
    first = wait_for_step(cluster, workflow, half)
    assert first["TresPerNode"] == "gres:gpu:h200:1"
    assert "TresPerJob" not in first
    assert continued_where_it_stopped(workflow) == 1
    controller.kill(signal.SIGKILL)
    locked = workflow.start(*TRAIN_TSM)
    assert locked.wait() != 0
    assert "--unlock" in locked.text()

    workflow.unlock()
    controller = workflow.start(*TRAIN_TSM)
    wait_for(
        "the second job's end",
        lambda: len(jobs := states(cluster)) >= 3 and jobs[2] not in ("PENDING", "RUNNING"),
        240,
    )
    second = workflow.output_of(cluster.jobs("train_tsm")[2])
    assert f"job {first['JobId']}, process" in second
    assert "is at work on this and alive; nothing was written" in second
    workflow.go_on()
    assert controller.wait() == 0, controller.text()
    assert len(workflow.steps()) == STEPS
    assert workflow.steps()[half:] == [(first["JobId"], workflow.steps()[half - 1][1])] * (STEPS - half)
    assert "was trained before, nothing is left to do" in workflow.output_of(cluster.jobs("train_tsm")[-1])
    assert workflow.trained() == local().trained()


def test_what_fails_for_good_is_not_tried_for_ever(cluster: Cluster, workflow: ClusterWorkflow) -> None:
    workflow.configure(training={"learning_rate": 1e30})
    controller = workflow.start(*TRAIN_TSM, retries=1)
    assert controller.wait() != 0
    assert states(cluster) == ["FAILED", "FAILED"]
    first, second = (workflow.output_of(job) for job in cluster.jobs("train_tsm"))
    assert "error: tsm: the loss is nan" in first
    assert "error: tsm: the loss is nan" in second
    assert "(so it ended on" in second


def test_a_training_without_its_gpu_stops(cluster: Cluster, workflow: ClusterWorkflow) -> None:
    """The GPU that SLURM assigns is not a real one: the training does not go on on the CPU."""
    workflow.configure(runtime={"device": "auto"})
    controller = workflow.start(*TRAIN_TSM, retries=0)
    assert controller.wait() != 0
    (job,) = cluster.jobs("train_tsm")
    assert job["TresPerJob"] == "gres:gpu:1"
    output = workflow.output_of(job)
    assert f"error: SLURM job {job['JobId']} sees no GPU (CUDA_VISIBLE_DEVICES is 0)" in output
    assert workflow.steps() == []
