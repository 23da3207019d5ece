# Shared by the rules: the checked configuration, the runs, how scripts are called, input functions.

import json
import os
import shlex
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from ffnrepro.config import check_experiments, read_config
from ffnrepro.data.labels import label_digests
from ffnrepro.data.video_index import list_videos, watch_digests
from ffnrepro.ensembles import member_records, network_folders
from ffnrepro.errors import UserError
from ffnrepro.files import file_digest
from ffnrepro.run_list import RunList
from ffnrepro.runs import (
    code_digests,
    module_code,
    run_settings,
    scoring_code,
    start_path,
    weights_identity,
)
from ffnrepro.tables import check_published, read_published, read_rows


@contextmanager
def one_line_errors():
    """Print errors that the user can fix in one line, and stop."""
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")


with one_line_errors():
    CONFIG = read_config(config)
    RUN_LIST = RunList(CONFIG)

PUBLISHED = os.path.relpath(os.path.join(workflow.basedir, "resources", "published.csv"))
TRAINING = "results/runs/{run}/seed{seed}"
EVALUATION = f"{TRAINING}/{{split}}_{{frames}}f"
ENSEMBLE = "results/ensembles/{ensemble}/seed{seed}/{split}_{frames}f"
GPUS = 0 if CONFIG.runtime.device == "cpu" else 1

# A dry run works without the data; a real run stops before its first job.
for path in (CONFIG.data.labels, CONFIG.data.videos, CONFIG.own_weights, *CONFIG.imports.values()):
    if path and not os.path.exists(path):
        print(f"{path}: does not exist yet", file=sys.stderr)

# Scripts are run by the Python that runs snakemake. SLURM sends SIGTERM to all processes of a job, and kills the rest once
# the shell has ended. So the shell ignores SIGTERM and waits.
PREFIX = f"set -euo pipefail; trap : TERM; export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH; "
shell.prefix(PREFIX.replace("{", "{{").replace("}", "}}"))


def script(name):
    """Path of a rule's script, from the working directory."""
    return os.path.relpath(os.path.join(workflow.basedir, "workflow", "scripts", f"{name}.py"))


# Options that affect no result are `resources`, because a changed param reruns a job and a changed resource does not.
DEVICE_OPTIONS = f"--videos {shlex.quote(CONFIG.data.videos)} --device {CONFIG.runtime.device} "
DEVICE_OPTIONS += f"--workers {CONFIG.runtime.workers}"
if CONFIG.data.cache != "none":
    DEVICE_OPTIONS += f" --cache-folder {shlex.quote(CONFIG.data.cache_folder)}"
TRAINING_OPTIONS = f"{DEVICE_OPTIONS} --save-minutes {CONFIG.runtime.save_minutes:g} "
TRAINING_OPTIONS += f"--max-bad-fraction {CONFIG.data.max_bad_fraction:g}"
if CONFIG.runtime.time_budget is not None:
    TRAINING_OPTIONS += f" --time-budget {CONFIG.runtime.time_budget:g}"
if CONFIG.runtime.cache_decoded:
    TRAINING_OPTIONS += " --cache-decoded"


def cache_records(*splits):
    """Records of the frame cache of some splits; nothing where trainings and evaluations read the videos themselves."""
    shards = [] if CONFIG.data.cache == "none" else range(CONFIG.data.index_shards)
    return expand("results/frame_cache/{split}/part-{shard}.json", split=splits, shard=shards)


def names_of_runs(experiments):
    """Regular expression of the runs of experiments, with any key: a queued job keeps its key, and its script refuses an old one."""
    return f"(?:{'|'.join(experiments)})-[0-9a-f]{{8}}"


wildcard_constraints:
    run=names_of_runs(CONFIG.experiments),
    ensemble=rf"{names_of_runs(CONFIG.experiments)}(?:\+{names_of_runs(CONFIG.experiments)})+",
    seed="0|[1-9][0-9]*",
    split="train|validation|test",
    frames="[1-9][0-9]{0,2}",
    table="|".join(CONFIG.tables),
    shard=r"\d+",
    depth=r"\d+",


def experiment_of(wildcards):
    """Name of a run's experiment."""
    return wildcards.run.rpartition("-")[0]


