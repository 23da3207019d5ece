# What the rules share: the checked configuration, how scripts are called, input functions.

import json
import os
import shlex
import sys
from functools import cache
from pathlib import Path

from ffnrepro.code_digest import code_digests
from ffnrepro.config import check_frames, evaluation_settings, read_config, training_settings
from ffnrepro.data.labels import check_counts, check_evaluable, label_digests, list_label_files, read_labels
from ffnrepro.data.video_index import list_videos, watch_digests
from ffnrepro.decides import key_of
from ffnrepro.errors import UserError
from ffnrepro.files import file_digest

try:
    CONFIG = read_config(config)
except UserError as error:
    sys.exit(f"error: {error}")  # one line, before anything is planned

PUBLISHED = os.path.relpath(os.path.join(workflow.basedir, "resources", "published.csv"))
EXPERIMENT = "results/experiments/{experiment}/seed{seed}"
EVALUATION = "results/evaluation/{experiment}/seed{seed}/{frames}f"
GPUS = 0 if CONFIG.runtime.device == "cpu" else 1

TRAINING = f"--save-minutes {CONFIG.runtime.save_minutes} --max-bad-fraction {CONFIG.data.max_bad_fraction}"
if CONFIG.runtime.time_budget is not None:
    TRAINING += f" --time-budget {CONFIG.runtime.time_budget}"
if CONFIG.runtime.cache_decoded:
    TRAINING += " --cache-decoded"
# One process trains; where a training has several GPUs, ffnrepro.training.launch starts one for each.
LAUNCHER = ""
if CONFIG.training.gpus > 1:
    LAUNCHER = f"-m ffnrepro.training.launch {CONFIG.training.gpus}"

# What decides no number reaches the commands by the shell's environment: neither params nor the command's text
# change with it, so moving the tree or using other workers reruns nothing. `script NAME ...` calls a rule's script.
environment = {
    "PYTHON": sys.executable,
    "SCRIPTS": os.path.join(workflow.basedir, "workflow", "scripts"),
    "LABELS": CONFIG.data.labels,
    "VIDEOS": CONFIG.data.videos,
    "WATCH": CONFIG.data.watch,
    "RUNTIME": f"--device {CONFIG.runtime.device} --workers {CONFIG.runtime.workers}",
    "TRAINING": TRAINING,
    "LAUNCHER": LAUNCHER,
    "BATCH_SIZE": str(CONFIG.evaluation.batch_size),
}
# SLURM sends SIGTERM to all processes of a job, and kills those that are left once the shell has ended: so it waits.
prefix = "set -euo pipefail; trap : TERM; "
prefix += "".join(f"{name}={shlex.quote(value)}; " for name, value in environment.items())
prefix += 'script() { "$PYTHON" ${LAUNCH:-} "$SCRIPTS/$1.py" "${@:2}"; }; '
shell.prefix(prefix.replace("{", "{{").replace("}", "}}"))  # Snakemake formats it

# On one machine, jobs that use a GPU run one after the other: each takes the first GPUs that it sees. On a cluster, SLURM
# gives each job its own. The executor is not known yet; `nodes` are a cluster's only.
if workflow.resource_settings.nodes is None and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", max(1, CONFIG.training.gpus))


wildcard_constraints:
    experiment="[A-Za-z0-9_-]+",
    seed="0|[1-9][0-9]*",
    frames="0|[1-9][0-9]*",
    shard=r"\d+",
    depth=r"\d+",


def experiments_of(method):
    """Regular expression of the experiments of a method, so that only its rule makes their files."""
    names = [name for name, experiment in CONFIG.experiments.items() if experiment.method == method]
    return "|".join(names) or "(?!)"


def label_files(wildcards):
    """The label files that are there; the rule itself says what is missing."""
    notice()  # every plan of a table, network or evaluation comes here
    return [str(path) for path in list_label_files(Path(CONFIG.data.labels))]


@cache
def digests_of_labels():
    return label_digests(Path(CONFIG.data.labels))


def labels_digests(wildcards):
    return digests_of_labels()


NO_VIDEOS = "no videos"


@cache
def shard_digests():
    """What tells of a change in each shard of the videos."""
    try:
        return watch_digests(
            Path(CONFIG.data.videos),
            shards=CONFIG.data.index_shards,
            layout=CONFIG.data.layout,
            watch=CONFIG.data.watch,
        )
    except UserError:
        return [NO_VIDEOS] * CONFIG.data.index_shards


def shard_digest(wildcards):
    return shard_digests()[int(wildcards.shard)]


def weights_of(experiment):
    """Stem of the files of an experiment's pretrained weights, or None."""
    if CONFIG.network.weights is None:
        return None
    return f"results/weights/resnet{CONFIG.depth_of(experiment)}"


