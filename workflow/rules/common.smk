# What the rules share: the checked configuration, the runs, how scripts are called, input functions.

import json
import os
import shlex
import sys
from functools import cache
from pathlib import Path

from ffnrepro.config import check_experiments, read_config
from ffnrepro.errors import UserError
from ffnrepro.files import file_digest
from ffnrepro.run_list import RunList
from ffnrepro.runs import module_code, run_settings, scoring_code

try:
    CONFIG = read_config(config)
    RUN_LIST = RunList(CONFIG)
except UserError as error:
    # One line, before anything is planned.
    sys.exit(f"error: {error}")

PUBLISHED = os.path.relpath(os.path.join(workflow.basedir, "resources", "published.csv"))
TRAINING = "results/runs/{run}/seed{seed}"
EVALUATION = f"{TRAINING}/{{split}}_{{frames}}f"
GPUS = 0 if CONFIG.runtime.device == "cpu" else 1

# Scripts run by the Python that runs snakemake. SLURM sends SIGTERM to all processes of a job, and kills those that are
# left once the shell has ended, so the shell waits.
PREFIX = f"set -euo pipefail; trap : TERM; export PATH={shlex.quote(os.path.dirname(sys.executable))}:$PATH; "
shell.prefix(PREFIX.replace("{", "{{").replace("}", "}}"))


def script(name):
    """Path of a rule's script, from the working directory."""
    return os.path.relpath(os.path.join(workflow.basedir, "workflow", "scripts", f"{name}.py"))


# What decides no number reaches the commands by `resources`: unlike params they may change without rerunning a job.
DEVICE_OPTIONS = shlex.join(
    [
        *("--videos", CONFIG.data.videos),
        *("--device", CONFIG.runtime.device),
        *("--workers", str(CONFIG.runtime.workers)),
    ]
)
TRAINING_OPTIONS = f"{DEVICE_OPTIONS} --save-minutes {CONFIG.runtime.save_minutes:g} "
TRAINING_OPTIONS += f"--max-bad-fraction {CONFIG.data.max_bad_fraction:g}"
if CONFIG.runtime.time_budget is not None:
    TRAINING_OPTIONS += f" --time-budget {CONFIG.runtime.time_budget:g}"
if CONFIG.runtime.cache_decoded:
    TRAINING_OPTIONS += " --cache-decoded"

# On one machine, jobs that use GPUs run one after the other: each takes the first GPUs that it sees. On a cluster, SLURM
# gives each job its own. The executor is not known yet; `nodes` is a cluster's only.
if workflow.resource_settings.nodes is None:
    workflow.register_resource("gpu_jobs", 1)


wildcard_constraints:
    run="|".join(RUN_LIST.selected.values()),
    seed="0|[1-9][0-9]*",
    split="train|validation|test",
    frames="[1-9][0-9]{0,2}",
    table="|".join(CONFIG.tables),
    shard=r"\d+",
    depth=r"\d+",


def experiment_of(wildcards):
    """The experiment of a run; settings that do not fit together are refused when one of its files is asked for."""
    experiment = wildcards.run.rpartition("-")[0]
    check([experiment])
    return CONFIG.experiments[experiment]


def check(experiments):
    """Refuse experiments whose settings do not fit together, or are those of another one."""
    try:
        check_experiments(CONFIG, experiments)
    except UserError as error:
        sys.exit(f"error: {error}")


def runs_of(family):
    """Regular expression of the runs whose network is of a family: TSM's, or FFN's and its ablations'."""
    runs = [
        run for name, run in RUN_LIST.selected.items() if CONFIG.experiments[name].method.family == family
    ]
    return "|".join(runs) or "(?!)"


def evaluations_of(experiment, frame_counts):
    """Records of the evaluations of an experiment's run, of all seeds."""
    return expand(
        f"{EVALUATION}.json",
        run=RUN_LIST.selected[experiment],
        seed=CONFIG.seeds,
        split=CONFIG.evaluation.split,
        frames=frame_counts,
    )


def files_of_table(name):
    """Networks and evaluations that a table is made of."""
    cells = [
        (row.experiment_at(n), n)
        for row in CONFIG.tables[name].rows
        for n in CONFIG.tables[name].frame_counts
    ]
    records = {path for experiment, frames in cells for path in evaluations_of(experiment, [frames])}
    return sorted(records | {os.path.join(os.path.dirname(path), "model.pt") for path in records})


def evaluations_of_experiment(experiment):
    """Records of an experiment's evaluations: at the frame counts of its tables, or of the first table."""
    tables = CONFIG.tables.values()
    counts = {
        n
        for table in tables
        for row in table.rows
        for n in table.frame_counts
        if row.experiment_at(n) == experiment
    }
    return evaluations_of(experiment, sorted(counts) or next(iter(tables)).frame_counts)


def start_file(wildcards):
    """The file that a training starts from: ImageNet weights, the user's own, or the network of another run."""
    own = experiment_of(wildcards)
    if own.start is not None:
        return f"{TRAINING}/model.pt".format(
            run=RUN_LIST.selected[own.start], seed=wildcards.get("seed", CONFIG.seeds[0])
        )
    weights = CONFIG.network.weights
    if weights == "imagenet":
        return f"results/weights/resnet{CONFIG.network_of(wildcards.run.rpartition('-')[0]).depth}.pth"
    # `onstart` says so where the user's own file is not there.
    return weights if weights is not None and os.path.exists(weights) else []


def start_digest(wildcards):
    """The digest of the network that a training starts from: of a run, it may change while its name stays."""
    return f"{start_file(wildcards).removesuffix('.pt')}.sha256" if experiment_of(wildcards).start else []


def start_argument(wildcards):
    path = start_file(wildcards)
    return f"--start {shlex.quote(path)}" if path else ""


def settings_of(wildcards):
    return run_settings(CONFIG, wildcards.run.rpartition("-")[0]).model_dump_json()


def training_note(wildcards):
    """What a training would do, for its message."""
    return RUN_LIST.describe_training(wildcards.run.rpartition("-")[0], int(wildcards.seed))


def tried_steps(wildcards):
    """Steps that are tried before a training: none on a cluster, where another machine trains, or of a finished one."""
    done = [RUN_LIST.progress(wildcards.run, seed) for seed in CONFIG.seeds]
    return 20 if workflow.local_exec and any(epoch < epochs for epoch, epochs in done) else 0
