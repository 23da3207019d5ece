"""The workflow from label files to Table 1, run on tiny data; and the errors that stop it."""

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.weights import load_checkpoint, tensors_digest

from .conftest import ROOT, Workflow

Finished = tuple[Workflow, subprocess.CompletedProcess[str]]


# --- A finished run --------------------------------------------------------------------------------------------


def test_it_ends_with_the_table_and_the_pictures(finished: Finished) -> None:
    workflow, result = finished
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr
    table = pd.read_csv(workflow.folder / "results/table1.csv")
    assert table["method"].tolist() == ["TSM", "TSM-FFN"]
    assert (workflow.folder / "results/table1.md").read_text() in result.stderr
    assert r"\toprule" in (workflow.folder / "results/table1.tex").read_text()
    # Intervals enclose the numbers, and each evaluation recorded its cost.
    for frames in (4, 8, 16):
        top1, low, high, gflops, speed = (
            table[f"{name}_{frames}f"] for name in ("top1", "low", "high", "gflops", "clips_per_second")
        )
        assert (low <= top1).all()
        assert (top1 <= high).all()
        assert (gflops > 0).all()
        assert (speed > 0).all()
    for name in ("table1", "class_counts", "clip_lengths"):
        assert (workflow.folder / f"results/figures/{name}.png").read_bytes().startswith(b"\x89PNG")


def test_it_ends_with_the_diagnosis(finished: Finished) -> None:
    workflow, result = finished
    diagnosis = json.loads((workflow.folder / "results/diagnosis.json").read_text())
    runs = [workflow.seed(name).parent.name for name in ("tsm", "ffn")]
    assert diagnosis["checked"] == [f"{run}, seed 0" for run in runs]
    assert "published" not in {check["name"] for check in diagnosis["checks"]}
    # After two epochs, and of 12 videos, no score is judged. The two unusable videos are many of so few.
    assert [(finding["check"], finding["subject"]) for finding in diagnosis["findings"]] == [
        ("excluded", "")
    ] * 2
    assert (
        "1 of 24 train videos are excluded (4.2 %). Reasons: no video file (1)."
        in diagnosis["findings"][0].values()
    )
    text = (workflow.folder / "results/diagnosis.txt").read_text()
    assert text.startswith("Diagnosis: 2 networks checked, 2 findings")
    assert text in result.stderr


def test_it_ends_with_the_report(finished: Finished) -> None:
    workflow = finished[0]
    page = (workflow.folder / "results/report.html").read_text()
    runs = [workflow.seed(name).parent.name for name in ("tsm", "ffn")]
    assert all(f"<h3><code>{run}</code></h3>" in page for run in runs)
    # From the videos, whose folder has a space in its name.
    assert page.count('<img src="data:image/jpeg') > 0
    assert "The video cannot be shown" not in page


def snakemakes_report(workflow: Workflow, path: Path, *targets: str, **config: Any) -> dict[str, Any]:
    """Categories of `snakemake --report`: the description of each of their results."""
    workflow.made(*targets, "--report", str(path), **config)
    page = path.read_text()
    assert not re.findall(r"""(?:src|href) *= *["']https?:""", page)
    results, categories = (
        json.JSONDecoder().raw_decode(page.rpartition(f"var {name} = ")[2])[0] for name in ("results", "categories")
    )  # fmt: skip
    # Without a subcategory, Snakemake calls it "Other".
    return {name: {each: results[each]["caption"] for each in parts["Other"]} for name, parts in categories.items()}  # fmt: skip


def test_snakemakes_own_report_has_the_results_with_descriptions(finished: Finished, tmp_path: Path) -> None:
    found = snakemakes_report(finished[0], tmp_path / "page.html")
    assert {category: {Path(path).name for path in captions} for category, captions in found.items()} == {
        "table1": {"table1.csv", "table1.md", "table1.tex", "table1.png"},
        "Data": {"class_counts.png", "clip_lengths.png", "excluded.csv"},
        "Diagnosis": {"diagnosis.txt"},
        "Report": {"report.html"},
    }
    assert all("</p>" in caption for captions in found.values() for caption in captions.values())
    assert (
        "each method of table1 by frame count on the validation videos of\ndemo,"
        in found["table1"]["results/table1.csv"]
    )


