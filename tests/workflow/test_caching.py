"""One row for each line of the table in docs/caching.md: what a change runs, and that nothing else does."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from ffnrepro.code_digest import LEFT_OUT, reached_names

from .conftest import ROOT, TINY, Workflow

Finished = tuple[Workflow, subprocess.CompletedProcess[str]]
Change = Callable[["Copy"], object]

TABLE = "results/table1.csv"
EVALUATE = {"evaluate": 6, "assemble_table": 1}
TRAIN = {"train_tsm": 1, "train_ffn": 1, **EVALUATE}
FFN = {"train_ffn": 1, "evaluate": 3, "assemble_table": 1}
FFN_SETTINGS = {"check_training": 1, **FFN}
BOTH = {"check_training": 2, **TRAIN}
MANIFEST = {"build_manifest": 1, **BOTH}


class Copy:
    """A finished run and the project, both to be changed."""

    def __init__(self, folder: Path, finished: Path) -> None:
        self.place(folder)
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
        # the data and results of the checkout stay there
        for name in ("workflow", "src", "config", "resources", "profiles"):
            shutil.copytree(ROOT / name, self.project / name, ignore=ignored)
        for name in ("Snakefile", "environment.yml"):
            shutil.copy2(ROOT / name, self.project)
        shutil.copytree(finished, self.folder)

    def place(self, tree: Path) -> None:
        self.tree, self.project, self.folder = tree, tree / "the project", tree / "run"

    def configure(self, **changes: Any) -> None:
        """Change the configuration; mappings are merged."""
        path = self.folder / "tiny.yaml"
        config = yaml.safe_load(path.read_text())
        for key, value in changes.items():
            config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
        path.write_text(yaml.safe_dump(config))

    def edit(self, path: str, old: str, new: str) -> None:
        """Change a file of the project, or of the working directory."""
        file = next(base / path for base in (self.project, self.folder) if (base / path).exists())
        text = file.read_text()
        assert old in text, f"{old!r} is no longer in {path}"
        file.write_text(text.replace(old, new, 1))

    def command(self, *arguments: str) -> list[str]:
        return [
            sys.executable, "-m", "snakemake", "--snakefile", str(self.project / "Snakefile"), "--directory", str(self.folder),
            "--configfile", str(self.project / "config/config.yaml"), str(self.project / "config/demo.yaml"),
            str(self.folder / "tiny.yaml"), "--cores", "2", *arguments,
        ]  # fmt: skip

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(self.project / "src")}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            self.command(*arguments),
            cwd=self.project,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        return result

    def plan(self, *arguments: str) -> tuple[dict[str, int], str]:
        """Jobs by rule of a dry run, and what it says at its end."""
        output = self.run("--dry-run", *(arguments or (TABLE,))).stdout
        stats = output.partition("Job stats:")[2].partition("total")[0]
        counts = {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", stats, re.MULTILINE)}
        assert counts or "Nothing to be done" in output
        said = re.search(r"^(Nothing to do|What would run).*", output, re.MULTILINE | re.DOTALL)
        assert said, output
        return {name: n for name, n in counts.items() if name != "all"}, said[0]

    def read(self, path: str) -> Any:
        return json.loads((self.folder / path).read_text())


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Copy:
    assert finished[1].returncode == 0, finished[1].stderr
    return Copy(tmp_path / "tree", finished[0].folder)


def touch_everything(copy: Copy) -> None:
    """Inputs, intermediates and code, in an order that makes each newer than what is made of it."""
    now = time.time() - 3600
    for base in ("run/results/table1.csv", "run/results/evaluation", "run/results/experiments", "run/results/manifest",
                 "run/results/video_index", "run/results/labels", "run/my data", "the project"):  # fmt: skip
        path = copy.tree / base
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            now += 1
            os.utime(file, (now, now))


def rewrite(copy: Copy) -> None:
    for path in (
        "my data/labels/train.json",
        "results/manifest/manifest.sha256",
        "results/labels/classes.csv",
    ):
        file = copy.folder / path
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)


def check_out_another_branch_and_back(copy: Copy) -> None:
    def git(*words: str) -> None:
        names = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *names, *words], cwd=copy.project, check=True, capture_output=True)

    git("init", "--initial-branch=one")
    git("add", ".")
    git("commit", "-m", "one")
    git("checkout", "-b", "two")
    for file in copy.project.rglob("*.py"):
        file.write_text(file.read_text() + "\n\nCHANGED = 1\n")
    git("commit", "-a", "-m", "two")
    git("checkout", "one")


def clone_and_copy(copy: Copy) -> None:
    """A fresh clone has no .snakemake, and new times; `cp -a` keeps those of results and state."""
    shutil.rmtree(copy.folder / ".snakemake")
    for file in copy.project.rglob("*"):
        os.utime(file)


def clone_without_the_data(copy: Copy) -> None:
    """As where the results were brought to, to draw or to change the table."""
    clone_and_copy(copy)
    shutil.rmtree(copy.folder / "my data")


def move(copy: Copy) -> None:
    copy.place(copy.tree.rename(copy.tree.with_name("moved")))


def comment_everything(copy: Copy) -> None:
    """Every module loses its comments and form, and gets other docstrings; rules and environment get comments."""
    for file in [*copy.project.glob("src/**/*.py"), *copy.project.glob("workflow/scripts/*.py")]:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                node.body[0] = ast.Expr(ast.Constant("Another docstring."))
        file.write_text("# A comment.\n" + ast.unparse(ast.fix_missing_locations(tree)) + "\n")
    for file in [*copy.project.glob("workflow/rules/*.smk"), copy.project / "environment.yml"]:
        file.write_text("# A comment.\n" + file.read_text())


def without_a_label(copy: Copy) -> None:
    file = copy.folder / "my data/labels/train.json"
    file.write_text(json.dumps(json.loads(file.read_text())[1:]))
    past = time.time() - 10 * 365 * 86400  # as of an archive: time says nothing
    os.utime(file, (past, past))


def add_video(copy: Copy) -> None:
    videos = copy.folder / "my data/videos"
    shutil.copy(videos / "3.webm", videos / "1000.webm")


CODE = "src/ffnrepro"
ROWS: list[tuple[str, Change, dict[str, int], str]] = [
    ("touch", touch_everything, {}, ""),
    ("same content", rewrite, {}, ""),
    ("git checkout and back", check_out_another_branch_and_back, {}, ""),
    ("fresh clone", clone_and_copy, {}, ""),
    ("fresh clone without the data", clone_without_the_data, {}, ""),
    ("moved", move, {}, ""),
    ("comments, docstrings, formatting", comment_everything, {}, ""),
    ("workers and threads", lambda c: c.configure(runtime={"workers": 1, "threads": 2, "save_minutes": 1}), {}, ""),
    ("cache_decoded and device", lambda c: c.configure(runtime={"cache_decoded": False, "device": "auto"}), {}, ""),
    ("an unused key", lambda c: c.configure(experiments={"other": {"method": "tsm", "train_frames": [2]}}), {}, ""),
    ("a key of another experiment", lambda c: c.configure(experiments={"tsm_4f": {"depth": 18}}), {}, ""),
    ("a label row", without_a_label, {"parse_labels": 1, **MANIFEST}, r"parse_labels: files\.train\.json changed"),
    ("a new video", add_video, {"index_videos": 1, **MANIFEST}, r"index_videos \(shard \d\): names changed"),
    ("a removed video", lambda c: (c.folder / "my data/videos/5.webm").unlink(), {"index_videos": 1, **MANIFEST}, r"index_videos \(shard \d\): names changed"),
    ("lambda", lambda c: c.configure(experiments={"ffn": {"distillation_weight": 0.5}}), FFN_SETTINGS, r"train_ffn \(ffn, seed 0\): distillation_weight 1\.0 -> 0\.5"),
    ("adapter", lambda c: c.configure(experiments={"ffn": {"adapter_init": "authors"}}), FFN_SETTINGS, r"train_ffn \(ffn, seed 0\): adapter_init near_zero -> authors"),
    ("learning rate", lambda c: c.configure(training={"learning_rate": 0.02}), BOTH, r"train_tsm \(tsm, seed 0\): training\.learning_rate 0\.01 -> 0\.02"),
    ("crop size", lambda c: c.configure(data={"crop_size": 24}), BOTH, r"train_ffn \(ffn, seed 0\): crop_size 32 -> 24"),
    ("sampler", lambda c: c.edit(f"{CODE}/data/dataset.py", "spawn_key=(0,)", "spawn_key=(7,)"), TRAIN, r"train_tsm .*: code of ffnrepro\.data\.dataset"),
    ("training transform", lambda c: c.edit(f"{CODE}/data/transforms.py", "0.875", "0.8"), TRAIN, r"train_ffn .*: code of ffnrepro\.data\.transforms"),
    ("centre crop", lambda c: c.edit(f"{CODE}/data/transforms.py", "center_crop(resized,", "center_crop(resized[:],"), TRAIN, r"train_tsm .*: code of ffnrepro\.data\.transforms"),
    ("model of TSM", lambda c: c.edit(f"{CODE}/models/temporal_shift.py", "SHIFT_FRACTION = 8", "SHIFT_FRACTION = 4"), TRAIN, r"train_tsm .*: code of ffnrepro\.models\.temporal_shift"),
    ("training loop", lambda c: c.edit(f"{CODE}/training.py", "zero_grad(set_to_none=True)", "zero_grad(set_to_none=False)"), TRAIN, r"train_tsm .*: code of ffnrepro\.training"),
    ("loss of FFN", lambda c: c.edit(f"{CODE}/losses.py", 'reduction="batchmean"', 'reduction="sum"'), FFN, r"train_ffn .*: code of ffnrepro\.losses"),
    ("normalisation of FFN", lambda c: c.edit(f"{CODE}/models/specialized_norm.py", "nn.BatchNorm2d(channels)", "nn.BatchNorm2d(channels, 1e-3)"), FFN, r"train_ffn .*: code of ffnrepro\.models\.specialized_norm"),
    ("batch size of evaluation", lambda c: c.configure(evaluation={"batch_size": 3}), {}, ""),
    ("frame counts", lambda c: c.configure(evaluation={"frame_counts": [4, 12]}), {"evaluate": 2, "assemble_table": 1}, r"evaluate \(.*frames 12.*\): not made yet"),
    ("split of evaluation", lambda c: c.configure(evaluation={"split": "test"}), EVALUATE, r"evaluate \(.*\): split validation -> test"),
    ("code of evaluation", lambda c: c.edit(f"{CODE}/evaluation.py", "size=crop_size", "size=crop_size // 2"), EVALUATE, r"evaluate \(.*\): code of ffnrepro\.evaluation"),
    ("a table row", lambda c: c.configure(table=[{"method": "TSM", "experiments": "tsm"}]), {"assemble_table": 1}, "assemble_table: rows changed"),
    ("a published figure", lambda c: c.edit("resources/published.csv", "31.52", "31.53"), {"assemble_table": 1}, "assemble_table: published changed"),
    ("code of the table", lambda c: c.edit(f"{CODE}/table.py", "fmean(values), 2)", "fmean(values), 3)"), {"assemble_table": 1}, r"assemble_table: code of ffnrepro\.table"),
    ("code of the plot", lambda c: c.edit(f"{CODE}/figures.py", "figsize=(9 if", "figsize=(8 if"), {}, ""),
    ("a seed more", lambda c: c.configure(seeds=[0, 1]), TRAIN, r"train_ffn \(ffn, seed 1\): not made yet"),
    ("code that logs", lambda c: c.edit(f"{CODE}/watching.py", "frames/s", "frames per second"), {}, ""),
    ("code that saves", lambda c: c.edit(f"{CODE}/state.py", "GENERATIONS = 2", "GENERATIONS = 3"), {}, ""),
    ("code that holds leases", lambda c: c.edit(f"{CODE}/lease.py", "SETTLE = 1.0", "SETTLE = 2.0"), {}, ""),
    ("version of a package", lambda c: c.edit("environment.yml", "dependencies:", "dependencies:\n  - cowpy"), {}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("change", "runs", "says"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_change_runs_what_it_invalidates(
    copy: Copy, change: Change, runs: dict[str, int], says: str
) -> None:
    change(copy)
    jobs, said = copy.plan()
    assert jobs == runs, said
    assert re.search(f"^  {says}", said, re.MULTILINE) if runs else said.startswith("Nothing to do"), said
    assert "kept from before" not in said


@pytest.mark.parametrize(
    ("change", "runs", "says"),
    [
        (without_a_label, {"parse_labels": 1, **MANIFEST}, r"parse_labels: files\.train\.json changed"),
        (add_video, {"index_videos": 1, **MANIFEST}, r"index_videos \(shard \d\): names changed"),
        (lambda c: c.configure(data={"max_excluded": 0.2}), MANIFEST, r"build_manifest: max_excluded 0\.1 -> 0\.2"),
        (lambda c: c.configure(experiments={"ffn": {"distillation_weight": 0.5}}), FFN, r"train_ffn .*weight 1\.0 -> 0\.5"),
        (lambda c: c.configure(table=[{"method": "TSM", "experiments": "tsm"}]), {"assemble_table": 1}, "assemble_table: rows changed"),
    ],
    ids=["label", "video", "manifest", "training", "table"],
)  # fmt: skip
def test_a_change_after_a_fresh_clone_is_noticed(
    copy: Copy, change: Change, runs: dict[str, int], says: str
) -> None:
    clone_and_copy(copy)
    change(copy)
    jobs, said = copy.plan()
    assert jobs == runs, said
    assert re.search(f"^  {says}", said, re.MULTILINE), said


def test_the_first_job_after_a_fresh_clone_brings_no_other(copy: Copy) -> None:
    clone_and_copy(copy)
    (copy.folder / TABLE).unlink()
    assert copy.plan()[0] == {"assemble_table": 1}
    copy.run(TABLE)
    assert copy.plan()[0] == {}


def test_an_index_that_nobody_watched_is_noticed(copy: Copy) -> None:
    """Snakemake has the record of the job before it, which is of the settings that are wanted again."""
    records, before = copy.folder / ".snakemake/metadata", copy.folder / "before"
    shutil.copytree(records, before)
    copy.configure(data={"verify": "packets"})
    copy.run("results/video_index/part-0.parquet")
    shutil.rmtree(records)
    before.rename(records)
    copy.configure(data={"verify": "decode"})
    jobs, said = copy.plan()
    assert jobs == {"index_videos": 1, **MANIFEST}
    assert "index_videos (shard 0): verify packets -> decode" in said


def test_what_is_made_from_earlier_files_is_noticed_whatever_the_times(copy: Copy) -> None:
    """Labels and an evaluation were made again and nothing behind them was; then all was copied, and the times are lost."""
    clone_and_copy(copy)
    labels = copy.folder / "results/labels/labels.parquet"
    pd.read_parquet(labels)[1:].to_parquet(labels, index=False)
    evaluation = "results/evaluation/tsm/seed0/8f.json"
    table = copy.read("results/table1.json")
    table["settings"]["evaluations"][evaluation] = table["state"] = "0123456789abcdef"
    (copy.folder / "results/table1.json").write_text(json.dumps(table))
    past = time.time() - 86400
    for file in copy.folder.glob("results/**/*"):
        os.utime(file, (past, past))
    jobs, said = copy.plan()
    assert jobs == MANIFEST
    assert "build_manifest: files.results/labels/labels.parquet changed" in said
    assert f"assemble_table: evaluations.{evaluation} changed" in said


def test_code_that_was_another_while_a_job_ran_is_noticed(copy: Copy) -> None:
    """Code is edited after the plan and taken back after the job: only the job itself saw it."""
    for path in ("results/experiments/ffn/seed0/run.json", "results/evaluation/tsm/seed0/8f.json"):
        file = copy.folder / path
        times = file.stat().st_atime_ns, file.stat().st_mtime_ns
        record = copy.read(path)
        record["code"]["ffnrepro.recipe.clips"] = record["state"] = "0123456789abcdef"
        file.write_text(json.dumps(record))
        os.utime(file, ns=times)
    jobs, said = copy.plan()
    assert jobs == {"train_ffn": 1, "evaluate": 4, "assemble_table": 1}, said
    assert "train_ffn (ffn, seed 0): code of ffnrepro.recipe.clips" in said
    assert "evaluate (tsm, seed 0, frames 8): code of ffnrepro.recipe.clips" in said


def test_a_record_that_cannot_be_read_is_no_record(copy: Copy) -> None:
    for path, text in (
        ("experiments/tsm/seed0/run.json", '{"state": '),
        ("evaluation/ffn/seed0/8f.json", "[]"),
        ("video_index/part-0.json", '{"state": "0123456789abcdef"}'),
    ):
        (copy.folder / "results" / path).write_text(text)
    aside = copy.folder / "results/experiments/tsm/seed0.bak"
    shutil.copytree(copy.folder / "results/experiments/tsm/seed0", aside)
    jobs, said = copy.plan()
    assert jobs == {"index_videos": 1, **MANIFEST}, said
    assert said.count("does not say what decided it") == 3


def test_a_summary_that_fails_says_so_in_one_line(copy: Copy) -> None:
    copy.edit("workflow/rules/plan.smk", "order = [", "order = 1 / 0 or [")
    result = copy.run("--dry-run", TABLE)
    assert "\nNo summary of the plan: ZeroDivisionError: " in result.stdout
    assert "Traceback" not in result.stdout + result.stderr


def test_the_example_of_the_documentation_is_what_is_said(copy: Copy) -> None:
    copy.configure(experiments={"ffn": {"distillation_weight": 0.5}})
    said = copy.plan()[1]
    example = (ROOT / "docs/caching.md").read_text().split("```\n")[1]

    def jobs(text: str) -> list[str]:  # without the hours, which are the machine's
        return [line for line in text.splitlines() if re.match(r"  \w", line)]

    assert len(jobs(example)) == 4
    assert jobs(example) == jobs(said)


def test_the_plot_follows_its_own_code_and_the_table(copy: Copy) -> None:
    copy.edit(f"{CODE}/figures.py", "figsize=(9 if", "figsize=(8 if")
    assert copy.plan("results/figures/accuracy.png", "results/figures/class_counts.png")[0] == {
        "plot_accuracy": 1
    }
    copy.edit(f"{CODE}/table.py", "fmean(values), 2)", "fmean(values), 3)")
    assert copy.plan()[0] == {"assemble_table": 1}


def test_the_slurm_profile_changes_nothing(copy: Copy) -> None:
    profile = str(copy.project / "profiles/slurm")
    assert copy.plan("--profile", profile, TABLE)[0] == {}


@pytest.mark.parametrize(
    ("deleted", "runs"),
    [
        ("results/labels/labels.parquet", {"parse_labels": 1, **MANIFEST}),
        ("results/video_index/part-1.parquet", {"index_videos": 1, **MANIFEST}),
        ("results/manifest/manifest.sha256", MANIFEST),
        ("results/experiments/tsm", {"train_tsm": 1, "evaluate": 3, "assemble_table": 1}),
        ("results/experiments/ffn/seed0/model.pt", FFN),
        ("results/evaluation/ffn/seed0/8f.json", {"evaluate": 1, "assemble_table": 1}),
        ("results/table1.csv", {"assemble_table": 1}),
        ("results/table1.md", {"assemble_table": 1}),
    ],
)
def test_a_deleted_file_is_made_again(copy: Copy, deleted: str, runs: dict[str, int]) -> None:
    path = copy.folder / deleted
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    jobs, said = copy.plan()
    assert jobs == runs, said
    assert "missing" in said
    if any(job in runs for job in ("train_tsm", "train_ffn")) and "sha256" not in deleted:
        assert "kept from before: written out in seconds" in said
    every = {**runs, "plot_accuracy": 1}
    if "build_manifest" in runs:
        every["plot_manifest"] = 1
    assert copy.plan("all")[0] == every


def test_a_replaced_video_is_seen_where_sizes_and_times_are_watched(copy: Copy) -> None:
    copy.configure(data={"watch": "stat"})
    copy.run(TABLE)
    assert copy.plan()[0] == {}
    videos = copy.folder / "my data/videos"
    shutil.copy(videos / "3.webm", videos / "4.webm")
    assert copy.plan()[0] == {"index_videos": 1, **MANIFEST}


def test_only_a_new_video_is_decoded(copy: Copy) -> None:
    add_video(copy)
    entries = copy.folder / "state/video_index"
    before = sum(len(file.read_text().split("\n")) for file in entries.iterdir())
    copy.run("results/manifest/manifest.sha256")
    after = sum(len([line for line in file.read_text().split("\n") if line]) for file in entries.iterdir())
    kept = [
        json.loads(line)["key"][0]
        for file in entries.iterdir()
        for line in file.read_text().split("\n")
        if line
    ]
    assert kept.count("1000.webm") == 1
    assert len(kept) == len(set(kept)), "a video was decoded again"
    assert after <= before + 1


def test_an_unfinished_training_costs_what_is_left_of_it(copy: Copy) -> None:
    shutil.rmtree(copy.folder / "results/experiments/tsm")
    (about,) = (
        path
        for path in copy.folder.glob("state/train/*/about.json")
        if json.loads(path.read_text())["experiment"] == "tsm"
    )
    about.write_text(json.dumps({**json.loads(about.read_text()), "epoch": 1}))
    _, said = copy.plan()
    assert re.search(r"^  train_tsm .*\n .*; goes on after epoch 1 of 2$", said, re.MULTILINE), said
    shutil.rmtree(copy.folder / "results/experiments/ffn")
    _, said = copy.plan()
    assert "hours unknown: nothing of the kind was trained here; goes on after epoch 1 of 2" in said
    # The evaluations' time is known.
    assert said.rstrip().endswith(", and what is not known beside it."), said
    (about.parent / "failed.json").write_text(json.dumps({"message": "the loss is nan", "time": "then"}))
    _, said = copy.plan()
    assert re.search(
        rf"failed before and ends at once: ffnrepro state retry {about.parent.name}$", said, re.MULTILINE
    )


def test_a_record_that_cannot_be_read_makes_no_training_light(copy: Copy) -> None:
    (copy.folder / "results/experiments/tsm/seed0/run.json").write_text("{")
    shutil.rmtree(copy.folder / "state/train")
    _, said = copy.plan()
    assert re.search(r"^  train_tsm .*\n      hours unknown", said, re.MULTILINE), said


def test_identical_data_and_an_earlier_setting_train_nothing(copy: Copy) -> None:
    """By real runs: to another learning rate and back; then labels and index made again, to the same content."""
    first = (copy.folder / TABLE).read_bytes()
    copy.configure(training={"learning_rate": 0.5})
    copy.run(TABLE)
    assert (copy.folder / TABLE).read_bytes() != first
    assert copy.plan()[0] == {}

    copy.configure(training=TINY["training"] | {"learning_rate": 0.01})
    jobs, said = copy.plan()
    assert jobs == BOTH
    assert said.count("kept from before: written out in seconds") == 4, (
        said
    )  # two trainings, and their evaluations
    made = copy.read("results/experiments/tsm/seed0/run.json")
    copy.run(TABLE)
    assert (copy.folder / TABLE).read_bytes() == first
    assert copy.read("results/experiments/tsm/seed0/run.json")["model"] != made["model"]
    assert_nothing_was_computed(copy)

    copy.run(TABLE, "--forcerun", "parse_labels", "index_videos")
    assert_nothing_was_computed(copy)
    assert (copy.folder / TABLE).read_bytes() == first
    assert copy.plan()[0] == {}
    copy.run("results/manifest/manifest.sha256", "--forcerun", "parse_labels", "index_videos")
    assert copy.plan()[0] == {}  # in a later call


def assert_nothing_was_computed(copy: Copy) -> None:
    for name in ("tsm", "ffn"):
        assert "s a step of" not in (copy.folder / f"results/checks/{name}.txt").read_text()
        log = (copy.folder / f"logs/train/{name}/seed0.log").read_text()
        assert "was trained before, nothing is left to do" in log
        assert "epoch 1/" not in log
        for frames in (4, 8, 16):
            assert (
                "was evaluated before"
                in (copy.folder / f"logs/evaluate/{name}/seed0/{frames}f.log").read_text()
            )


def test_changed_code_does_not_write_the_old_network_out_again(copy: Copy) -> None:
    before = copy.read("results/experiments/ffn/seed0/run.json")
    copy.edit(f"{CODE}/losses.py", 'reduction="batchmean"', 'reduction="sum"')
    target = "results/experiments/ffn/seed0/model.sha256"
    copy.run(target)
    after = copy.read("results/experiments/ffn/seed0/run.json")
    assert "epoch 1/2" in (copy.folder / "logs/train/ffn/seed0.log").read_text()
    assert after["model"] != before["model"]
    differs = [name for name in after["code"] if after["code"][name] != before["code"].get(name)]
    assert differs == ["ffnrepro.recipe.losses"]


def test_a_job_that_nobody_watched_is_noticed(copy: Copy) -> None:
    """Snakemake is killed, its job ends, and then a param is changed, back to what Snakemake has on record."""
    copy.configure(training={"learning_rate": 0.5})
    target = "results/experiments/tsm/seed0/model.sha256"
    output = copy.folder / "results/experiments/tsm/seed0/run.json"
    log = copy.folder / "logs/train/tsm/seed0.log"
    log.unlink()
    controller = subprocess.Popen(
        copy.command(target),
        cwd=copy.project,
        env=copy.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_for(log.exists)
    os.kill(controller.pid, signal.SIGKILL)
    controller.wait()
    wait_for(
        lambda: output.exists() and copy.read(str(output))["settings"]["training"]["learning_rate"] == 0.5
    )
    copy.run("--unlock")
    copy.configure(training={"learning_rate": 0.01})
    assert copy.plan("--rerun-incomplete", target)[0] == {"check_training": 1, "train_tsm": 1}
    # On a cluster the job has a snakemake of its own, which takes the marks of unfinished files away.
    for mark in (copy.folder / ".snakemake/incomplete").iterdir():
        mark.unlink()
    jobs, said = copy.plan()
    assert jobs == {"check_training": 1, "train_tsm": 1, "evaluate": 3, "assemble_table": 1}, said
    assert "train_tsm (tsm, seed 0): training.learning_rate 0.5 -> 0.01" in said
    copy.run(TABLE)
    assert copy.plan()[0] == {}
    assert copy.read(str(output))["settings"]["training"]["learning_rate"] == 0.01


def test_a_first_job_that_nobody_watched_is_taken_as_what_it_is(copy: Copy) -> None:
    """As above, of a job that Snakemake has no record of at all."""
    records = copy.folder / ".snakemake/metadata"
    names = [file for file in records.iterdir() if json.loads(file.read_text())["rule"] == "train_tsm"]
    assert len(names) == 4
    for file in names:
        file.unlink()
    assert copy.plan()[0] == {}
    copy.configure(training={"learning_rate": 0.02})
    jobs, said = copy.plan()
    assert jobs == BOTH
    assert "train_tsm (tsm, seed 0): training.learning_rate 0.01 -> 0.02" in said


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_several_seeds_stand_in_the_table(copy: Copy) -> None:
    copy.configure(seeds=[0, 1], table=[{"method": "TSM", "experiments": "tsm"}])
    copy.run(TABLE)
    table = pd.read_csv(copy.folder / TABLE)
    a, b = (copy.read(f"results/evaluation/tsm/seed{seed}/16f.json")["top1"] for seed in (0, 1))
    assert table.loc[0, "top1_16f"] == round((a + b) / 2, 2)
    assert table.loc[0, "deviation_16f"] == round(abs(a - b) / 2**0.5, 2)  # by hand, for two values


PROFILED = """
import json, runpy, sys, threading
seen = set()
def ours(frame):
    return "/ffnrepro/" in frame.f_code.co_filename
