"""The table of docs/caching.md: each change runs the jobs listed there and no others.

Which settings and which code make another run is tested in tests/unit/test_run_keys.py, where it takes milliseconds. Here
stands what Snakemake has a part in. Changes that are to run nothing are made together and planned once.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from ffnrepro.runs import code_digests

from .conftest import Workflow

Finished = tuple[Workflow, subprocess.CompletedProcess[str]]

TABLE = {"assemble_table": 1, "plot_accuracy": 1, "diagnose": 1, "report": 1}
ALL = {"check_training": 2, "train_tsm": 1, "train_ffn": 1, "evaluate": 6, **TABLE}
SPEED = {"threads": 2, "workers": 1, "save_minutes": 1, "cache_decoded": False, "device": "auto"}


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Workflow:
    """A finished run that a test may change, without a project of its own."""
    assert finished[1].returncode == 0, finished[1].stderr
    return finished[0].copy(tmp_path)


@pytest.fixture
def whole_copy(finished: Finished, tmp_path: Path) -> Workflow:
    """A finished run and the project, both to be changed."""
    assert finished[1].returncode == 0, finished[1].stderr
    return finished[0].copy(tmp_path, with_project=True)


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert text.count(old) == 1, f"{old!r} in {file}"
    file.write_text(text.replace(old, new))


# --- Nothing runs ----------------------------------------------------------------------------------------------


def touch_everything(workflow: Workflow) -> None:
    """Give inputs, intermediates and code new times, each newer than the files made from it."""
    now = time.time() - 3600
    for base in ("run/results/table1.csv", "run/results/runs", "run/results/manifest", "run/results/video_index",
                 "run/results/labels", "run/my data", "the project"):  # fmt: skip
        path = workflow.folder.parent / base
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            now += 1
            os.utime(file, (now, now))


def write_again(workflow: Workflow) -> None:
    names = ("my data/labels/train.json", "results/manifest/manifest.sha256", "results/labels/classes.csv")
    for file in [
        *(workflow.folder / name for name in names),
        *workflow.folder.glob("results/runs/*/*/*.sha256"),
    ]:
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)


def edit_code_outside_recipe(source: Path) -> None:
    """Edit every module that decides no number: messages, the decoder, the loader, saves, the estimate of hours."""
    tables = {
        name.removeprefix("ffnrepro").lstrip(".")
        for name in (
            *code_digests(["ffnrepro.figures", "ffnrepro.table_text"], within="ffnrepro"),
            *code_digests(["ffnrepro.diagnosis"], within="ffnrepro.faults"),
            *code_digests(["ffnrepro.report.page"], within="ffnrepro.report"),
        )
    }
    for file in source.rglob("*.py"):
        module = ".".join(file.relative_to(source).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        if not module.startswith("recipe") and module not in tables:
            file.write_text(file.read_text() + "\nEDITED = 1\n")
    edit(source / "training/checkpoints.py", "GENERATIONS = 2", "GENERATIONS = 3")
    edit(source / "training/loader.py", "no video of a batch", "none of a batch")


def change_comments(project: Path) -> None:
    """Change docstrings, comments and form of all modules, and comments of rules and environment."""
    for file in [*project.glob("src/**/*.py"), *project.glob("workflow/scripts/*.py")]:
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                # pydantic needs one below each key.
                node.value.value = "Another docstring."
        file.write_text("# A comment.\n" + ast.unparse(tree) + "\n")
    for file in [*project.glob("workflow/rules/*.smk"), project / "environment.yml"]:
        file.write_text("# A comment.\n" + file.read_text())


def add_method_and_option(source: Path) -> None:
    """Add a method, and an option that all trainings have, with its default."""
    text = (source / "recipe/methods/tsm.py").read_text()
    (source / "recipe/methods/third.py").write_text(text.replace('Literal["tsm"]', 'Literal["third"]'))
    edit(source / "methods.py", 'NAMES = ("tsm", ', 'NAMES = ("tsm", "third", ')
    option = '    averaging: float = 0.0\n    """An option."""\n'
    edit(source / "config.py", "    momentum: NonNegativeFloat", f"{option}    momentum: NonNegativeFloat")


def test_settings_that_affect_no_number_run_nothing(whole_copy: Workflow) -> None:
    source = whole_copy.project / "src/ffnrepro"
    add_method_and_option(source)
    edit_code_outside_recipe(source)
    change_comments(whole_copy.project)
    edit(whole_copy.project / "environment.yml", "dependencies:", "dependencies:\n  - cowpy")
    write_again(whole_copy)
    touch_everything(whole_copy)
    jobs, output = whole_copy.plan(
        "--profile", str(whole_copy.project / "profiles/slurm"), "--executor", "local",
        runtime=SPEED, training={"recompute": True}, data={"max_bad_fraction": 0.5}, evaluation={"batch_size": 3},
        experiments={"other": {"method": "third", "train_frames": [2]}, "tsm_4f": {"depth": 18}},
        tables={"other": {"frame_counts": [4], "rows": [{"label": "another", "experiments": "other"}]}},
    )  # fmt: skip
    assert jobs == {}, output


# --- Data ------------------------------------------------------------------------------------------------------


def drop_label(workflow: Workflow) -> None:
    file = workflow.folder / "my data/labels/train.json"
    rows = json.loads(file.read_text())
    assert rows.pop(4)["id"] not in ("1", "2"), "these videos are left out anyway"
    file.write_text(json.dumps(rows))
    # As of an archive: its time says nothing.
    os.utime(file, (0, 0))


def test_a_moved_clone_without_records_runs_nothing(whole_copy: Workflow) -> None:
    """Results are copied into a clone, with their times: there is no `.snakemake`, and code has new times."""
    shutil.rmtree(whole_copy.folder / ".snakemake")
    for file in whole_copy.project.rglob("*"):
        os.utime(file)
    tree = whole_copy.folder.parent
    moved = Workflow(tree.rename(tree.with_name("moved")) / "run")
    # A known limit: only Snakemake's records say what the data stages were made from.
    drop_label(moved)
    jobs, output = moved.plan()
    assert jobs == {}, output
    # The first job there brings no other, and the data may be elsewhere.
    shutil.rmtree(moved.folder / "my data")
    (moved.folder / "results/table1.csv").unlink()
    assert moved.plan("results/table1.csv")[0] == {"assemble_table": 1}


BEHIND = {"build_manifest": 1, "plot_manifest": 1, **ALL}


def test_other_data_runs_its_stage_and_all_later_stages(whole_copy: Workflow) -> None:
    videos = whole_copy.folder / "my data/videos"
    shutil.copy(videos / "3.webm", videos / "1000.webm")
    drop_label(whole_copy)
    jobs, output = whole_copy.plan()
    assert jobs == {"parse_labels": 1, "index_videos": 1, **BEHIND}, output
    assert output.count("already trained; if the data is unchanged") == 2
    shards = [f"results/video_index/part-{shard}.parquet" for shard in (0, 1)]
    jobs, output = whole_copy.plan(*shards, data={"watch": "stat", "verify": "packets"})
    assert jobs == {"index_videos": 2}
    # Sizes and times are in the digest of the names, the other is a param of its own.
    now = re.findall(r"before: .* now: (.*)", output)
    assert len(now) == 2
    assert all("'packets'" in values and re.search("'[0-9a-f]{64}'", values) for values in now), output


def test_a_raised_revision_of_a_data_stage_runs_it(whole_copy: Workflow) -> None:
    data = whole_copy.project / "src/ffnrepro/data"
    edit(data / "manifest.py", "REVISION = 2", "REVISION = 3")
    jobs, output = whole_copy.plan(data={"max_excluded": 0.2})
    assert jobs == BEHIND, output
    # The setting is a param, too.
    assert re.search(r"Joining.*\nReason: Params have changed.* now: .*0\.2", output), output
    edit(data / "labels.py", "REVISION = 2", "REVISION = 3")
    edit(data / "video_index.py", "REVISION = 2", "REVISION = 3")
    jobs, output = whole_copy.plan()
    assert jobs == {"parse_labels": 1, "index_videos": 2, **BEHIND}, output


def test_earlier_data_writes_the_training_out_again(copy: Workflow) -> None:
    """A label row is removed and comes back: the state of the first data is still there."""
    network = copy.seed("tsm")
    target = str((network / "model.pt").relative_to(copy.folder))
    first = (network / "model.sha256").read_text()
    labels = copy.folder / "my data/labels/train.json"
    before = labels.read_bytes()
    drop_label(copy)
    assert "Training tsm" in copy.made(target)
    assert (network / "model.sha256").read_text() != first
    labels.write_bytes(before)
    copy.made("results/manifest/manifest.sha256")
    jobs, output = copy.plan()
    # FFN was not trained on the other data.
    assert jobs == {"check_training": 1, "train_tsm": 1, "evaluate": 3, **TABLE}, output
    copy.made(target)
    log = next(copy.folder.glob("logs/train/tsm-*/seed0.log")).read_text()
    assert "epoch 1/" not in log
    assert (network / "model.sha256").read_text() == first
    jobs, output = copy.plan()
    assert jobs == {}, output


# --- Experiments, evaluations and tables ------------------------------------------------------------------------


def test_a_setting_of_one_experiment_and_one_more_seed(finished: Finished) -> None:
    jobs, output = finished[0].plan(seeds=[0, 1], experiments={"ffn": {"distillation_weight": 0.5}})
    # FFN is new, with both seeds; of TSM the second seed is.
    assert jobs == {
        "write_settings": 1, "check_training": 3, "train_ffn": 2, "train_tsm": 1, "evaluate": 9, **TABLE
    }, output  # fmt: skip
    old = finished[0].seed("ffn").parent.name
    new = re.search(
        rf"Training (ffn-\w+), seed 1: differs from {old} in distillation_weight 1\.0 -> 0\.5; about", output
    )
    assert new, output
    assert new[1] != old


def test_other_frame_counts_rows_and_tables_run_only_new_jobs(finished: Finished) -> None:
    rows = [{"label": "TSM-ST", "experiments": {4: "tsm_4f", 8: "tsm_8f", 16: "tsm"}}]
    tables = {"st": {"frame_counts": [4, 8, 16], "rows": rows}, "table1": {"frame_counts": [4, 12]}}
    # Of an experiment's name all frame counts of its tables are evaluated.
    jobs, output = finished[0].plan("results/st.csv", "results/table1.csv", "ffn", tables=tables)
    assert jobs == {
        "write_settings": 2, "check_training": 2, "train_tsm": 2, "evaluate": 2 + 2, "assemble_table": 2
    }, output  # fmt: skip
    jobs, output = finished[0].plan(evaluation={"split": "test"})
    assert jobs == {"evaluate": 6, **TABLE}, output


def test_labels_figures_and_code_of_tables_and_plots_run_them_alone(whole_copy: Workflow) -> None:
    source = whole_copy.project / "src/ffnrepro"
    edit(source / "figures.py", "dpi=150", "dpi=151")
    edit(source / "report/page.css", "color-scheme: light dark;", "color-scheme: light;")
    jobs, output = whole_copy.plan()
    assert jobs == {"plot_accuracy": 1, "plot_manifest": 1, "report": 1}, output
    edit(source / "faults.py", "WAIT_SHARE = 50.0", "WAIT_SHARE = 51.0")
    jobs, output = whole_copy.plan()
    assert jobs == {"plot_accuracy": 1, "plot_manifest": 1, "diagnose": 1, "report": 1}, output
    edit(whole_copy.project / "resources/published.csv", "31.52", "31.53")
    jobs, output = whole_copy.plan("results/table1.csv")
    assert jobs == {"assemble_table": 1}, output
    edit(source / "tables.py", "round(value, 2)", "round(value, 3)")
    rows = [{"label": "another", "experiments": "tsm"}]
    jobs, output = whole_copy.plan(tables={"table1": {"rows": rows}})
    assert jobs == {**TABLE, "plot_manifest": 1}, output
    assert re.search(r"Assembling table1\nReason: .*Params have changed.* now: .*another", output), output


def test_deleted_files(copy: Workflow) -> None:
    (copy.seed("tsm") / "model.pt").unlink()
    (copy.seed("ffn") / "validation_8f.json").unlink()
    (copy.seed("ffn") / "validation_4f.parquet").unlink()
    (copy.folder / "results/labels/labels.parquet").unlink()
    assert copy.plan("results/table1.csv")[0] == {}
    (copy.folder / "results/table1.md").unlink()
    jobs, output = copy.plan()
    assert jobs == {"check_training": 1, "train_tsm": 1, "evaluate": 5, **TABLE}, output
    assert "already trained; if the data is unchanged" in output


def test_a_stale_record_stops_the_table_until_it_is_made_again(copy: Workflow) -> None:
    record, table = copy.seed("ffn") / "validation_8f.json", copy.folder / "results/table1.csv"
    before = pd.read_csv(table)
    record.write_text(
        json.dumps(json.loads(record.read_text()) | {"model": "0123456789abcdef", "top1": 99.0})
    )
    result = copy.run("results/table1.csv")
    assert result.returncode != 0
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    path = record.relative_to(copy.folder)
    found = re.fullmatch(rf"error: {path}: model is 01234567 and should be \w{{8}}; .*: snakemake (.*)", line)
    assert found, line
    copy.made(*found[1].split())
    copy.made("results/table1.csv")
    # Of an evaluation only the speed differs, which is measured.
    speed = "clips_per_second_8f"
    pd.testing.assert_frame_equal(pd.read_csv(table).drop(columns=speed), before.drop(columns=speed))


# --- Edited code -------------------------------------------------------------------------------------------------


def test_edited_code_of_a_method_and_its_accepted_network(whole_copy: Workflow) -> None:
    """An option with its default is added to FFN. The user knows that it changes no number."""
    table = (whole_copy.folder / "results/table1.csv").read_bytes()
    old = whole_copy.seed("ffn").parent
    method = whole_copy.project / "src/ffnrepro/recipe/methods/ffn.py"
    before = method.read_text()
    option = '    temperature: float = 1.0\n    """An option."""\n'
    edit(method, "    weight_sharing: bool", f"{option}    weight_sharing: bool")
    jobs, output = whole_copy.plan("--printshellcmds")
    ffn = {"write_settings": 1, "check_training": 1, "train_ffn": 1, "evaluate": 3, **TABLE}
    assert jobs == ffn, output
    assert f"differs from {old.name} in code of ffnrepro.recipe.methods.ffn; about" in output

    # Jobs of the old code that waited in the queue meanwhile.
    new = re.search(r"results/runs/(ffn-\w{8})/seed0", output)[1]
    files = {path: path.read_bytes() for path in (old / "seed0").iterdir()}
    command = re.search(r"python .*train\.py.*", output)[0].replace(new, old.name)
    # A job of a cluster calls snakemake for its file.
    evaluation = str((old / "seed0/validation_5f.json").relative_to(whole_copy.folder))
    for late in (whole_copy.bash(command), whole_copy.run(evaluation)):
        assert late.returncode != 0
        assert re.search(
            f"error: .*{old.name}: code and settings.json now have the key {new.removeprefix('ffn-')}",
            late.stderr,
        )
    assert {path: path.read_bytes() for path in (old / "seed0").iterdir()} == files

    accepted = whole_copy.ffnrepro("runs", *whole_copy.options, "accept", old.name)
    assert (
        f"{old.name}: its networks are now also in results/runs/{new} (code of ffnrepro.recipe.methods.ffn)"
        in accepted
    )
    jobs, output = whole_copy.plan()
    assert jobs == TABLE, output
    whole_copy.made()
    assert (whole_copy.folder / "results/table1.csv").read_bytes() == table
    chain = yaml.safe_load(whole_copy.ffnrepro("provenance", "results/table1.csv"))
    assert chain["TSM-FFN"]["networks"][f"results/runs/{new}/seed0/run.json"]["accepted_from"] == old.name

    # Back to the earlier code.
    method.write_text(before)
    jobs, output = whole_copy.plan()
    assert jobs == TABLE, output