def test_networks_are_the_ones_that_the_table_and_the_provenance_name(finished: Finished) -> None:
    workflow = finished[0]
    table = pd.read_csv(workflow.folder / "results/table1.csv").set_index("method")
    chain = yaml.safe_load(workflow.ffnrepro("provenance", "results/table1.csv"))
    for method, experiment, kind in (("TSM", "tsm", TSM), ("TSM-FFN", "ffn", FrameFlexibleNetwork)):
        folder = workflow.seed(experiment)
        model = load_checkpoint(folder / "model.pt")
        assert isinstance(model, kind)
        digest = tensors_digest(model.state_dict())
        assert table.loc[method, "checkpoint"] == digest == (folder / "model.sha256").read_text().strip()
        assert table.loc[method, "parameters"] == sum(p.numel() for p in model.parameters())
        record: dict[str, Any] = json.loads((folder / "run.json").read_text())
        history = pd.read_parquet(folder / "history.parquet")
        assert history["epoch"].tolist() == [1, 2]
        assert record["best"]["validation_top1_16f"] == history["validation_top1_16f"].max()
        assert record["last"]["validation_top1_16f"] == history["validation_top1_16f"].iloc[-1]
        data = (workflow.folder / "results/manifest/manifest.sha256").read_text().strip()
        assert (record["model"], record["data"]) == (digest, data)
        (state,) = workflow.folder.glob(f"state/{folder.parent.name}/seed0-{data[:8]}")
        assert list((state / "tensorboard").iterdir())
        assert chain[method]["networks"] == {str((folder / "run.json").relative_to(workflow.folder)): record}


def test_excluded_videos_are_listed_with_their_reasons(finished: Finished) -> None:
    folder = finished[0].folder
    excluded = pd.read_csv(folder / "results/manifest/excluded.csv", dtype=str).set_index("id")
    assert sorted(excluded.index) == ["1", "2", "999"]
    assert excluded.loc["2", "reason"] == "no video file"
    assert excluded.loc["999", "reason"] == "no label"
    assert excluded.loc["1", "path"] == "1.webm"
    assert (
        "labels and videos: 1 of the 36 labelled ids have no file in my data/videos (such as '2')"
        in finished[1].stderr
    )
    splits = ("train", "validation")
    kept = [pd.read_parquet(folder / f"results/manifest/{split}.parquet") for split in splits]
    assert sum(map(len, kept)) == 12 * 3 - 2


# --- Plans and commands ----------------------------------------------------------------------------------------


def test_the_default_configuration_plans_the_real_run(tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "snakemake", "--dry-run", "--printshellcmds", "--snakefile", str(ROOT / "Snakefile"),
        "--directory", str(tmp_path),
    ]  # fmt: skip
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    stats = result.stdout.split("Job stats:")[1]
    assert dict(re.findall(r"^(\w+) +(\d+)$", stats, re.MULTILINE)) == {
        "fetch_weights": "1", "parse_labels": "1", "index_videos": "64", "build_manifest": "1", "plot_manifest": "1",
        "write_settings": "2", "check_training": "2", "train_tsm": "1", "train_ffn": "1", "evaluate": "6",
        "assemble_table": "1", "plot_accuracy": "1", "diagnose": "1", "report": "1", "all": "1", "total": "85",
    }  # fmt: skip
    for name in ("tsm", "ffn"):
        assert re.search(rf"Training {name}-\w{{8}}, seed 0: about \d+ GPU hours \(", result.stdout)
    trainings = re.findall(
        r"(?:train|check_training)\.py .*--start results/weights/resnet50\.pth", result.stdout
    )
    assert len(trainings) == 4
    folder = "data/something-something-v2"
    for path in (f"{folder}/labels", f"{folder}/20bn-something-something-v2"):
        assert f"{path}: does not exist yet\n" in result.stderr


def test_a_row_of_several_networks_evaluates_each_at_its_own_frame_count(finished: Finished) -> None:
    """TSM-ST: the network of 16 frames is there, and the others are trained and evaluated once."""
    row = {"label": "TSM-ST", "experiments": {"4": "tsm_4f", "8": "tsm_8f", "16": "tsm"}}
    tables = {"separate": {"frame_counts": [4, 8, 16], "rows": [row]}}
    jobs, output = finished[0].plan("results/separate.csv", tables=tables)
    assert (jobs["train_tsm"], jobs["evaluate"]) == (2, 2)
    evaluated = re.findall(r"Evaluating (\w+)-\w{8}, seed 0, at (\d+) frames", output)
    assert sorted(set(evaluated)) == [("tsm_4f", "4"), ("tsm_8f", "8")]