def note(frame, event, argument):
    if event == "call" and ours(frame) and frame.f_code.co_flags & 2:  # a function, not the body of a class
        caller = frame
        while caller := caller.f_back:
            if ours(caller) and caller.f_code.co_name == "<module>":
                return  # for a constant, on import
        seen.add((frame.f_code.co_filename, frame.f_code.co_qualname.partition(".")[0]))
out, *sys.argv = sys.argv[1:]
sys.setprofile(note); threading.setprofile(note)
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
finally:
    sys.setprofile(None)
    json.dump(sorted(seen), open(out, "w"))
"""


@pytest.mark.parametrize("method", ["tsm", "ffn"])
def test_what_runs_is_what_the_digest_counts(copy: Copy, method: str) -> None:
    """Every function that a training and an evaluation call is reached by the walk, or is on the list with its reason."""
    results, manifest = copy.folder / "results", copy.folder / "results/manifest"
    settings = copy.read(f"results/experiments/{method}/seed0/run.json")["settings"]
    evaluated = copy.read(f"results/evaluation/{method}/seed0/4f.json")["settings"]
    common = [
        "--name",
        method,
        "--manifest",
        manifest,
        "--videos",
        copy.folder / "my data/videos",
        "--device",
        "cpu",
    ]
    calls = {
        f"train_{method}": [
            "--settings", json.dumps(settings | {"seed": 5}), "--classes", results / "labels/classes.csv",
            "--state", copy.folder / "new", "--output", copy.folder / "out", *common,
        ],
        "evaluate": [
            "--settings", json.dumps(evaluated), "--model", results / f"experiments/{method}/seed0/model.pt",
            "--seed", "0", "--state", copy.folder / "new", "--batch-size", "4", "--predictions", copy.folder / "p.parquet",
            "--summary", copy.folder / "s.json", *common,
        ],
    }  # fmt: skip
    for name, arguments in calls.items():
        script = ROOT / f"workflow/scripts/{name}.py"
        called = copy.folder / f"{name}.json"
        command = [sys.executable, "-c", PROFILED, str(called), str(script), *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True, timeout=600)
        reached = reached_names(script, method)
        executed = json.loads(called.read_text())
        assert len(executed) > 30
        for file, function in executed:
            module = ".".join(
                ("ffnrepro", *Path(file).with_suffix("").parts[Path(file).parts.index("ffnrepro") + 1 :])
            )
            module = module.removesuffix(".__init__")
            if function.startswith("<") or f"{module}.{function}.".startswith(
                tuple(f"{n}." for n in LEFT_OUT)
            ):
                continue
            assert function in reached.get(module, ()), f"{module}.{function} is called and not counted"
