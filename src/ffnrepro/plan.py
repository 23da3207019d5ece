"""What a dry run says at its end: which jobs would run, what changed for each, and what they cost."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FRAMES_PER_SECOND = 1200
"""That a ResNet-50 trains on one H200, by a public reproduction of the paper; where nothing was measured here."""

VIDEOS = {"something-something-v1": 86_017, "something-something-v2": 168_913}
"""Of the training splits."""

_SHOWN = 4
_LONG = 100


@dataclass(frozen=True)
class PlannedJob:
    """A job of a plan.

    Attributes:
        rule: its rule.
        about: which of the rule's jobs.
        why: what changed.
        hours: that it takes; None where that is not known, or minutes.
        basis: of the hours.
    """

    rule: str
    about: str
    why: tuple[str, ...]
    hours: float | None = None
    basis: str = ""


def describe(jobs: Sequence[PlannedJob], *, gpu: bool) -> str:
    """The plan for people; jobs of a rule that run for the same reasons share a line.

    Args:
        jobs: in the order in which they run.
        gpu: whether the hours are a GPU's.
    """
    if not jobs:
        return "Nothing to do: every result is up to date."
    lines: dict[tuple[str, tuple[str, ...], str], list[PlannedJob]] = {}
    for job in jobs:
        lines.setdefault((job.rule, job.why, job.basis), []).append(job)
    text = ["What would run, and why:"]
    for (rule, why, basis), same in lines.items():
        about = sorted((job.about for job in same if job.about), key=lambda words: (len(words), words))
        which = f" ({_some(about, '; ')})" if about else ""
        text.append(f"  {rule}{which}: {'; '.join(why) or 'reason unknown'}")
        hours = sum(job.hours or 0 for job in same)
        if basis:
            text.append(f"      {f'about {duration(hours, gpu=gpu)}, ' if hours else ''}{basis}")
    total = sum(job.hours or 0 for job in jobs)
    unknown = any(job.basis and job.hours is None for job in jobs)
    if total and unknown:
        text.append(f"About {duration(total, gpu=gpu)}, and what is not known beside it.")
    elif total:
        text.append(f"About {duration(total, gpu=gpu)} in all, as far as is known.")
    elif unknown:
        text.append("How long it takes is not known.")
    else:
        text.append("No long work, as far as is known.")
    return "\n".join(text)


def duration(hours: float, *, gpu: bool = False) -> str:
    """Hours, or minutes where it is less, in words."""
    unit = "GPU " if gpu else ""
    if hours >= 1:
        return f"{hours:.0f} {unit}hours" if hours >= 10 else f"{hours:.1f} {unit}hours"
    return f"{60 * hours:.0f} {unit}minutes" if hours > 1 / 60 else f"a {unit}minute"


def differences(made: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is different: `training.learning_rate 0.01 -> 0.02`, `data changed`, `code of ffnrepro.recipe.losses`.

    Args:
        made: what decided a job's files; it may say more.
        now: what decides them now.

    Raises:
        KeyError: `made` does not say all.
    """
    before, after = (dict(flat({key: all_[key] for key in now})) for all_ in (made, now))
    words, modules = [], []
    for key in dict.fromkeys([*after, *before]):
        old, new = before.get(key, "none"), after.get(key, "none")
        part, _, name = key.partition(".")
        if old == new:
            continue
        if part == "code":
            modules.append(name)
        elif _is_digest(old) or _is_digest(new) or len(f"{old}{new}") > _LONG:
            words.append(f"{name or part} changed")
        else:
            words.append(f"{name or part} {old} -> {new}")
    if modules:
        words.append(f"code of {_some(modules, ', ')}")
    return words


def training_hours(
    epochs: int, frames: int, dataset: str, past: Mapping[str, Any] | None
) -> tuple[float | None, str]:
    """Hours that a training takes, over all its GPUs, and what that is based on.

    Args:
        epochs: of the training.
        frames: of a sample, over all its clips.
        dataset: its name.
        past: `run.json` of an earlier training of the kind.
    """
    if past is not None:
        settings = past["settings"]
        recipe = settings["training"]
        work = epochs * frames / (recipe["epochs"] * sum(settings["train_frames"]))
        return (
            past["wall_seconds"] / 3600 * recipe["gpus"] * work,
            f"by {past['experiment']}, seed {settings['seed']}, which took {duration(past['wall_seconds'] / 3600)}",
        )
    if dataset in VIDEOS:
        seconds = epochs * VIDEOS[dataset] * frames / FRAMES_PER_SECOND
        return seconds / 3600, f"a guess: ResNet-50 at {FRAMES_PER_SECOND:,} frames a second (one H200)"
    return None, "hours unknown: nothing of the kind was trained here"


def _is_digest(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[0-9a-f]{16}|[0-9a-f]{64}", value))


def flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested settings."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def _some(items: Sequence[str], joint: str) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return joint.join(items[:_SHOWN]) + more