def test_every_table_of_the_paper_is_planned(finished: Finished) -> None:
    """Each network once, whatever the number of tables that it stands in; those of `tsm` and `ffn` are there."""
    names = ("baselines", "sequences", "more_frames", "ablation", "depths", "middle", "any_frame")
    jobs, output = finished[0].plan(*(f"results/{name}.csv" for name in names))
    trained = re.findall(r"Training (\w+)-\w{8}, seed 0", output)
    assert len(trained) == len(set(trained)) == 29
    assert jobs == {
        "write_settings": 29, "check_training": 29, "train_tsm": 18, "train_ffn": 11, "evaluate": 94,
        "evaluate_ensemble": 3, "assemble_table": 7,
    }, output  # fmt: skip


def test_a_row_of_an_ensemble_averages_the_kept_scores(finished: Finished, tmp_path: Path) -> None:
    workflow = finished[0].copy(tmp_path)
    row = {"label": "both", "ensemble": ["tsm", "ffn"]}
    tables = {"together": {"frame_counts": [8], "rows": [row, {"label": "TSM", "experiments": "tsm"}]}}
    workflow.made("results/together.csv", tables=tables)
    table = pd.read_csv(workflow.folder / "results/together.csv").set_index("method").loc["both"]
    folders = [workflow.seed(name) for name in ("tsm", "ffn")]
    assert table["checkpoint"] == " ".join(
        (folder / "model.sha256").read_text().strip() for folder in folders
    )
    rows = [pd.read_parquet(folder / "validation_8f.parquet") for folder in folders]
    scores = sum(np.exp(np.stack(each["log_probabilities"].tolist()).astype(float)) for each in rows)
    hits = scores.argmax(axis=1) == rows[0]["label"].to_numpy()
    assert table["top1_8f"] == round(100 * hits.mean(), 2)
    chain = yaml.safe_load(workflow.ffnrepro("provenance", "results/together.csv"))["both"]
    assert sorted(chain["networks"]) == sorted(
        str((folder / "run.json").relative_to(workflow.folder)) for folder in folders
    )
    assert "WARNING" not in chain["8 frames"]
    jobs, output = workflow.plan("results/together.csv", tables=tables)
    assert jobs == {}, output


def test_an_imported_network_is_scored_without_a_training_split(finished: Finished, tmp_path: Path) -> None:
    """The finished FFN, in the authors' format: it makes the same predictions as the one that was trained here."""
    workflow = finished[0].without_results(tmp_path)
    (workflow.folder / "my data/labels/train.json").unlink()
    trained = finished[0].seed("ffn")
    workflow.ffnrepro(
        "checkpoint", "convert", str(trained / "model.pt"), "my weights/ffn.pth.tar", "--to", "authors"
    )
    row = {"label": "FFN", "experiments": "theirs"}
    config = {
        "experiments": {"theirs": {"method": "checkpoint", "path": "my weights/ffn.pth.tar"}},
        "tables": {"published": {"frame_counts": [4, 16], "rows": [row]}},
        "report": {"tables": ["published"]},
    }
    targets = (
        "results/published.csv",
        "results/report.html",
        "results/figures/class_counts.png",
        "results/figures/batchnorm_theirs.png",
    )
    jobs, _ = workflow.plan(*targets, **config)
    assert jobs == {
        "parse_labels": 1, "index_videos": 2, "build_manifest": 1, "plot_manifest": 1, "write_settings": 1,
        "import_checkpoint": 1, "evaluate": 2, "assemble_table": 1, "plot_batchnorm": 1, "diagnose": 1, "report": 1,
    }  # fmt: skip
    # Of the frame cache, two shards of the evaluated split.
    cached, output = workflow.plan(*targets, **config, data={"cache": "jpeg"})
    assert cached == jobs | {"cache_frames": 2}, output
    assert "Caching the frames of the train videos" not in output
    workflow.made(*targets, **config)
    folder = workflow.seed("theirs")
    assert {path.name for path in trained.glob("*") if path.stem in ("model", "history", "run")} <= {
        path.name for path in folder.iterdir()
    }
    for frames in (4, 16):
        rows = [pd.read_parquet(each / f"validation_{frames}f.parquet") for each in (folder, trained)]
        pd.testing.assert_frame_equal(*rows)
    table = pd.read_csv(workflow.folder / "results/published.csv")
    assert table.loc[0, "checkpoint"] == (trained / "model.sha256").read_text().strip()
    chain = yaml.safe_load(workflow.ffnrepro("provenance", "results/published.csv"))["FFN"]
    (network,) = chain["networks"].values()
    assert network["imported"]["source"] == "FFN's authors"
    assert "WARNING" not in chain["4 frames"]
    page = (workflow.folder / "results/report.html").read_text()
    assert "Imported, not trained here" in page
    assert "FFN is right on" in page

    (workflow.folder / "my weights").rename(workflow.folder / "elsewhere")
    config["experiments"]["theirs"]["path"] = "elsewhere/ffn.pth.tar"
    jobs, output = workflow.plan(*targets, **config)
    assert jobs == {}, output
    # A training still needs the training split.
    result = workflow.run("tsm", **config)
    assert result.returncode != 0
    assert "results/manifest/train.parquet: no videos to train on; add the label file" in result.stderr


