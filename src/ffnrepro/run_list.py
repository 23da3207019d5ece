"""The runs of a working directory: list, plan, accept, retry and prune them."""

import os
import re
import shutil
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from ffnrepro.config import Config
from ffnrepro.errors import UserError
from ffnrepro.estimate import Estimate, PastTraining, duration, estimate
from ffnrepro.files import network_digest, read_record, write_json
from ffnrepro.runs import (
    RUNS,
    STATE,
    RunSettings,
    differences,
    latest_states,
    read_run,
    run_name,
    run_settings,
    scoring_code,
    state_folder,
    write_run,
)
from ffnrepro.training.lease import read_lease

MANIFEST = Path("results/manifest")


class RunList:
    """The runs of the working directory, and those that the configuration selects.

    Args:
        config: Configuration of the workflow.

    Attributes:
        selected: The run of each experiment, with the current configuration and code.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.selected = {experiment: run_name(config, experiment) for experiment in config.experiments}
        self._on_gpu = config.runtime.device != "cpu"

    # --- list

    def rows(self) -> list[dict[str, str]]:
        """One row for each training: progress, top-1, size, lease, failure, and differences from the selected run."""
        states = latest_states(STATE)
        outputs = RUNS.glob("*-????????/seed*")
        finished = {(path.parent.name, path.name.removeprefix("seed")) for path in outputs}
        rows = []
        for run, seed in sorted({*states, *finished}):
            output = RUNS / run / f"seed{seed}"
            state = states.get((run, seed), output)
            about, lease = read_record(state / "about.json"), read_lease(state / "lease.json")
            record = read_record(output / "run.json")
            best = record.get("best", {})
            epoch = "imported" if "imported" in record else ""
            top1 = [f"{value:.1f}" for name, value in best.items() if name.startswith("validation_top1_")]
            rows.append(
                {
                    "run": run,
                    "seed": seed,
                    "epoch": f"{about['epoch']}/{about['epochs']}" if about else epoch,
                    "top-1": top1[-1] if top1 else "",
                    "megabytes": f"{_megabytes([output, *(STATE / run).glob(f'seed{seed}-*')]):.0f}",
                    "process": f"{'ended: ' if lease.owner_is_dead() else ''}{lease.name}" if lease else "",
                    "failure": read_record(state / "failed.json").get("message", ""),
                    "selected": "yes" if run in self.selected.values() else "",
                    "differs in": ", ".join(self._differs(run)),
                }
            )
        return rows

    def _differs(self, run: str) -> list[str]:
        try:
            return differences(RUNS / run, run_settings(self.config, run.rpartition("-")[0]))
        except KeyError:
            return ["its experiment is not in the configuration"]
        except UserError:
            return ["its settings.json is damaged or from another version"]

    # --- plan

    def describe_training(self, experiment: str, seed: int) -> str:
        """Describe a training of a selected run: what differs from the previous run, its progress, and its hours."""
        words, accept = [], []
        files = RUNS.glob(f"{experiment}-????????/settings.json")
        others = [path for path in files if path.parent.name != self.selected[experiment]]
        if others:
            previous = max(others, key=lambda path: path.stat().st_mtime).parent
            with suppress(UserError):
                changes = differences(previous, run_settings(self.config, experiment))
                words.append(f"differs from {previous.name} in {', '.join(changes)}")
                only_code = all(change.startswith("code of ") for change in changes)
                is_new = not self._has_files(self.selected[experiment])
                if only_code and is_new and any(previous.glob("seed*/run.json")):
                    accept = [
                        f"if no number changes, keep its networks: ffnrepro runs accept {previous.name}"
                    ]
        done, epochs = self.progress(self.selected[experiment], seed)
        if done == epochs:
            return "; ".join(
                [*words, "already trained; if the data is unchanged, its network is only restored"]
            )
        if done:
            words.append(f"continues after epoch {done} of {epochs}")
        hours, basis = self.hours(experiment, seed)
        about = "" if hours is None else f"about {duration(hours, gpu=self._on_gpu)}"
        return "; ".join([*words, f"{about or 'hours unknown'} ({basis})", *accept])

    def progress(self, run: str, seed: int) -> tuple[int, int]:
        """Number of finished epochs of a selected run's training on the current data, and number of all epochs."""
        epochs = self.config.training_of(run.rpartition("-")[0]).epochs
        digest = MANIFEST / "manifest.sha256"
        data = digest.read_text(encoding="utf-8").strip() if digest.exists() else ""
        if read_record(RUNS / run / f"seed{seed}/run.json").get("data") == data:
            return epochs, epochs
        about = read_record(state_folder(STATE, run, seed, data) / "about.json")
        return about.get("epoch", 0), epochs

    def hours(self, experiment: str, seed: int) -> Estimate:
        """GPU hours that a training of a selected run still needs."""
        import pyarrow.parquet  # noqa: PLC0415

        settings, train = run_settings(self.config, experiment), MANIFEST / "train.parquet"
        whole = estimate(
            settings,
            videos=pyarrow.parquet.read_metadata(train).num_rows if train.exists() else None,
            cores=self.config.runtime.threads,
            past=self._past(settings),
            gpu=self._on_gpu,
        )
        done, epochs = self.progress(self.selected[experiment], seed)
        return whole._replace(hours=whole.hours and whole.hours * (1 - done / epochs))

    def _past(self, settings: RunSettings) -> PastTraining | None:
        """The latest finished training of the same family, on the configured kind of device."""
        device = self.config.runtime.device
        for path in sorted(RUNS.glob("*/*/run.json"), key=lambda path: path.stat().st_mtime, reverse=True):
            record = read_record(path)
            with suppress(KeyError, UserError):
                past = PastTraining(
                    name=f"{record['run']}, seed {record['seed']}",
                    settings=read_run(path.parents[1])[0],
                    videos=record["videos"],
                    hours=record["wall_seconds"] / 3600,
                )
                same_device = device == "auto" or (device == "cpu") == (record["device"] == "cpu")
                if same_device and past.settings.method.family == settings.method.family:
                    return past
        return None

    def plan(self, table: str) -> tuple[list[dict[str, str]], str]:
        """The networks behind a table, one row each, and a line that says how many are trained and what the rest takes.

        Raises:
            UserError: There is no such table.
        """
        if table not in self.config.tables:
            raise UserError(f"there is no table {table}; give one of {', '.join(self.config.tables)}")
        experiments = dict.fromkeys(
            link
            for experiment in self.config.experiments_of(table)
            for link in reversed(self.config.chain_of(experiment))
        )
        hours_name = "GPU hours" if self._on_gpu else "hours"
        rows: list[dict[str, str]] = []
        finished, to_train = 0, []
        for experiment, seed in ((name, seed) for name in experiments for seed in self.config.seeds):
            run = self.selected[experiment]
            done, epochs = self.progress(run, seed)
            is_imported = experiment in self.config.imports
            if is_imported:
                hours, basis = Estimate(0.0, "imported, not trained")
            elif done == epochs:
                hours, basis = Estimate(0.0, "trained")
                finished += 1
            else:
                hours, basis = self.hours(experiment, seed)
                to_train.append(hours)
            rows.append(
                {
                    "run": run,
                    "seed": str(seed),
                    "epoch": "" if is_imported else f"{done}/{epochs}",
                    hours_name: "unknown" if hours is None else f"{hours:.1f}",
                    "basis": basis,
                }
            )
        unknown = to_train.count(None)
        return rows, (
            f"{table} needs {finished + len(to_train)} trainings; finished: {finished}; the others take about "
            f"{sum(filter(None, to_train)):.1f} {hours_name}"
            + (f" (without {unknown} whose hours are unknown)." if unknown else ".")
        )

    # --- accept, retry, prune

    def resolve(self, name: str) -> str:
        """The run of a name: an experiment's name stands for its selected run. The path of a run's folder also works.

        Raises:
            UserError: There is no such run.
        """
        run = self.selected.get(name) or Path(name).name
        folders = [root / run for root in (RUNS, STATE)]
        if not re.fullmatch("[A-Za-z0-9_-]+-[0-9a-f]{8}", run) or not any(map(Path.is_dir, folders)):
            hint = "ffnrepro runs lists all runs; --directory and --configfile are those that snakemake was given"
            raise UserError(f"there is no run {run or name} in {RUNS.absolute()}; {hint}")
        return run

    def accept(self, name: str) -> str:
        """Reuse the networks of a run in its experiment's selected run, if only code differs.

        The finished networks, their states and their evaluations are linked into the folders of the selected run,
        except evaluations made with other scoring code. The old folders stay. `run.json` records where a network comes
        from.

        Returns:
            A line that says what was done.

        Raises:
            UserError: Settings differ, nothing is finished, a process is working on one of the runs, or the selected run
                has files of its own.
        """
        run = self.resolve(name)
        experiment = run.rpartition("-")[0]
        target = self.selected.get(experiment)
        if target is None or target == run:
            raise UserError(
                f"{run}: is already the selected run, or its experiment is not in the configuration"
            )
        settings = run_settings(self.config, experiment)
        changes = differences(RUNS / run, settings)
        # The key of the run that it starts from changes with that run's code; its network counts, below.
        if other := [change for change in changes if not change.startswith(("code of ", "start "))]:
            raise UserError(
                f"{run}: differs from {target} in {', '.join(other)}; accept is for runs that differ in code only"
            )
        self._refuse_leases(run)
        self._refuse_leases(target)
        if self._has_files(target):
            raise UserError(f"{target}: has files of its own; ffnrepro runs prune {target} deletes them")
        networks = {path.parent: read_record(path) for path in (RUNS / run).glob("seed*/run.json")}
        if not networks:
            raise UserError(f"{run}: has no finished network; run snakemake instead")
        first = self.config.experiments[experiment].start
        for folder, network in networks.items():
            if first and network.get("start_model") != network_digest(
                RUNS / self.selected[first] / folder.name
            ):
                raise UserError(
                    f"{folder}: began from another network than {self.selected[first]} has; if only the code of that run "
                    "differs, accept its earlier run first"
                )
        write_run(RUNS / target, settings)
        origin = {"run": target, "accepted_from": run}
        for folder, network in networks.items():
            evaluations = {path.stem: read_record(path) for path in folder.glob("*_*.json")}
            stale = {stem for stem, record in evaluations.items() if record.get("code") != scoring_code()}
            files = [path for path in folder.iterdir() if path.stem not in stale]
            _link_files(files, RUNS / target / folder.name, origin)
            # The state is linked, too, so that the training is not repeated on the same data.
            old, new = (state_folder(STATE, name, network["seed"], network["data"]) for name in (run, target))
            _link_files([path for path in old.glob("*") if path.is_file()], new, origin)
        return f"{run}: its networks are now also in {RUNS / target} ({', '.join(changes)})"

    def retry(self, name: str) -> str:
        """Remove the marks of a run's permanent failures, so that snakemake tries it again, and say what was done."""
        run = self.resolve(name)
        marks = list((STATE / run).glob("*/failed.json"))
        for mark in marks:
            mark.unlink()
        return (
            f"{run}: can be tried again; run snakemake" if marks else f"{run}: has not failed; nothing to do"
        )

    def prune(self, name: str) -> str:
        """Delete a run (networks, evaluations and states), and say what was done.

        Raises:
            UserError: A process is working on it.
        """
        run = self.resolve(name)
        self._refuse_leases(run)
        folders = [path for root in (RUNS, STATE) if (path := root / run).exists()]
        size = _megabytes(folders)
        for path in folders:
            shutil.rmtree(path)
        return f"{', '.join(map(str, folders))}: deleted ({size:.0f} MB)"

    @staticmethod
    def _has_files(run: str) -> bool:
        """Whether a run has networks or states."""
        return any([*(root / run).glob("seed*")] for root in (RUNS, STATE))

    def _refuse_leases(self, run: str) -> None:
        for path in (STATE / run).glob("*/lease.json"):
            lease = read_lease(path)
            if lease is not None and not lease.owner_is_dead():
                raise UserError(f"{run}: {lease.name} is working on it; stop that process first")


def _link_files(files: Iterable[Path], folder: Path, changes: Mapping[str, str]) -> None:
    """Link files into a folder, and write changed records; all keep their old times, so that no file seems newer."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        target = folder / file.name
        if file.suffix == ".json":
            write_json(target, {**read_record(file), **changes})
            shutil.copystat(file, target)
        elif file.suffix == ".txt":
            # A log is appended to, and a link would change the old one.
            shutil.copy2(file, target)
        else:
            try:
                os.link(file, target)
            except OSError:
                # Some file systems have no links.
                shutil.copy2(file, target)


def _megabytes(folders: Iterable[Path]) -> float:
    total = 0
    for path in (path for folder in folders for path in folder.rglob("*")):
        # A training may be replacing its saves.
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total / 1e6
