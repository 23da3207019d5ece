"""The workflow from label files to Table 1, run for real on tiny data; and what stops it."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from ffnrepro import cli
from ffnrepro.files import file_digest
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.weights import load_checkpoint, tensors_digest

from .conftest import ROOT, Workflow, make_workflow

Finished = tuple[Workflow, subprocess.CompletedProcess[str]]


def test_it_ends_with_the_table_and_the_picture(finished: Finished) -> None:
    workflow, result = finished
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    table = pd.read_csv(workflow.folder / "results/table1.csv")
    assert table["method"].tolist() == ["TSM", "TSM-FFN"]
    markdown = (workflow.folder / "results/table1.md").read_text()
    assert markdown in result.stderr
    for name in ("accuracy", "class_counts", "clip_lengths"):
        assert (workflow.folder / f"results/figures/{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_is_what_the_predictions_say(finished: Finished) -> None:
    """Accuracy and counts computed anew from the rows of predictions and the manifest."""
    folder = finished[0].folder
    table = pd.read_csv(folder / "results/table1.csv").set_index("method")
    manifest = pd.read_parquet(folder / "results/manifest/validation.parquet")
    for method, experiment in (("TSM", "tsm"), ("TSM-FFN", "ffn")):
        assert table.loc[method, "videos"] == len(manifest)
        for frames in (4, 8, 16):
            rows = pd.read_parquet(folder / f"results/evaluation/{experiment}/seed0/{frames}f.parquet")
            assert rows["id"].tolist() == manifest["id"].tolist()
            assert rows["label"].tolist() == manifest["class"].tolist()
            assert sorted(rows.columns) == sorted(
                ["id", "label", *(f"class_{k}" for k in range(1, 6)), *(f"score_{k}" for k in range(1, 6))]
            )
            hits = sum(a == b for a, b in zip(rows["label"], rows["class_1"], strict=True))
            assert table.loc[method, f"top1_{frames}f"] == round(100 * hits / len(rows), 2)


def test_checkpoints_are_the_ones_that_the_table_names(finished: Finished) -> None:
    folder = finished[0].folder
    table = pd.read_csv(folder / "results/table1.csv").set_index("method")
    for method, experiment, kind in (("TSM", "tsm", TSM), ("TSM-FFN", "ffn", FrameFlexibleNetwork)):
        run = folder / f"results/experiments/{experiment}/seed0"
        model = load_checkpoint(run / "model.pt")
        assert isinstance(model, kind)
        digest = tensors_digest(model.state_dict())
        assert table.loc[method, "checkpoint"] == digest == (run / "model.sha256").read_text().strip()
        assert table.loc[method, "parameters"] == sum(p.numel() for p in model.parameters())
        record: dict[str, Any] = json.loads((run / "run.json").read_text())
        history = pd.read_parquet(run / "history.parquet")
        assert history["epoch"].tolist() == [1, 2]
        assert record["best"]["validation_top1_16f"] == history["validation_top1_16f"].max()
        assert record["last"]["validation_top1_16f"] == history["validation_top1_16f"].iloc[-1]
        assert record["data"] == (folder / "results/manifest/manifest.sha256").read_text().strip()
        assert record["packages"]["torch"]
        assert list((folder / "state/train" / record["state"] / "tensorboard").iterdir())


def test_provenance_tells_the_chain_behind_each_number(
    finished: Finished, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = finished[0].folder
    assert cli.main(["provenance", str(folder / "results/table1.csv")]) == 0
    said = capsys.readouterr().out
    table = pd.read_csv(folder / "results/table1.csv").set_index("method")
    for method, experiment in (("TSM", "tsm"), ("TSM-FFN", "ffn")):
        part = said[said.index(f"{method}\n") :]
        for frames in (4, 8, 16):
            assert f"  {frames} frames: top-1 {table.loc[method, f'top1_{frames}f']:.2f}\n" in part
            assert f"evaluation results/evaluation/{experiment}/seed0/{frames}f.json" in part
        assert (
            f"network results/experiments/{experiment}/seed0/run.json: {table.loc[method, 'checkpoint']}"
            in part
        )
    run = json.loads((folder / "results/experiments/ffn/seed0/run.json").read_text())
    for told in (
        "distillation_weight 1.0", f"data {run['data']}", f"torch {torch.__version__.partition('+')[0]}", "device cpu", "seed 0",
        f"git revision {run['git_revision']}", "pretrained weights none", "best epoch",
    ):  # fmt: skip
        assert told in said
    assert not re.search("THE (EVALUATIONS|NUMBER)", said)
    for name in ("results/table1.md", "results/table1.json", "results/figures/accuracy.png"):
        assert cli.main(["provenance", str(folder / name)]) == 1
        assert f"{name}: is no table of results; give the path of table1.csv\n" in capsys.readouterr().err

    assert cli.main(["state", "list", "--folder", str(folder / "state")]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert sorted(row[4] for row in rows if row[0] == "evaluation" and row[2] == "ffn") == ["16", "4", "8"]
    assert ["16", "2/2"] in [row[4:6] for row in rows]
    assert ["4", "8", "16", "2/2"] in [row[4:8] for row in rows]

    shutil.copytree(folder / "results", tmp_path / "results")
    network = tmp_path / "results/experiments/tsm/seed0/run.json"
    record = json.loads(network.read_text())
    network.write_text(json.dumps(record | {"model": "ab" * 32}))
    cli.main(["provenance", str(tmp_path / "results/table1.csv")])
    said = capsys.readouterr().out
    assert said.count("THE NUMBERS ABOVE ARE NOT OF THIS NETWORK") == 1
    assert said.index("run.json: " + "ab" * 32) < said.index("THE NUMBERS ABOVE") < said.index("TSM-FFN\n")
    network.write_text(json.dumps({name: value for name, value in record.items() if name != "model"}))
    assert cli.main(["provenance", str(tmp_path / "results/table1.csv")]) == 1
    assert "is of another version ('model' is not there); run snakemake for it" in capsys.readouterr().err
    network.write_text(json.dumps(record))

    summary = tmp_path / "results/evaluation/ffn/seed0/8f.json"
    evaluated = json.loads(summary.read_text())
    summary.write_text(json.dumps(evaluated | {"model": "cd" * 32}))
    cli.main(["provenance", str(tmp_path / "results/table1.csv")])
    said = capsys.readouterr().out
    assert said.count("THE NUMBER IS NOT OF THIS NETWORK") == 1
    assert "THE NUMBERS ABOVE ARE NOT OF THIS NETWORK" in said[said.index("TSM-FFN\n") :]
    summary.write_text(json.dumps(evaluated))
    summary.write_text(json.dumps(json.loads(summary.read_text()) | {"top1": 12.34}))
    cli.main(["provenance", str(tmp_path / "results/table1.csv")])
    assert "THE EVALUATIONS BELOW GIVE 12.34" in capsys.readouterr().out
    summary.unlink()
    assert cli.main(["provenance", str(tmp_path / "results/table1.csv")]) == 1


def test_what_is_left_out_is_listed_with_its_reason(finished: Finished) -> None:
    folder = finished[0].folder
    excluded = pd.read_csv(folder / "results/manifest/excluded.csv", dtype=str).set_index("id")
    assert sorted(excluded.index) == ["1", "2", "999"]
    assert excluded.loc["2", "reason"] == "no video file"
    assert excluded.loc["999", "reason"] == "no label"
    assert excluded.loc["1", "path"] == "1.webm"
    kept = [
        pd.read_parquet(folder / f"results/manifest/{split}.parquet") for split in ("train", "validation")
    ]
    assert sum(map(len, kept)) == 12 * 3 - 2


def test_a_second_call_does_nothing(finished: Finished) -> None:
    again = finished[0].run()
    assert again.returncode == 0
    assert "Nothing to be done" in again.stderr


def test_jobs_with_a_gpu_run_one_after_the_other(finished: Finished, tmp_path: Path) -> None:
    """There are cores for two trainings, but both would take the same GPU."""
    shutil.copytree(finished[0].folder, tmp_path / "run")
    workflow = Workflow(tmp_path / "run")
    workflow.configure(runtime={"device": "auto"}, seeds=[1])
    trained = [f"results/experiments/{name}/seed1/model.sha256" for name in ("tsm", "ffn")]
    result = workflow.run(*trained)
    assert result.returncode == 0, result.stderr
    assert re.search(r"Provided resources: gpu=\D*1", result.stderr)
    times = []
    for name in ("tsm", "ffn"):
        text = (workflow.folder / f"logs/train/{name}/seed1.log").read_text()
        found = re.findall(r"^([-0-9]+ [:0-9,]+) INFO", text, re.MULTILINE)
        times.append((found[0], found[-1]))
    (_, end), (start, _) = sorted(times)
    assert end <= start


def test_another_frame_count_is_one_target(finished: Finished) -> None:
    workflow, _ = finished
    planned = workflow.run("--dry-run", "results/evaluation/ffn/seed0/6f.json")
    assert planned.returncode == 0
    assert jobs(planned.stdout) == {"evaluate": 1}


def test_a_further_row_trains_only_what_is_new(finished: Finished) -> None:
    workflow, _ = finished
    rows = '[{"method": "TSM", "experiments": "tsm"}, {"method": "TSM-ST", "experiments": {4: tsm_4f, 8: tsm_8f, 16: tsm}}]'
    planned = workflow.run("--dry-run", "results/table1.csv", "--config", f"table={rows}")
    assert planned.returncode == 0, planned.stderr
    assert jobs(planned.stdout) == {"check_training": 2, "train_tsm": 2, "evaluate": 2, "assemble_table": 1}


def test_an_experiment_of_the_same_method_retrains_alone(finished: Finished) -> None:
    workflow, _ = finished
    planned = workflow.run(
        "--dry-run", "results/table1.csv", "--config", "experiments={ffn: {distillation_weight: 0.5}}"
    )
    assert jobs(planned.stdout) == {"check_training": 1, "train_ffn": 1, "evaluate": 3, "assemble_table": 1}


def jobs(output: str) -> dict[str, int]:
    """Rules and their number of jobs, from the table that a dry run prints."""
    stats = output[output.index("Job stats:") :]
    counts = {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", stats, re.MULTILINE)}
    return {name: n for name, n in counts.items() if name not in ("total", "all")}


def test_the_default_configuration_plans_the_real_run(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "snakemake", "--dry-run", "--printshellcmds", "--snakefile", str(ROOT / "Snakefile"),
        "--directory", str(tmp_path), "--configfile", str(ROOT / "config/config.yaml"),
    ]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    for script in ("train_tsm", "train_ffn"):
        assert re.search(rf"{script} .*--weights results/weights/resnet50\.pth", result.stdout), script
    assert jobs(result.stdout) == {
        "fetch_weights": 1,
        "parse_labels": 1,
        "index_videos": 64,
        "build_manifest": 1,
        "check_training": 2,
        "train_tsm": 1,
        "train_ffn": 1,
        "evaluate": 6,
        "assemble_table": 1,
        "plot_accuracy": 1,
        "plot_manifest": 1,
    }
    folder = "data/something-something-v2"
    lacking = f"so that the run would stop at it: {folder}/labels, {folder}/20bn-something-something-v2."
    assert lacking in result.stdout


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    return make_workflow(tmp_path_factory.mktemp("unfinished"))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"labels": "nowhere", "videos": "my data/videos"}}, r"^error: nowhere: no such folder of label files"),
        ({"data": {"labels": "my data", "videos": "my data/videos"}}, r"^error: my data: train\.json .* is missing"),
        ({"data": {"labels": "my data/labels", "videos": "none"}}, r"^error: none: no such folder .*`data\.videos`"),
        ({"data": {"labels": "my data/labels", "videos": "my data"}}, r"^error: my data: holds no videos .*`data\.videos`"),
        ({"dataset": "something-something-v2"}, r"^error: labels: not those of `dataset: .* train where it has 168,913;"),
        ({"network": {"weights": "my.pth", "weights_sha256": "ab"}}, r"^error: my\.pth: no such file; set network\.weights"),
        ({"network": {"weights": "imagenet"}}, r"^error: config: network\.weights is imagenet, which does not fit"),
        ({"evaluation": {"split": "test"}}, r"^error: labels: the split test has no rows"),
        ({"trainig": {"epochs": 2}}, r"^error: config: trainig is not a key; did you mean training\?"),
        ({"evaluation": {"frame_counts": [0, 8]}}, r"^error: config: evaluation\.frame_counts holds 0"),
        ({"experiments": {"ffn": {"train_frames": [4, -8]}}}, r"^error: config: experiments\.ffn\.train_frames holds -8"),
    ],
)  # fmt: skip
def test_bad_input_stops_before_any_job_with_one_line(
    unfinished: Workflow, changes: dict[str, Any], says: str
) -> None:
    unfinished.configure(**changes)
    result = unfinished.run("results/table1.csv")
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if re.search(r"\berror\b", line, re.IGNORECASE)]
    assert len(lines) == 1, result.stderr
    assert re.search(says, lines[0])
    assert "Traceback" not in result.stderr
    assert not (unfinished.folder / "results").exists()


def test_a_part_of_a_data_set_is_asked_for(unfinished: Workflow) -> None:
    data = {"labels": "my data/labels", "videos": "my data/videos", "partial": True}
    unfinished.configure(dataset="something-something-v2", data=data)
    result = unfinished.run("results/labels/labels.parquet")
    assert result.returncode == 0, result.stderr
    shutil.rmtree(unfinished.folder / "results")


def test_what_would_stop_a_training_is_found_before_it(tmp_path: Path) -> None:
    workflow = make_workflow(tmp_path)
    workflow.configure(training={"epochs": 2, "batch_size": 100, "warmup_epochs": 0})
    result = workflow.run("results/experiments/ffn/seed0/model.pt")
    assert result.returncode != 0
    assert "error: this training would not run as it is: videos: " in result.stderr
    assert "24 videos do not fill one batch of training.batch_size 100; lower it" in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "state/train").exists()


def test_a_nonsense_frame_count_in_a_target_stops_before_training(unfinished: Workflow) -> None:
    unfinished.configure()
    result = unfinished.run("results/evaluation/ffn/seed0/0f.json")
    assert result.returncode != 0
    assert "error: config: the target's frame count holds 0; a frame count lies between 1" in result.stderr
    assert not (unfinished.folder / "results").exists()


def test_weights_of_ones_own_are_checked_and_taken(tmp_path: Path) -> None:
    workflow = Workflow(tmp_path)
    # Large enough for Snakemake to compare it by time.
    torch.save({"fc.weight": torch.zeros(300_000)}, tmp_path / "my weights.pth")
    digest = file_digest(tmp_path / "my weights.pth")
    for sha256, succeeds in ((digest[:12], True), ("0" * 12, False)):
        workflow.configure(network={"weights": "my weights.pth", "weights_sha256": sha256})
        result = workflow.run("results/weights/resnet10.sha256")
        assert (result.returncode == 0) is succeeds, result.stderr
        assert succeeds or "error: my weights.pth: SHA-256" in result.stderr
        if succeeds:
            assert (tmp_path / "results/weights/resnet10.sha256").read_text().strip() == digest
            assert file_digest(tmp_path / "results/weights/resnet10.pth") == digest
            (tmp_path / "my weights.pth").touch()
            assert "Nothing to be done" in workflow.run("--dry-run", "results/weights/resnet10.sha256").stdout


def test_the_library_does_not_know_snakemake() -> None:
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "snakemake" for name in names), path


def test_each_rule_has_a_script_of_its_name() -> None:
    rules = {
        name
        for path in (ROOT / "workflow/rules").glob("*.smk")
        for name in re.findall(r"^(?:use rule \w+ as|rule) (\w+)", path.read_text(), re.MULTILINE)
    }
    assert rules == {path.stem for path in (ROOT / "workflow/scripts").glob("*.py")}