def test_networks_that_trainings_start_from(finished: Finished, tmp_path: Path) -> None:
    weights = tmp_path / "my weights.pth"
    weights.write_bytes(b"any")
    longer = {
        "method": "ffn", "train_frames": [4, 8, 16], "start": "ffn", "training": {"recompute": True, "epochs": 3}
    }  # fmt: skip
    jobs, output = finished[0].plan(
        "--printshellcmds", "longer",
        network={"weights": str(weights), "weights_sha256": "0123456789abcdef"}, experiments={"longer": longer},
    )  # fmt: skip
    assert jobs == {
        "write_settings": 2, "check_training": 2, "train_ffn": 2, "evaluate": 3, "longer": 1
    }, output  # fmt: skip
    starts = re.findall(r"train\.py' --run results/runs/(\w+)-\w+ .*--start ('.*?'|\S+)", output)
    assert starts[0] == ("ffn", f"'{weights}'")
    name, path = starts[1]
    assert name == "longer"
    assert re.fullmatch(r"results/runs/ffn-\w{8}/seed0/model\.pt", path)
    # Only this experiment's job and its check compute activations again.
    recomputed = re.findall(r"/(\w+)\.py'? --run results/runs/(\w+)-.* --recompute", output)
    assert sorted(recomputed) == [("check_training", "longer"), ("train", "longer")]


def test_printed_commands_run_when_they_are_pasted(finished: Finished, tmp_path: Path) -> None:
    workflow = finished[0].without_results(tmp_path)
    rows = [{"label": "TSM", "experiments": "tsm"}]
    jobs, output = workflow.plan(
        "--printshellcmds", "results/table1.csv", tables={"table1": {"frame_counts": [16], "rows": rows}}
    )
    commands = re.findall(r"^Shell command: (.*)$", output, re.MULTILINE)
    assert len(commands) == sum(jobs.values())
    result = workflow.bash(*commands)
    assert result.returncode == 0, result.stderr
    assert (workflow.seed("tsm") / "model.sha256").read_text() == (
        finished[0].seed("tsm") / "model.sha256"
    ).read_text()
    tables = [pd.read_csv(each.folder / "results/table1.csv") for each in (workflow, finished[0])]
    for column in ("method", "checkpoint", "top1_16f", "videos"):
        assert tables[0].loc[0, column] == tables[1].loc[0, column]