@cache
def check(*experiments):
    """Refuse experiments whose settings do not fit together, or equal those of another experiment."""
    with one_line_errors():
        check_experiments(CONFIG, experiments)


def runs_of(family):
    """Regular expression of the runs whose network belongs to a family: `tsm`, `ffn` or `checkpoint`."""
    names = [name for name, experiment in CONFIG.experiments.items() if experiment.method.family == family]
    return names_of_runs(names) if names else "(?!)"


def evaluations_of(experiment, frame_counts):
    """Records of the evaluations of an experiment's run, of all seeds."""
    return expand(
        f"{EVALUATION}.json",
        run=RUN_LIST.selected[experiment],
        seed=CONFIG.seeds,
        split=CONFIG.evaluation.split,
        frames=frame_counts,
    )


def evaluations_of_row(row, frames):
    """Records of a row's evaluations at one frame count, of all seeds."""
    experiments = row.experiments_at(frames)
    if row.ensemble is None:
        return evaluations_of(*experiments, [frames])
    return expand(
        f"{ENSEMBLE}.json",
        ensemble="+".join(RUN_LIST.selected[name] for name in experiments),
        seed=CONFIG.seeds,
        split=CONFIG.evaluation.split,
        frames=frames,
    )


def rows_of_table(name):
    """Rows of a table, with the attributes of `ffnrepro.tables.TableRow`."""
    table = CONFIG.tables[name]
    return [
        {
            "label": row.label,
            "compare_with": row.compare_with,
            "published": row.published and [row.published.method, row.published.setting],
            "evaluations": {n: evaluations_of_row(row, n) for n in table.frame_counts},
        }
        for row in table.rows
    ]


def evaluations_of_table(name):
    """Records behind a table, and behind its ensembles; wrong settings are refused before anything runs."""
    with one_line_errors():
        check(*CONFIG.experiments_of(name))
        rows = rows_of_table(name)
        check_published(read_rows(json.dumps(rows)), read_published(Path(PUBLISHED)))
    records = {path for row in rows for paths in row["evaluations"].values() for path in paths}
    return sorted(records | {str(member) for path in records for member in member_records(Path(path))})


def predictions_of(records):
    """The predictions of evaluations, by their records."""
    return [path.replace(".json", ".parquet") for path in records]


def records_of_members(wildcards):
    """Records of the evaluations that an ensemble averages."""
    return list(map(str, member_records(Path(f"{ENSEMBLE}.json".format(**wildcards)))))


def files_of_networks(records, *names):
    """Files of the networks behind records of evaluations, each once."""
    return [f"{folder}/{name}" for folder in sorted(network_folders(map(Path, records))) for name in names]


def files_of_table(name):
    """Networks and evaluations that a table is made of."""
    records = evaluations_of_table(name)
    return records + files_of_networks(records, "model.pt")


def files_of_report():
    """Records, predictions, networks and histories behind the tables of the report."""
    records = {path for table in CONFIG.report.tables for path in evaluations_of_table(table)}
    networks = files_of_networks(records, "model.pt", "history.parquet", "run.json")
    return predictions_of(sorted(records)) + networks


def report_code():
    """Digests of the package `report`, its template, style and script; the other code that it imports only reads files."""
    folder = Path(workflow.basedir, "src", "ffnrepro", "report")
    files = {name: file_digest(folder / name)[:8] for name in ("page.html", "page.css", "page.js")}
    return {**code_digests(["ffnrepro.report.page"], within="ffnrepro.report"), **files}


def evaluations_of_experiment(experiment):
    """Records of an experiment's evaluations: at the frame counts of the first table that needs it, or of the first table."""
    tables = CONFIG.tables.values()
    counts = (
        [n for row in table.rows for n in table.frame_counts if experiment in row.experiments_at(n)]
        for table in tables
    )
    return evaluations_of(
        experiment, sorted(set(next(filter(None, counts), next(iter(tables)).frame_counts)))
    )


def start_file(wildcards):
    """The file that a training starts from: ImageNet weights, the user's own, or the network of another run."""
    experiment = experiment_of(wildcards)
    check(experiment)
    path = start_path(CONFIG, experiment, int(wildcards.seed))
    # If the user's own file does not exist, `onstart` reports it.
    missing = path is None or (path == Path(CONFIG.own_weights or "") and not path.exists())
    return [] if missing else str(path)


