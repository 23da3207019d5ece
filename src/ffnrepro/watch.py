"""`ffnrepro watch`: shows the trainings of a working directory in the terminal.

It only reads the files of the state folders. So it also shows trainings on other machines, and disturbs none.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ffnrepro.estimate import duration
from ffnrepro.files import read_record
from ffnrepro.runs import STATE, latest_states
from ffnrepro.training.lease import EXPIRY, LeaseStatus, read_lease

REFRESH = 3.0
"""Seconds between two reads of the files."""

MAX_ENDED = 10
"""Largest number of ended trainings that are shown; the latest ones are."""

WIDTH = 160
"""Width of the output in characters if it is not a terminal."""

COLOURS = {
    "running": "green",
    "no heartbeat": "yellow",
    "killed": "red",
    "failed": "red",
    "stopped": "yellow",
}


@dataclass(frozen=True)
class Training:
    """One training, as its files describe it.

    Attributes:
        run: Name of the run.
        seed: Its seed.
        state: `running`, `no heartbeat`, `killed`, `failed`, `stopped` or `finished`.
        progress: Content of `progress.json` or, where that is missing, of `about.json`.
        message: The process that works on it and the last warning, or why it ended and what to do; may be empty.
        changed: When its folder last changed, in seconds since 1970.
    """

    run: str
    seed: str
    state: str
    progress: Mapping[str, Any]
    message: str
    changed: float

    @property
    def active(self) -> bool:
        """Whether a process seems to work on it."""
        return self.state in ("running", "no heartbeat")


def read_trainings(root: Path = STATE) -> list[Training]:
    """Read all trainings below the state folder: active ones first, then the others from the latest to the oldest.

    Files may change or vanish in the meantime. If a run and seed was trained on several states of the data, only the latest
    training is read.
    """
    trainings = []
    for (run, seed), folder in latest_states(root).items():
        # The folder may be deleted at this moment.
        with suppress(OSError):
            trainings.append(_read_training(run, seed, folder))
    return sorted(
        trainings, key=lambda each: (not each.active, 0.0 if each.active else -each.changed, each.run)
    )


def _read_training(run: str, seed: str, folder: Path) -> Training:
    # The lease is read first: if it is gone, the last save is already written.
    lease = read_lease(folder / "lease.json")
    about, failure = read_record(folder / "about.json"), read_record(folder / "failed.json")
    # Trainings of earlier versions wrote only about.json.
    progress = read_record(folder / "progress.json") or about
    state = _state(lease, about, failure)
    warning = read_record(folder / "warning.json")
    said = warning.get("message", "").replace(f"{run}: ", "").removeprefix("unfinished, run again: ")
    last = f"{warning['time']} {said}; " if warning else ""
    process, silent = ("", 0.0) if lease is None else (lease.name, time.time() - lease.heartbeat / 1e9)
    if state == "running" and progress.get("steps", 0) > progress.get("step", 0):
        # Nothing is reported during a validation.
        since = time.time() - (folder / "progress.json").stat().st_mtime
        if since > EXPIRY:
            last = f"no step has ended for {duration(since / 3600)}; {last}"
    message = {
        "running": f"{process}; {last}",
        "no heartbeat": f"{process} has been silent for {duration(silent / 3600)}: it is paused, or dead, or its machine "
        "cannot reach this disk",
        "killed": f"{process} was killed; run snakemake again, and the training continues from its last save",
        "failed": f"{failure.get('message', '')} (another attempt: ffnrepro runs retry {run})",
        "stopped": f"{last}run snakemake again to continue",
        "finished": "",
    }[state].removesuffix("; ")
    return Training(
        run=run,
        seed=seed,
        state=state,
        progress=progress,
        message=message,
        changed=folder.stat().st_mtime,
    )


def _state(lease: LeaseStatus | None, about: Mapping[str, Any], failure: Mapping[str, Any]) -> str:
    if lease is not None:
        if lease.owner_is_dead():
            return "killed"
        # The clocks of two machines may differ by seconds, not by minutes.
        return "no heartbeat" if time.time() - lease.heartbeat / 1e9 > EXPIRY else "running"
    if failure:
        return "failed"
    return "finished" if about and about["epoch"] == about["epochs"] else "stopped"


def view(trainings: Sequence[Training]) -> Group:
    """A table of the trainings, and their messages below it."""
    ended = [each for each in trainings if not each.active]
    shown = [*(each for each in trainings if each.active), *ended[:MAX_ENDED]]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for header in ("run", "seed", "state", "epoch", "loss", "accuracy", "frames/s", "time left"):
        table.add_column(
            header,
            justify="right" if header in ("seed", "loss", "frames/s") else "left",
            # In a narrow terminal, only these two wrap.
            no_wrap=header not in ("run", "accuracy"),
            overflow="fold",
        )
    for each in shown:
        colour = COLOURS.get(each.state, "")
        table.add_row(each.run, each.seed, Text(each.state, colour), *_cells(each))
    parts: list[Table | Text] = [table] if shown else []
    for each in shown:
        if each.message:
            name = Text(f"{each.run}, seed {each.seed}: ", COLOURS.get(each.state, ""))
            parts.append(name + Text(each.message))
    if hidden := max(0, len(ended) - MAX_ENDED):
        parts.append(Text(f"trainings that have ended and are not shown: {hidden}; ffnrepro runs lists them"))
    if len(ended) == len(trainings):
        parts.append(
            Text(
                "No training is running here. Start snakemake, or give the same --directory as to snakemake."
            )
        )
    return Group(Text(f"{datetime.now():%F %T}", "dim"), *parts)


def _cells(training: Training) -> list[str]:
    """Epoch, loss, scores, speed and time left of a training, as far as they are known."""
    progress = training.progress
    if not progress:
        return [""] * 5
    done, epochs, steps = progress["epoch"], progress["epochs"], progress.get("steps")
    epoch = f"{done}/{epochs}"
    if steps and done < epochs:
        place = "validation" if progress["step"] == steps else f"{100 * progress['step'] // steps} %"
        epoch = f"{done + 1}/{epochs}, {place}"
    scores = ", ".join(
        f"{key.removeprefix('validation_top1_')} {value:.1f}"
        for key, value in (progress.get("last_epoch") or {}).items()
        if key.startswith("validation_top1_")
    )
    loss, speed, left = (progress.get(key) for key in ("loss", "frames_per_second", "seconds_left"))
    running = training.active
    return [
        epoch,
        "" if loss is None else f"{loss:.3f}",
        scores,
        f"{speed:.0f}" if running and speed is not None else "",
        duration(left / 3600) if running and left is not None else "",
    ]


def watch(*, once: bool = False) -> None:
    """Show the trainings of the working directory until Ctrl-C; with `once`, or if the output is not a terminal, only once."""
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, width=None if terminal else WIDTH)
    if once or not terminal:
        console.print(view(read_trainings()))
        return
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(view(read_trainings()), refresh=True)
            time.sleep(REFRESH)