def test_a_curve_at_any_frame_count_and_batchnorm_statistics(finished: Finished, tmp_path: Path) -> None:
    """One new evaluation, at 4 and 20 frames; networks that stand for one frame count each have theirs already."""
    workflow = finished[0].copy(tmp_path)
    rows = [
        {"label": "FFN", "experiments": "ffn", "published": {"method": "TSM-FFN"}},
        {"label": "ST", "experiments": {"4": "ffn", "16": "tsm"}},
    ]
    tables = {"mine": {"frame_counts": [4, 16], "rows": rows}}
    made = workflow.made(
        "results/mine_curve.csv", "results/figures/batchnorm_ffn.png", tables=tables, evaluation={"any_frame": [4, 20]}
    )  # fmt: skip
    assert re.findall(r"Job \d+: (Eval\w+|Training) (\w+)-", made) == [("Evaluating", "ffn")]
    table = pd.read_csv(workflow.folder / "results/table1.csv").set_index("method")
    curve = pd.read_csv(workflow.folder / "results/mine_curve.csv").set_index(["method", "frames"])
    assert curve.index.tolist() == [("FFN", 4), ("FFN", 20), ("ST", 4), ("ST", 16)]
    assert curve.loc[("FFN", 4), "top1"] == curve.loc[("ST", 4), "top1"] == table.loc["TSM-FFN", "top1_4f"]
    assert curve.loc[("ST", 16), "top1"] == table.loc["TSM", "top1_16f"]
    statistics = pd.read_csv(workflow.folder / "results/figures/batchnorm_ffn.csv")
    state = load_checkpoint(workflow.seed("ffn") / "model.pt").state_dict()
    rows_of_one = statistics[(statistics["layer"] == "layer4.0.bn2") & (statistics["frames"] == 16)]
    assert rows_of_one["variance"].tolist() == pytest.approx(state["layer4.0.bn2.16.running_var"].tolist())
    for name in ("mine_curve", "batchnorm_ffn"):
        assert (workflow.folder / f"results/figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    found = snakemakes_report(
        workflow, tmp_path / "page.html", "results/mine_curve.csv", "results/figures/batchnorm_ffn.png",
        tables=tables, evaluation={"any_frame": [4, 20]},
    )  # fmt: skip
    assert "network of mine at 4 to\n20 frames" in found["mine"]["results/figures/mine_curve.png"]
    assert "BatchNorms of ffn in the fourth stage" in found["BatchNorm"]["results/figures/batchnorm_ffn.png"]
    result = workflow.run("--dry-run", "results/figures/batchnorm_tsm.png")
    assert result.returncode != 0
    assert "error: config: experiments.tsm has no BatchNorm statistics for each frame count" in result.stderr


STUB = '''
"""Stands for a script that uses a GPU: writes its outputs, and when it ran."""
import argparse, sys, time
from pathlib import Path
started = time.monotonic()
parser = argparse.ArgumentParser()
for name in ("run", "seed", "split", "frames", "output"):
    parser.add_argument(f"--{name}")
options, _ = parser.parse_known_args()
script, folder = Path(sys.argv[0]).stem, Path(options.run, f"seed{options.seed}")
outputs = {
    "check_training": [folder / "checked.txt"],
    "train": [folder / name for name in ("model.pt", "model.sha256", "history.parquet", "run.json")],
    "evaluate": [folder / f"{options.split}_{options.frames}f.{ending}" for ending in ("json", "parquet")],
}[script]
time.sleep(0.3)
for path in outputs:
    path.write_text("any")
with open("times.txt", "a") as file:
    print(script, started, time.monotonic(), file=file)
'''


@pytest.fixture
def stubbed(finished: Finished, tmp_path: Path) -> Workflow:
    """A finished run, with stubs of the scripts that use a GPU."""
    workflow = finished[0].copy(tmp_path, with_project=True)
    for name in ("check_training", "train", "evaluate"):
        (workflow.project / f"workflow/scripts/{name}.py").write_text(STUB)
    return workflow


def test_jobs_with_gpus_run_one_after_the_other(stubbed: Workflow) -> None:
    """There are cores for several jobs, but all would take the same GPUs, also where a training has two."""
    stubbed.made("--cores", "4", "tsm", "ffn", runtime={"device": "auto"}, training={"gpus": 2})
    times = [line.split() for line in (stubbed.folder / "times.txt").read_text().splitlines()]
    assert (
        sorted(script for script, _, _ in times) == ["check_training"] * 2 + ["evaluate"] * 6 + ["train"] * 2
    )
    spans = sorted((float(start), float(end)) for _, start, end in times)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_a_network_that_was_trained_again_is_a_new_start(stubbed: Workflow) -> None:
    experiments = {"longer": {"method": "ffn", "train_frames": [4, 8, 16], "start": "ffn"}}
    stubbed.made("longer", experiments=experiments)
    (stubbed.seed("ffn") / "model.sha256").write_text("another")
    jobs, output = stubbed.plan("longer", experiments=experiments)
    assert jobs == {"check_training": 1, "train_ffn": 1, "evaluate": 3, "longer": 1}, output


