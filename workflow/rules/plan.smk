# What Snakemake does not see by itself, and what a dry run says at its end. Both look into Snakemake's own records: should a
# later version keep them otherwise, less is noticed and less is said, and nothing breaks.

import atexit

from snakemake.io import IOFile

from ffnrepro.decides import evaluation_decides, training_decides
from ffnrepro.plan import PlannedJob, changed_code, changed_params, describe, training_hours

FOLDER = os.getcwd()  # the working directory; at its end Snakemake goes back to where it was started
NOTICED = {}  # file -> why its job has to run


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


def wanted_evaluation(experiment, seed, frames):
    model = Path(EXPERIMENT.format(experiment=experiment, seed=seed), "model.sha256").read_text()
    return evaluation_decides(
        SCRIPTS / "evaluate.py",
        evaluation_settings(CONFIG, experiment, frames),
        manifest=Path("results/manifest"),
        model=model.strip(),
    )


def record_of(path):
    """What Snakemake recorded when it saw the file made, or None."""
    return workflow.persistence.metadata(IOFile(str(path)))


def was_watched(path):
    record = record_of(path)
    return record is not None and abs(record.endtime - os.path.getmtime(path)) < 0.1


def read_record(path):
    """`run.json`, or the summary of an evaluation."""
    return json.loads(Path(path).read_text(encoding="utf-8"))


def made_otherwise(path, decides, *job):
    """Whether a file of a job that nobody watched is of other settings, data or code than are wanted now."""
    if not os.path.exists(path) or was_watched(path):
        return False
    try:
        return read_record(path)["state"] != key_of(decides(*job))
    except OSError:  # what it is made from is not there yet
        return False


@cache
def notice():
    """Have Snakemake run jobs behind the table whose files it would take as they are, and should not.

    It does not miss a file that only finished files were made from. And a job that ended after `snakemake` was killed leaves
    files without a record, or with that of an earlier setting.
    """
    evaluated = any(os.path.exists(path) for path in BEHIND_THE_TABLE if path.endswith("f.json"))
    recorded = any(record_of(path) for path in BEHIND_THE_TABLE)
    for path in BEHIND_THE_TABLE:
        if not os.path.exists(path):
            if record_of(path) is not None or (evaluated and not recorded):
                NOTICED[path] = f"{path} is missing"
        elif recorded and record_of(path) is None:
            NOTICED[path] = f"{path} was finished while no snakemake watched"
    for job in TRAININGS:
        path = "{}/run.json".format(EXPERIMENT.format(experiment=job[0], seed=job[1]))
        if made_otherwise(path, wanted_training, *job):
            NOTICED[path] = f"{path} is of other settings, data or code"
    for job in EVALUATIONS:
        path = "{}.json".format(EVALUATION.format(experiment=job[0], seed=job[1], frames=job[2]))
        if made_otherwise(path, wanted_evaluation, *job):
            NOTICED[path] = f"{path} is of other settings, data or code"
    workflow.dag.forcefiles.update(NOTICED)


def reasons(job):
    """Why a job runs, in words."""
    reason, producers = workflow.dag.reason(job), workflow.dag.dependencies[job]
    words = [NOTICED[path] for path in job.output if path in NOTICED][:1]
    if reason.missing_output and not words:
        path = min(map(str, reason.missing_output))
        words.append("not made yet" if record_of(path) is None else f"{path} is missing")
    words += [f"{path} is changed" for path in sorted(map(str, reason.updated_input))[:3]]
    if after := sorted(
        {job.rule.name for job, files in producers.items() if reason.updated_input_run & set(files)}
    ):
        words.append(f"after {', '.join(after)}")
    if reason.params_changed:
        recorded = next((r.params for r in map(record_of, job.output) if r and r.params), [])
        params = dict(job.params.items())
        words += changed_params(recorded, params)
        if "code" in params and repr(params["code"]) not in recorded:
            words.append(changed_code(*code_before_and_now(job)))
    if reason.input_changed:
        words.append("made from other files")
    if reason.code_changed:
        words.append("the rule's command is another")
    if reason.software_stack_changed:
        words.append("the software environment is another")
    if reason.forced and not any(path in NOTICED for path in job.output):
        words.append("asked for, or cut short")
    return tuple(dict.fromkeys(words))


def code_before_and_now(job):
    """Digests of the modules of a job's code, at its last run where its files tell, and now."""
    kept = next((path for path in job.output if path.endswith(".json") and os.path.exists(path)), None)
    before = read_record(kept).get("code", {}) if kept else {}
    experiment = CONFIG.experiments.get(job.wildcards.get("experiment"))
    now = code_digests(SCRIPTS / f"{job.rule.name}.py", experiment and experiment.method)
    return (before, now) if before else ({}, {})


def cost(job):
    """Hours of a job and what that is based on; nothing for the light ones."""
    if job.rule.name == "evaluate":
        work = (job.wildcards.experiment, int(job.wildcards.seed), int(job.wildcards.frames))
        decides, stage = wanted_evaluation, "evaluation"
    elif job.rule.name in ("train_tsm", "train_ffn"):
        work = (job.wildcards.experiment, int(job.wildcards.seed))
        decides, stage = wanted_training, "train"
    else:
        return None, ""
    rebuilt = any(workflow.dag.needrun(producer) for producer in workflow.dag.dependencies[job])
    try:
        kept = read_record(f"state/{stage}/{key_of(decides(*work))}/about.json")
        if kept.get("epoch") == kept.get("epochs"):
            return 0, "kept from before: written out in seconds" + (
                ", should its inputs come out the same" if rebuilt else ""
            )
    except OSError:
        pass
    if stage == "evaluation":
        path = "{}.json".format(EVALUATION.format(experiment=work[0], seed=work[1], frames=work[2]))
        return (
            (read_record(path)["wall_seconds"] / 3600, "as last time") if os.path.exists(path) else (None, "")
        )
    own = CONFIG.experiments[work[0]]
    runs = [read_record(path) for path in sorted(Path("results/experiments").glob("*/*/run.json"))]
    alike = [run for run in runs if run["settings"]["method"] == own.method]
    alike.sort(key=lambda run: run["experiment"] == work[0])
    return training_hours(
        CONFIG.training.epochs, sum(own.train_frames), CONFIG.dataset, alike[-1] if alike else None
    )


def planned(job):
    about = ", ".join(
        f"{name} {value}" if name != "experiment" else value for name, value in job.wildcards.items()
    )
    try:
        hours, basis = cost(job)
    except Exception:
        hours, basis = None, ""
    try:
        why = reasons(job)
    except Exception:
        why = ()
    return PlannedJob(job.rule.name, about, why, hours, basis)


def print_plan():
    """At the end of a dry run that came to its end."""
    try:
        if workflow.dryrun and workflow.scheduler is not None:
            os.chdir(FOLDER)
            order = [job for level in workflow.dag.toposorted() for job in level]
            jobs = [planned(job) for job in order if workflow.dag.needrun(job) and not job.rule.norun]
            print(f"\n{describe(jobs, gpu=CONFIG.runtime.device != 'cpu')}", flush=True)
    except Exception:
        return


if workflow.is_main_process:
    atexit.register(print_plan)