def check_own_weights(experiments):
    """Refuse a file of the user's own (`network.weights`) that the networks of these experiments cannot start from."""
    own = Path(CONFIG.own_weights)
    networks = {CONFIG.network_of(name) for name in experiments if CONFIG.experiments[name].start is None}
    if networks and not own.exists():
        raise UserError(f"{own}: no such file; set network.weights to a file, imagenet or null")
    # Most processes of the workflow do not need torch, whose import takes seconds.
    from ffnrepro.weights import check_start

    for network in networks:
        check_start(own, network, digest=weights_identity(CONFIG, network.depth))


def start_digest(wildcards):
    """Digest of the other run's network that a training starts from, because the network may change while its path stays."""
    path = start_file(wildcards)
    return path.replace(".pt", ".sha256") if CONFIG.experiments[experiment_of(wildcards)].start else []


def start_argument(wildcards):
    path = start_file(wildcards)
    return f"--start {shlex.quote(path)}" if path else ""


def training_options(wildcards):
    """Options of a training that affect no result."""
    recompute = CONFIG.recompute_of(experiment_of(wildcards))
    return f"{TRAINING_OPTIONS} --recompute" if recompute else TRAINING_OPTIONS


def settings_of(wildcards):
    return run_settings(CONFIG, experiment_of(wildcards)).model_dump_json()


def training_note(wildcards):
    """Description of a training, for its message."""
    return RUN_LIST.describe_training(experiment_of(wildcards), int(wildcards.seed))


@cache
def digests_of_labels():
    return label_digests(Path(CONFIG.data.labels))


@cache
def names_of_videos():
    return list_videos(Path(CONFIG.data.videos), CONFIG.data.layout)


@cache
def digests_of_shards():
    data = CONFIG.data
    try:
        names = [] if data.watch == "none" else names_of_videos()
    except UserError:
        # A dry run works without the videos; a real run stops in `onstart`.
        return ["no videos"] * data.index_shards
    return watch_digests(Path(data.videos), names, shards=data.index_shards, watch=data.watch)


def rows_of_curve(name):
    """Rows of a table; a row with one network has its evaluation at any frame count instead of those of the table."""
    rows = rows_of_table(name)
    for row, settings in zip(rows, CONFIG.tables[name].rows, strict=True):
        if isinstance(settings.experiments, str):
            records = expand(
                f"{TRAINING}/{{split}}_any_frame.json",
                run=RUN_LIST.selected[settings.experiments],
                seed=CONFIG.seeds,
                split=CONFIG.evaluation.split,
            )
            row["evaluations"] = dict.fromkeys(CONFIG.evaluation.any_frame, records)
    return rows


def evaluations_of_curve(name):
    """Records behind the curves of a table; wrong settings are refused before anything runs."""
    evaluations_of_table(name)
    return sorted(
        {path for row in rows_of_curve(name) for paths in row["evaluations"].values() for path in paths}
    )


def network_with_private_norms(wildcards):
    """Network of an experiment, of the first seed; a training without specialised normalisation is refused."""
    experiment = wildcards.experiment
    with one_line_errors():
        check(experiment)
        # For an imported network, this is known only when its file is read.
        if experiment not in CONFIG.imports and not getattr(
            CONFIG.experiments[experiment].method, "specialized_normalization", False
        ):
            raise UserError(
                f"config: experiments.{experiment} has no BatchNorm statistics for each frame count; choose an experiment "
                "of method ffn with specialized_normalization: true"
            )
    return f"results/runs/{RUN_LIST.selected[experiment]}/seed{CONFIG.seeds[0]}/model"


def refuse(target):
    """Stop with a list of the experiments or tables; an existing file needs no rule."""
    if os.path.exists(target):
        raise WorkflowError(f"{target} is a file")
    kind, names = ("table", CONFIG.tables) if target.endswith(".csv") else ("experiment", CONFIG.experiments)
    name = Path(target).stem
    if kind == "experiment" and name in CONFIG.tables:
        sys.exit(f"error: {name} is a table; request results/{name}.csv")
    sys.exit(
        f"error: there is no {kind} {name}; give one of {', '.join(names)}, or add the --configfile that defines {name}"
    )