# --- What stops it ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unfinished(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """Data and no results. Tests only read it."""
    return finished[0].without_results(tmp_path_factory.mktemp("unfinished"))


IMPORT = {"frame_counts": [4], "rows": [{"label": "TSM", "experiments": "theirs"}]}
ST = {"frame_counts": [4], "rows": [{"label": "TSM-ST", "experiments": "st"}]}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"data": {"labels": "nowhere"}}, r"nowhere: no such folder of label files"),
        ({"data": {"videos": "none"}}, r"none: no such folder .*`data\.videos`"),
        ({"data": {"videos": "my data", "layout": "frames"}}, r"labels and videos do not match: 36 of the 36 labelled ids have no file"),
        ({"dataset": "something-something-v2"}, r"labels: these are not the labels of `dataset: .* 24 train instead of 168,913;"),
        ({"evaluation": {"split": "test"}}, r"labels: the split test has no rows"),
        ({"network": {"weights": "my.pth", "weights_sha256": "0123456789"}}, r"my\.pth: no such file; set network\.weights"),
        ({"network": {"weights": "tiny.yaml"}}, r"tiny\.yaml: is text, not a checkpoint"),
        ({"experiments": {"theirs": {"method": "checkpoint", "path": "tiny.yaml"}}, "tables": {"table1": IMPORT}}, r"tiny\.yaml: is text, not"),
        ({"network": {"weights": "imagenet"}}, r"config: network\.weights is imagenet, which does not fit"),
        ({"trainig": {"epochs": 2}}, r"config: trainig is not a key; did you mean training\?"),
        ({"experiments": {"evaluate": {"method": "tsm", "train_frames": [4]}}}, r"config: experiments\.evaluate has the name of a rule"),
        ({"tables": {"table1": ST}}, r"config: tables\.table1\.rows\[0\]\.experiments names 'st'"),
    ],
)  # fmt: skip
def test_bad_input_stops_before_any_job_with_one_line(
    unfinished: Workflow, changes: dict[str, Any], says: str
) -> None:
    result = unfinished.run("results/table1.csv", **changes)
    assert result.returncode != 0
    lines = [line for line in result.stderr.splitlines() if re.search(r"\berror\b", line, re.IGNORECASE)]
    assert len(lines) == 1, result.stderr
    assert re.match(f"error: {says}", lines[0]), lines[0]
    assert "Traceback" not in result.stderr
    assert not (unfinished.folder / "results").exists()


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("fnn", r"there is no experiment fnn; give one of tsm, .*ffn"),
        ("ablation", r"ablation is a table; request results/ablation\.csv$"),
        (
            "results/tabel1.csv",
            r"there is no table tabel1; give one of table1, .*, or add the --configfile that defines tabel1",
        ),
    ],
)
def test_a_mistyped_target_is_refused_with_the_right_name_or_names(
    unfinished: Workflow, target: str, says: str
) -> None:
    result = unfinished.run(target)
    assert result.returncode != 0
    assert re.match(f"error: {says}", result.stderr.splitlines()[-1]), result.stderr
    assert not (unfinished.folder / "results").exists()


def test_a_training_without_a_training_split_is_refused_before_any_job(
    unfinished: Workflow, tmp_path: Path
) -> None:
    workflow = unfinished.copy(tmp_path)
    (workflow.folder / "my data/labels/train.json").unlink()
    result = workflow.run("tsm")
    assert result.returncode != 0
    assert re.search(r"^error: my data/labels: train\.json .* is missing", result.stderr, re.MULTILINE)
    assert not (workflow.folder / "results").exists()


def test_problems_that_would_stop_a_training_are_found_before_it(finished: Finished, tmp_path: Path) -> None:
    """Here too few videos. The labels are a part of the data set on purpose."""
    workflow = finished[0].copy(tmp_path)
    result = workflow.run(
        "ffn", dataset="something-something-v2", data={"partial": True}, training={"batch_size": 100}
    )
    assert result.returncode != 0
    assert "23 videos do not fill a batch of training.batch_size 100" in result.stderr
    assert "Traceback" not in result.stderr
    assert "Reading the label files" in result.stderr
    runs = {path.parent.name for path in workflow.folder.glob("state/*/seed*")}
    assert runs == {finished[0].seed(name).parent.name for name in ("tsm", "ffn")}