def weights_digest(wildcards):
    """The small file that stands for the pretrained weights."""
    stem = weights_of(wildcards.experiment)
    return [] if stem is None else f"{stem}.sha256"


def weights_file(wildcards):
    stem = weights_of(wildcards.experiment)
    return [] if stem is None else f"{stem}.pth"


def weights_argument(wildcards):
    stem = weights_of(wildcards.experiment)
    return "" if stem is None else f"--weights {stem}.pth"


def weights_source(wildcards):
    """The user's own file of pretrained weights, where it is named and there; onstart says so where it is not."""
    return CONFIG.own_weights if CONFIG.own_weights and os.path.exists(CONFIG.own_weights) else []


# Where the pretrained weights come from: nothing for torchvision's.
WEIGHTS = {"source": CONFIG.own_weights or "", "sha256": CONFIG.network.weights_sha256 or ""}
WEIGHTS_OPTIONS = " ".join(f"--{name} {shlex.quote(value)}" for name, value in WEIGHTS.items() if value)


def evaluated_model(wildcards):
    """The network that is evaluated; a frame count that makes no sense is refused before it is trained."""
    try:
        check_frames("the target's frame count", (int(wildcards.frames),))
    except UserError as error:
        sys.exit(f"error: {error}")
    return f"{EXPERIMENT}/model.sha256".format(**wildcards)


SCRIPTS = Path(workflow.basedir, "workflow", "scripts")


def code_of(script):
    """Function that gives the digest of the code that a rule's script reaches, for the method of the job's experiment."""

    def code(wildcards):
        experiment = CONFIG.experiments.get(wildcards.get("experiment"))
        return key_of(code_digests(SCRIPTS / f"{script}.py", experiment and experiment.method))

    return code


def evaluated_settings(wildcards):
    return json.dumps(
        evaluation_settings(CONFIG, wildcards.experiment, int(wildcards.frames)),
        sort_keys=True,
    )


def experiment_settings(wildcards):
    return json.dumps(
        training_settings(CONFIG, wildcards.experiment, int(wildcards.seed)),
        sort_keys=True,
    )


def settings_of_any_seed(wildcards):
    return json.dumps(training_settings(CONFIG, wildcards.experiment, seed=0), sort_keys=True)


def tried_steps(wildcards):
    """Steps that are tried before a training: none on a cluster, where another machine trains, or of a kept one."""
    kept = all(is_trained(wildcards.experiment, seed) for seed in CONFIG.seeds)
    return 20 if workflow.local_exec and not kept else 0


def table_rows():
    """Each row of the table: its method, and the summaries behind each of its cells, one a seed."""
    return [
        [
            row.method,
            [
                [
                    frames,
                    expand(
                        f"{EVALUATION}.json",
                        experiment=row.experiment_at(frames),
                        seed=CONFIG.seeds,
                        frames=frames,
                    ),
                ]
                for frames in CONFIG.evaluation.frame_counts
            ],
        ]
        for row in CONFIG.table
    ]


# The trainings and evaluations that the table asks for, and every file behind and beside it.
EVALUATIONS = sorted(
    {
        (row.experiment_at(frames), seed, frames)
        for row in CONFIG.table
        for frames in CONFIG.evaluation.frame_counts
        for seed in CONFIG.seeds
    }
)
TRAININGS = sorted({(experiment, seed) for experiment, seed, _ in EVALUATIONS})
TABLE = "results/table1.csv"
BEHIND_THE_TABLE = [
    "results/labels/classes.csv",
    "results/labels/labels.parquet",
    "results/labels/made.json",
    *(
        f"results/video_index/part-{shard}.{end}"
        for shard in range(CONFIG.data.index_shards)
        for end in ("parquet", "json")
    ),
    *(f"results/manifest/{split}.parquet" for split in ("train", "validation", "test")),
    *(
        f"results/manifest/{name}"
        for name in ("excluded.csv", "summary.json", "manifest.sha256", "made.json")
    ),
    *sorted(
        {
            f"{weights_of(name)}.{end}"
            for name, _ in TRAININGS
            for end in ("pth", "sha256", "json")
            if weights_of(name)
        }
    ),
    *(
        f"{EXPERIMENT.format(experiment=experiment, seed=seed)}/{name}"
        for experiment, seed in TRAININGS
        for name in ("model.pt", "model.sha256", "history.parquet", "run.json")
    ),
    *(
        f"{EVALUATION.format(experiment=experiment, seed=seed, frames=frames)}.{end}"
        for experiment, seed, frames in EVALUATIONS
        for end in ("parquet", "json")
    ),
    "results/table1.md",
    "results/table1.json",
]


def summaries(wildcards):
    """The evaluations that the table asks for, and through them the trainings."""
    return sorted({path for _, cells in table_rows() for _, paths in cells for path in paths})
