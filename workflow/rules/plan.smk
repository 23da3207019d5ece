# What Snakemake does not see by itself, and what a dry run says at its end.
#
# Each job leaves beside its results what decided them: settings, data, code, and their key as `state`. Here that is compared
# with what decides them now. This needs no record of Snakemake's: a stale file is noticed, and only a stale one, in a fresh
# clone, after a job that ended while no snakemake watched, and where code was another for as long as a job ran.

import atexit
from contextlib import suppress
from functools import partial

from snakemake.io import IOFile

from ffnrepro.decides import data_decides, evaluation_decides, training_decides
from ffnrepro.plan import PlannedJob, describe, differences, training_hours

FOLDER = os.getcwd()  # the working directory; at its end Snakemake goes back to where it was started
MISSING = set()  # files that their jobs have to make again
OTHERWISE = {}  # file that says what decided a job -> what is different now


def read_record(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def data_of(rule, **settings):
    return data_decides(SCRIPTS / f"{rule}.py", **settings)


def wanted_labels():
    """What decides the labels; OSError where there are no label files, as on a machine that has the results only."""
    if not digests_of_labels():
        raise FileNotFoundError(CONFIG.data.labels)
    return data_of(
        "parse_labels",
        dataset=CONFIG.dataset,
        partial=CONFIG.data.partial,
        files=digests_of_labels(),
    )


def wanted_index(shard):
    """The same of a shard of the index, and of the videos."""
    if shard_digests()[shard] == NO_VIDEOS:
        raise FileNotFoundError(CONFIG.data.videos)
    return data_of(
        "index_videos",
        videos=str(Path(CONFIG.data.videos)),
        names=shard_digests()[shard],
        shards=CONFIG.data.index_shards,
        layout=CONFIG.data.layout,
        verify=CONFIG.data.verify,
    )


def wanted_manifest():
    """What decides the manifest; OSError where a file that it is made from is not there."""
    parts = [f"results/video_index/part-{shard}.parquet" for shard in range(CONFIG.data.index_shards)]
    files = ["results/labels/classes.csv", "results/labels/labels.parquet", *parts]
    return data_of(
        "build_manifest",
        max_excluded=float(CONFIG.data.max_excluded),
        files={path: file_digest(Path(path)) for path in files},
    )


def wanted_table():
    """The same of the table; its numbers are those of the evaluations, whatever their files' times."""
    return data_of(
        "assemble_table",
        rows=table_rows(),
        evaluations={path: read_record(path)["state"] for path in summaries(None)},
        dataset=CONFIG.dataset,
        published=file_digest(Path(PUBLISHED)),
    )


def wanted_training(experiment, seed):
    """What decides a training as the configuration, data and code are now; OSError where the data is not there yet."""
    settings = training_settings(CONFIG, experiment, seed)
    stem = weights_of(experiment)
    return training_decides(
        SCRIPTS / f"train_{settings['method']}.py",
        settings,
        manifest=Path("results/manifest"),
        weights=stem and Path(f"{stem}.pth"),
    )


def wanted_evaluation(experiment, seed, frames, model=None):
    """The same of an evaluation: of the network that is there, or of another one, by its digest."""
    if model is None:
        model = Path(EXPERIMENT.format(experiment=experiment, seed=seed), "model.sha256").read_text().strip()
    return evaluation_decides(
        SCRIPTS / "evaluate.py",
        evaluation_settings(CONFIG, experiment, frames),
        manifest=Path("results/manifest"),
        model=model,
    )


def wanted():
    """Each file that says what decided a job -> function that gives what decides it now."""
    files = {
        "results/labels/made.json": wanted_labels,
        "results/manifest/made.json": wanted_manifest,
        "results/table1.json": wanted_table,
    }
    for shard in range(CONFIG.data.index_shards):
        files[f"results/video_index/part-{shard}.json"] = partial(wanted_index, shard)
    for stem in filter(None, {weights_of(experiment) for experiment in CONFIG.experiments}):
        files[f"{stem}.json"] = partial(data_of, "fetch_weights", **WEIGHTS)
    # Not of the table's alone: of all that are there.
    for name, seed in zip(*glob_wildcards(f"{EXPERIMENT}/run.json")):
        if name in CONFIG.experiments and seed.isdecimal():
            path = f"{EXPERIMENT}/run.json".format(experiment=name, seed=seed)
            files[path] = partial(wanted_training, name, int(seed))
    for name, seed, frames in zip(*glob_wildcards(f"{EVALUATION}.json")):
        if name in CONFIG.experiments and seed.isdecimal() and frames.isdecimal():
            path = f"{EVALUATION}.json".format(experiment=name, seed=seed, frames=frames)
            files[path] = partial(wanted_evaluation, name, int(seed), int(frames))
    return files


def differences_of(path, decides):
    """What is different between what decided a job's files and what decides them now, in words."""
    try:
        now = decides()
    except (OSError, ValueError, KeyError, TypeError):
        return []  # what it is made from is not here, or is unfit and made again
    try:
        made = read_record(path)
        if made["state"] == key_of(now):
            return []
        return differences(made, now) or [f"{path} is of another key"]
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{path} does not say what decided it"]


@cache
def notice():
    """Have Snakemake run the jobs whose files are missing, also where only finished files were made from them, or stale."""
    if not workflow.is_main_process:
        return
    MISSING.update(path for path in BEHIND_THE_TABLE if not os.path.exists(path))
    for path, decides in wanted().items():
        if os.path.exists(path) and (words := differences_of(path, decides)):
            OTHERWISE[path] = words
    workflow.dag.forcefiles.update(MISSING, OTHERWISE)


def is_finished(folder):
    """Whether the work of this folder of state/, which may not be known, has come to its end."""
    if folder is None:
        return False
    try:
        about = read_record(folder / "about.json")
    except (OSError, ValueError):
        return False
    return about.get("epoch") == about.get("epochs")


def training_folder(experiment, seed):
    """Folder of the work of a training of the configuration, data and code as they are now, or None: the data is not there."""
    try:
        return Path("state/train", key_of(wanted_training(experiment, seed)))
    except (OSError, ValueError, KeyError):
        return None


def is_trained(experiment, seed):
    """Whether this training is finished, and only written out again."""
    return is_finished(training_folder(experiment, seed))


# What follows only tells. It looks into Snakemake's own records: should a later version keep them otherwise, less is said,
# and nothing breaks.


def record_of(path):
    """What Snakemake recorded when it saw the file made, or None."""
    return workflow.persistence.metadata(IOFile(str(path)))


def reasons(job):
    """Why a job runs, in words."""
    reason, producers = workflow.dag.reason(job), workflow.dag.dependencies[job]
    words = [word for path in job.output for word in OTHERWISE.get(path, [])]
    if missing := MISSING.intersection(job.output) | set(map(str, reason.missing_output)):
        path = min(missing)
        words.append("not made yet" if record_of(path) is None else f"{path} is missing")
    if reason.params_changed and not words:
        words.append("other settings or code")
    words += [f"{path} is changed" for path in sorted(map(str, reason.updated_input))[:3]]
    if after := sorted(
        {job.rule.name for job, files in producers.items() if reason.updated_input_run & set(files)}
    ):
        words.append(f"after {', '.join(after)}")
    if reason.input_changed:
        words.append("made from other files")
    if reason.code_changed:
        words.append("the rule's command is another")
    if reason.software_stack_changed:
        words.append("the software environment is another")
    if reason.forced and not any(path in MISSING or path in OTHERWISE for path in job.output):
        words.append("asked for, or cut short")
    return tuple(dict.fromkeys(words))


@cache
def will_differ(job):
    """Whether a job's files will be others, as far as is known: it is stale, or one before it is."""
    return workflow.dag.needrun(job) and (
        any(path in OTHERWISE for path in job.output) or any(map(will_differ, workflow.dag.dependencies[job]))
    )


def work_of_training(job):
    """Folder of a job's work, or None where that is not known yet."""
    if any(map(will_differ, workflow.dag.dependencies[job])):
        return None
    return training_folder(job.wildcards.experiment, int(job.wildcards.seed))


def work_of_evaluation(job):
    """The same of an evaluation."""
    model = None
    for producer in workflow.dag.dependencies[job]:
        if producer.rule.name in ("train_tsm", "train_ffn") and workflow.dag.needrun(producer):
            folder = work_of_training(producer)
            if not is_finished(folder):
                return None
            model = read_record(folder / "made_with.json")["model"]
        elif will_differ(producer):
            return None
    work = job.wildcards
    decides = wanted_evaluation(work.experiment, int(work.seed), int(work.frames), model)
    return Path("state/evaluation", key_of(decides))


def cost(job):
    """Hours of a job and what that is based on; nothing for the light ones."""
    if job.rule.name not in ("train_tsm", "train_ffn", "evaluate"):
        return None, ""
    work = job.wildcards
    try:
        folder = work_of_evaluation(job) if job.rule.name == "evaluate" else work_of_training(job)
    except (OSError, ValueError, KeyError):  # what it is made from is not there, or was not noted
        folder = None
    rebuilt = any(map(workflow.dag.needrun, workflow.dag.dependencies[job]))
    provided = ", should its inputs come out the same" if rebuilt else ""
    if is_finished(folder):
        return 0, f"kept from before: written out in seconds{provided}"
    if job.rule.name == "evaluate":
        path = f"{EVALUATION}.json".format(**work)
        return (
            (read_record(path)["wall_seconds"] / 3600, "as last time") if os.path.exists(path) else (None, "")
        )
    if folder is not None and (folder / "failed.json").exists():
        return 0, f"failed before and ends at once{provided}: ffnrepro state retry {folder.name}"
    own = CONFIG.experiments[work.experiment]
    epochs = CONFIG.training.epochs
    hours, basis = training_hours(
        epochs, sum(own.train_frames), CONFIG.dataset, earlier_run(work.experiment, own.method)
    )
    made = 0
    if folder is not None:
        with suppress(OSError, ValueError, KeyError):
            made = read_record(folder / "about.json")["epoch"]
    if made:
        return (
            hours and hours * (1 - made / epochs),
            f"{basis}; goes on after epoch {made} of {epochs}{provided}",
        )
    return hours, basis


def earlier_run(experiment, method):
    """Record of a training of the experiment, or else of one of its method, or None."""
    alike = []
    for path in sorted(Path("results/experiments").glob("*/*/run.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):  # cut short, or of another version
            run = read_record(path)
            if run["settings"]["method"] == method:
                alike.append((run["experiment"] == experiment, path.stat().st_mtime, str(path), run))
    return max(alike)[-1] if alike else None


def planned(job):
    about = ", ".join(
        f"{name} {value}" if name != "experiment" else value for name, value in job.wildcards.items()
    )
    try:
        hours, basis = cost(job)
    except Exception:
        hours, basis = None, "hours unknown"
    try:
        why = reasons(job)
    except Exception:
        why = ()
    return PlannedJob(job.rule.name, about, why, hours, basis)


def absent(jobs):
    """What these jobs read of the user's own, and is not there."""
    needed = {
        CONFIG.data.labels: "parse_labels",
        CONFIG.data.videos: "index_videos",
        WEIGHTS["source"]: "fetch_weights",
    }
    run = {job.rule for job in jobs}
    return [path for path, reader in needed.items() if path and reader in run and not os.path.exists(path)]


def print_plan():
    """At the end of a dry run that came to its end."""
    if not workflow.dryrun or workflow.scheduler is None:
        return
    try:
        os.chdir(FOLDER)
        order = [job for level in workflow.dag.toposorted() for job in level]
        jobs = [planned(job) for job in order if workflow.dag.needrun(job) and not job.rule.norun]
        print(f"\n{describe(jobs, gpu=CONFIG.runtime.device != 'cpu')}", flush=True)
        if lacking := absent(jobs):
            print(f"Not there, so that the run would stop at it: {', '.join(lacking)}.", flush=True)
    except Exception as error:
        print(f"\nNo summary of the plan: {type(error).__name__}: {error}", flush=True)


if workflow.is_main_process:
    atexit.register(print_plan)
