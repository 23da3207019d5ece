"""The workflow on a real SLURM: where it runs, and what it survives."""

import json
import re
import shutil
import signal
import subprocess
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from .conftest import EPOCHS, TSM, Cluster, ClusterWorkflow, wait_for

pytestmark = pytest.mark.cluster


def states(cluster: Cluster) -> list[str]:
    """How the training jobs ended, in the order of their submission."""
    return [job["JobState"] for job in cluster.jobs("train_tsm")]


def epochs(text: str) -> list[int]:
    """Epochs that a training finished, by what it said."""
    return [int(epoch) for epoch in re.findall(r"tsm: epoch (\d+)/", text)]


def running(cluster: Cluster, workflow: ClusterWorkflow, *, beyond: int = 0) -> dict[str, str]:
    """Wait until a training runs and has saved more than `beyond` epochs, and return its job."""

    def find() -> dict[str, str] | None:
        jobs = [job for job in cluster.jobs("train_tsm") if job["JobState"] == "RUNNING"]
        return jobs[-1] if jobs and workflow.progress() > beyond else None

    job: dict[str, str] = wait_for("a training at work", find, 120)
    return job


def test_two_jobs_see_different_gpus(cluster: Cluster, tmp_path: Path) -> None:
    script = "echo $CUDA_VISIBLE_DEVICES; sleep 2"
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
    controller = workflow.start()
    assert controller.wait() == 0, controller.text()

    jobs = cluster.jobs()
    rules = [re.sub("_wildcards.*", "", job["Comment"]) for job in jobs]
    assert sorted(rules) == ["rule_evaluate"] * 4 + ["rule_index_videos", "rule_train_ffn", "rule_train_tsm"]
    asked = {"rule_train_tsm": "08:00:00", "rule_train_ffn": "08:00:00", "rule_evaluate": "01:00:00"}
    for job, rule in zip(jobs, rules, strict=True):
        assert job["JobState"] == "COMPLETED"
        assert job["Requeue"] == "1"
        if rule == "rule_index_videos":
            assert (job["Partition"], job["TimeLimit"]) == ("cpu", "02:00:00")
            assert "TresPerJob" not in job
        else:
            assert (job["Partition"], job["TimeLimit"]) == ("gpu", asked[rule])
            assert f"mem={16000 if rule == 'rule_evaluate' else 32000}M" in job["TRES"]
            assert job["TresPerJob"] == "gres:gpu:1"
    one, other = cluster.jobs("train")
    assert {re.findall(r"IDX:(\d)", job["GRES"])[0] for job in (one, other)} == {"0", "1"}
    assert one["StartTime"] < other["EndTime"]
    assert other["StartTime"] < one["EndTime"]

    for experiment in ("tsm", "ffn"):
        run = json.loads((workflow.folder / f"results/experiments/{experiment}/seed0/run.json").read_text())
        assert run["slurm_job"] in {one["JobId"], other["JobId"]}
        assert workflow.digest(experiment) == local.digest(experiment)
    pd.testing.assert_frame_equal(
        *(pd.read_csv(folder / "results/table1.csv") for folder in (workflow.folder, local.folder))
    )


def test_the_time_limit(cluster: Cluster, workflow: ClusterWorkflow, unbroken: str) -> None:
    """A training that takes longer than its job stops in time, is submitted again, and goes on where it stopped."""
    controller = workflow.start(TSM, step=0.6, minutes=1)
    assert controller.wait() == 0, controller.text()
    jobs = cluster.jobs("train_tsm")
    assert len(jobs) >= 2
    said = [workflow.output_of(job) for job in jobs]
    for before, after in pairwise(said):
        stopped = re.search(
            r"unfinished, run again: tsm: the time is nearly used, saved at epoch (\d+) of \d+, step (\d+)",
            before,
        )
        continued = re.search(r"tsm: continues at epoch (\d+), after (\d+) steps", after)
        assert stopped is not None, before
        assert continued is not None, after
        assert stopped.groups() == continued.groups()  # no step is repeated
    assert [epoch for text in said for epoch in epochs(text)] == list(range(1, EPOCHS + 1))
    assert workflow.digest() == unbroken
    print("\n".join(said))


