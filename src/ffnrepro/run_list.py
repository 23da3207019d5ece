"""What runs there are, and what is done with them by hand: list, plan, accept, retry, prune."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ffnrepro.config import Config
from ffnrepro.errors import UserError
from ffnrepro.estimate import Estimate, duration, estimate
from ffnrepro.files import write_json
from ffnrepro.runs import (
    RUNS,
    STATE,
    RunSettings,
    differences,
    method_code,
    read_run,
    run_settings,
    scoring_code,
    selected_runs,
    write_run,
)


class RunList:
    """The runs of a working directory, beside the configuration.

    Args:
        config: of the workflow.
        folder: where the workflow runs.
    """

    def __init__(self, config: Config, folder: Path = Path()) -> None:
        self.config = config
        self.folder = folder
        self.selected = selected_runs(config)

    # --- what is there

    def rows(self) -> list[dict[str, str]]:
        """A row for each training: progress, top-1, size, lease, failure, and what differs from the selected run."""
        # Imported here: the workflow plans without torch.
        from ffnrepro.training.checkpoints import read_status  # noqa: PLC0415

        rows = []
        for run, seed in self._trainings():
            record, states = self._record(run, seed), self._states(run, seed)
            status = read_status(states[-1]) if states else None
            best = record.get("best", {})
            top1 = {name: value for name, value in best.items() if name.startswith("validation_top1_")}
            rows.append(
                {
                    "run": run,
                    "seed": str(seed),
                    "epoch": "" if status is None else f"{status.epoch}/{status.epochs}",
                    "top-1": f"{list(top1.values())[-1]:.1f}" if top1 else "",
                    "megabytes": f"{_megabytes([self._output(run, seed), *states]):.0f}",
                    "at work": "" if status is None or status.lease is None else _lease_words(status),
                    "failure": "" if status is None else status.failure or "",
                    "selected": "yes" if run in self.selected.values() else "",
                    "differs in": ", ".join(self._differs(run)),
                }
            )
        return rows

    def _differs(self, run: str) -> list[str]:
        experiment = run.rpartition("-")[0]
        if run == self.selected.get(experiment):
            return []
        if experiment not in self.selected:
            return ["its experiment is not in the configuration"]
        try:
            return differences(self.folder / RUNS / run, run_settings(self.config, experiment))
        except UserError as error:
            return [str(error)]

    def _trainings(self) -> list[tuple[str, int]]:
        found = set()
        for root in (RUNS, STATE):
            for path in (self.folder / root).glob("*-????????/seed*"):
                seed = path.name.removeprefix("seed").partition("-")[0]
                if seed.isdecimal():
                    found.add((path.parent.name, int(seed)))
        return sorted(found)

    def _output(self, run: str, seed: int) -> Path:
        return self.folder / RUNS / run / f"seed{seed}"

    def _states(self, run: str, seed: int) -> list[Path]:
        """Folders of the states of a training, one for each data that it was trained on, the latest last."""
        found = (self.folder / STATE / run).glob(f"seed{seed}-*")
        return sorted(found, key=lambda path: path.stat().st_mtime)

    def _record(self, run: str, seed: int) -> dict[str, Any]:
        return _read_json(self._output(run, seed) / "run.json")

    # --- what is planned

    def describe_training(self, experiment: str, seed: int) -> str:
        """What a training of an experiment's selected run means: what is new, how far it came, how long it takes."""
        run = self.selected[experiment]
        words = []
        if previous := self._previous(experiment):
            with suppress(UserError):
                changes = differences(previous, run_settings(self.config, experiment))
                words.append(f"differs from {previous.name} in {', '.join(changes)}")
        done, epochs = self.progress(run, seed)
        if done == epochs:
            return "; ".join([*words, "already trained if the data is the same, and only written out again"])
        if done:
            words.append(f"continues after epoch {done} of {epochs}")
        hours, basis = self.hours(experiment, seed)
        gpu = self.config.runtime.device != "cpu"
        words.append(
            f"hours unknown: {basis}" if hours is None else f"about {duration(hours, gpu=gpu)} ({basis})"
        )
        return "; ".join(words)

    def _previous(self, experiment: str) -> Path | None:
        """Folder of the latest other run of an experiment."""
        folders = (self.folder / RUNS).glob(f"{experiment}-????????")
        others = [path for path in folders if path.name != self.selected[experiment]]
        dated = [(path / "settings.json", path) for path in others if (path / "settings.json").exists()]
        return max(dated, key=lambda pair: pair[0].stat().st_mtime)[1] if dated else None

    def progress(self, run: str, seed: int) -> tuple[int, int]:
        """Finished epochs of a training on the data as it is now, and epochs in all."""
        data = self.folder / "results/manifest/manifest.sha256"
        epochs = self.config.training_of(run.rpartition("-")[0]).epochs
        if not data.exists():
            return 0, epochs
        name = f"seed{seed}-{data.read_text(encoding='utf-8')[:8]}"
        return int(_read_json(self.folder / STATE / run / name / "about.json").get("epoch", 0)), epochs

    def hours(self, experiment: str, seed: int) -> Estimate:
        """GPU hours that are left of a training."""
        settings = run_settings(self.config, experiment)
        whole = estimate(
            settings,
            videos=_rows_of(self.folder / "results/manifest/train.parquet"),
            cores=self.config.runtime.threads,
            past=self._past(settings),
            gpu=self.config.runtime.device != "cpu",
        )
        done, epochs = self.progress(self.selected[experiment], seed)
        return whole._replace(hours=whole.hours and whole.hours * (1 - done / epochs))

    def _past(self, settings: RunSettings) -> dict[str, Any] | None:
        """`run.json` of the latest training of the same family."""
        records = []
        for path in (self.folder / RUNS).glob("*/*/run.json"):
            record = _read_json(path)
            with suppress(KeyError, UserError):
                if read_run(path.parents[1])[0].method.family == settings.method.family:
                    records.append((path.stat().st_mtime, str(path), record))
        return max(records)[-1] if records else None

    def plan(self, table: str) -> tuple[list[dict[str, str]], float]:
        """The trainings that a table needs, a row each, and the GPU hours that are left of all.

        Raises:
            UserError: no such table.
        """
        if table not in self.config.tables:
            raise UserError(f"no table {table}; there are {', '.join(self.config.tables)}")
        rows, total = [], 0.0
        for experiment in self.config.experiments_of(table):
            for seed in self.config.seeds:
                run = self.selected[experiment]
                trained = (self._output(run, seed) / "model.pt").exists()
                done, epochs = self.progress(run, seed)
                hours, basis = Estimate(0.0, "trained") if trained else self.hours(experiment, seed)
                total += hours or 0.0
                left = "unknown" if hours is None else f"{hours:.1f}"
                rows.append(
                    {
                        "run": run,
                        "seed": str(seed),
                        "epoch": f"{done}/{epochs}",
                        "GPU hours": left,
                        "basis": basis,
                    }
                )
        return rows, total

    # --- what is done

    def resolve(self, name: str) -> str:
        """The run of a name: an experiment's name stands for its selected run.

        Raises:
            UserError: there is no such run.
        """
        run = self.selected.get(name, name)
        if not any((self.folder / root / run).is_dir() for root in (RUNS, STATE)):
            raise UserError(f"no run {run}; ffnrepro runs shows them")
        return run

    def accept(self, name: str) -> str:
        """Take a run over into the folder of its experiment's selected run, where only code differs. It says so.

        The files are linked, and the old folder stays. `run.json` records where the network is from.

        Raises:
            UserError: settings differ, the run is not finished or is under lease, or the target exists.
        """
        run = self.resolve(name)
        experiment = run.rpartition("-")[0]
        target = self.selected.get(experiment)
        if target is None or target == run:
            raise UserError(f"{run}: is the selected run itself, or of no experiment of the configuration")
        settings = run_settings(self.config, experiment)
        changes = differences(self.folder / RUNS / run, settings)
        if other := [words for words in changes if not words.startswith("code of ")]:
            raise UserError(f"{run}: not only the code differs from {target}, but {', '.join(other)}")
        self._refuse_leases(run)
        old, new = self.folder / RUNS / run, self.folder / RUNS / target
        if list(new.glob("seed*/model.pt")):
            raise UserError(f"{new}: has networks of its own; ffnrepro runs prune {target} deletes them")
        networks = [path.parent for path in old.glob("seed*/run.json")]
        if not networks:
            raise UserError(f"{old}: holds no finished network")
        write_run(new, settings)
        changed = {"run": target, "accepted_from": run}
        for folder in networks:
            evaluations = {path.stem: _read_json(path) for path in folder.glob("*_*f.json")}
            stale = {stem for stem, record in evaluations.items() if record.get("code") != scoring_code()}
            for path in folder.iterdir():
                if path.stem not in stale:
                    _take_over(path, new / folder.name / path.name, changed)
            record = new / folder.name / "run.json"
            write_json(record, _read_json(record) | {"code": method_code(settings.method.method)})
        for folder in (self.folder / STATE / run).glob("seed*"):
            for path in folder.iterdir():
                if path.is_file() and path.name != "lease.json":
                    _take_over(path, self.folder / STATE / target / folder.name / path.name, changed)
        return f"{run}: taken over into {new} ({', '.join(changes)})"

    def retry(self, name: str) -> str:
        """Remove the marks of a permanent failure, so that the run is tried again. It says so."""
        run = self.resolve(name)
        marks = list((self.folder / STATE / run).glob("*/failed.json"))
        for mark in marks:
            mark.unlink()
        return f"{run}: may be tried again" if marks else f"{run}: has not failed for good; nothing to do"

    def prune(self, name: str) -> str:
        """Delete a run: its networks, evaluations and states. It says so.

        Raises:
            UserError: a process is at work on it.
        """
        run = self.resolve(name)
        self._refuse_leases(run)
        folders = [path for root in (RUNS, STATE) if (path := self.folder / root / run).exists()]
        size = _megabytes(folders)
        for path in folders:
            shutil.rmtree(path)
        return f"{', '.join(map(str, folders))}: deleted ({size:.0f} MB)"

    def _refuse_leases(self, run: str) -> None:
        from ffnrepro.training.lease import read_lease  # noqa: PLC0415

        for path in (self.folder / STATE / run).glob("*/lease.json"):
            lease = read_lease(path)
            if lease is not None and not lease.owner_is_dead():
                raise UserError(f"{run}: {lease.name} is at work on it, as far as is known; end it first")


def _take_over(source: Path, target: Path, changes: Mapping[str, str]) -> None:
    """Link a file, or write a record with changes; with the times of the source, so that nothing counts as newer."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".json":
        write_json(target, _read_json(source) | changes)
        shutil.copystat(source, target)
        return
    try:
        os.link(source, target)
    except OSError:
        # File systems without links.
        shutil.copy2(source, target)


def _lease_words(status: Any) -> str:
    return f"{'stale: ' if status.stale else ''}{status.lease.name}"


def _rows_of(path: Path) -> int | None:
    """Rows of a Parquet file, or None where there is none."""
    import pyarrow.parquet  # noqa: PLC0415

    return int(pyarrow.parquet.read_metadata(path).num_rows) if path.exists() else None


def _megabytes(folders: list[Path]) -> float:
    files: Iterator[Path] = (path for folder in folders for path in folder.rglob("*"))
    total = 0
    for path in files:
        # A training may be replacing its saves.
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total / 1e6


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value