def test_requeue_drain_and_scancel(cluster: Cluster, workflow: ClusterWorkflow, unbroken: str) -> None:
    controller = workflow.start(TSM, step=0.2)
    job = running(cluster, workflow)
    cluster.update("requeue", job["JobId"])
    wait_for("the requeue", lambda: cluster.jobs("train_tsm")[0].get("Restarts") == "1")
    done = workflow.progress()
    again = running(cluster, workflow, beyond=done)
    assert again["JobId"] == job["JobId"]

    cluster.update("update", f"NodeName={cluster.node}", "State=DRAIN", "Reason=test")
    subprocess.run(["scancel", job["JobId"]], env=cluster.environment, check=True)
    wait_for("a new job", lambda: len(cluster.jobs("train_tsm")) == 2)
    wait_for("the end of the old", lambda: states(cluster)[0] == "CANCELLED")
    assert states(cluster)[1] == "PENDING"
    cluster.update("update", f"NodeName={cluster.node}", "State=RESUME")
    assert controller.wait() == 0, controller.text()
    assert states(cluster) == ["CANCELLED", "COMPLETED"]
    assert "continues at epoch" in workflow.output_of(cluster.jobs("train_tsm")[1])
    assert workflow.digest() == unbroken


def test_a_node_that_fails(cluster: Cluster, workflow: ClusterWorkflow, unbroken: str) -> None:
    controller = workflow.start(TSM, step=0.2)
    running(cluster, workflow)
    cluster.update("update", f"NodeName={cluster.node}", "State=DOWN", "Reason=test")
    wait_for("the requeue", lambda: states(cluster) == ["PENDING"])
    cluster.command(
        "scontrol", "update", f"NodeName={cluster.node}", "State=RESUME"
    )  # unless it came back by itself
    assert controller.wait() == 0, controller.text()
    assert len(cluster.jobs("train_tsm")) == 1
    assert workflow.digest() == unbroken


def test_the_controller_is_killed(cluster: Cluster, workflow: ClusterWorkflow, unbroken: str) -> None:
    """Started again while its job runs on, it submits a second one, which does not write; each epoch is trained once."""
    controller = workflow.start(TSM, step=0.5)
    first = running(cluster, workflow)
    controller.kill(signal.SIGKILL)
    locked = workflow.start(TSM)
    assert locked.wait() != 0
    assert "--unlock" in locked.text()
    workflow.unlock()
    controller = workflow.start(TSM)
    assert controller.wait() == 0, controller.text()
    jobs = cluster.jobs("train_tsm")
    assert jobs[0]["JobId"] == first["JobId"]
    assert len(jobs) > 1
    said = [workflow.output_of(job) for job in jobs]
    assert any("is at work on this and alive; nothing was written" in text for text in said[1:-1]), said
    assert sorted(epoch for text in said for epoch in epochs(text)) == list(range(1, EPOCHS + 1))
    assert workflow.digest() == unbroken


def test_the_terminal_of_the_controller_closes(
    cluster: Cluster, workflow: ClusterWorkflow, unbroken: str
) -> None:
    """The job runs on and ends unwatched; the controller, started again, finds its files."""
    controller = workflow.start(TSM, step=0.1)
    running(cluster, workflow)
    controller.kill(signal.SIGHUP)
    wait_for("the end of the training", lambda: states(cluster) == ["COMPLETED"], 120)
    trained = epochs(workflow.output_of(cluster.jobs("train_tsm")[0]))
    workflow.unlock()
    controller = workflow.start(TSM)
    assert controller.wait() == 0, controller.text()
    assert trained == list(range(1, EPOCHS + 1))
    assert all(not epochs(workflow.output_of(job)) for job in cluster.jobs("train_tsm")[1:])
    assert workflow.digest() == unbroken


def test_what_fails_for_good_is_not_tried_for_ever(cluster: Cluster, workflow: ClusterWorkflow) -> None:
    workflow.configure(training={"learning_rate": 1e30})
    controller = workflow.start(TSM, retries=1)
    assert controller.wait() != 0
    assert states(cluster) == ["FAILED", "FAILED"]
    first, second = (workflow.output_of(job) for job in cluster.jobs("train_tsm"))
    assert "error: tsm: the loss is nan" in first
    assert "error: tsm: the loss is nan" in second
    assert "(so it ended on" in second


@pytest.mark.parametrize(
    ("site", "asked"),
    [
        ({}, ("TresPerJob", "gres:gpu:1")),
        ({"gpu_type": "h200"}, ("TresPerJob", "gres:gpu:h200:1")),
        ({"gres": "gpu:h200:1"}, ("TresPerNode", "gres:gpu:h200:1")),
    ],
)
def test_a_training_without_its_gpu_stops(
    cluster: Cluster, workflow: ClusterWorkflow, site: dict[str, str], asked: tuple[str, str]
) -> None:
    """SLURM deals a GPU out, by each spelling, but not a real one: the training does not go on on the CPU."""
    workflow.configure(runtime={"device": "auto"})
    controller = workflow.start(TSM, retries=0, **site)
    assert controller.wait() != 0
    (job,) = cluster.jobs("train_tsm")
    assert job[asked[0]] == asked[1]
    said = workflow.output_of(job)
    assert f"error: SLURM job {job['JobId']} sees no GPU (CUDA_VISIBLE_DEVICES is 0)" in said
