"""The diagnosis: each fault made on purpose is found, a fault just below its threshold is not, nor is any in a healthy demo."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from ffnrepro.diagnosis import TITLES, diagnose, text
from ffnrepro.faults import Network, overfitted
from ffnrepro.runs import RunSettings, unpublished_settings

from ..trainings import ROOT

VIDEOS, CLASSES = 480, 12
TABLE: dict[str, Any] = {"split": "validation", "rows": []}
TSM = {"method": "tsm", "train_frames": [16]}
FFN = {"method": "ffn", "train_frames": [4, 8, 16]}
DEMO = {
    "dataset": "demo",
    "network": {"depth": 10, "width": 8, "stem": 5, "dropout": 0.0},
    "training": {"epochs": 44, "batch_size": 16, "schedule": "cosine", "warmup_epochs": 1, "crop": "random"},
    "short_side": 40,
    "crop_size": 32,
}
HISTORIES = {
    name: pd.read_csv(ROOT / f"tests/data/histories/{name}.csv").to_dict("records") for name in ("tsm", "ffn")
}


def settings(method: Mapping[str, Any], **changes: Any) -> RunSettings:
    return RunSettings.model_validate({**DEMO, "method": method, **changes})


def predictions(right: int, *, first_wrong: int = 0) -> pd.DataFrame:
    """`right` of the videos are right; of the others, each is predicted as another class of the twelve."""
    labels = np.arange(VIDEOS) % CLASSES
    wrong = np.roll(np.arange(VIDEOS) < VIDEOS - right, first_wrong)
    other = (labels + 1 + np.arange(VIDEOS) // CLASSES % (CLASSES - 1)) % CLASSES
    return pd.DataFrame({"label": labels, "class_1": np.where(wrong, other, labels)})


def tensors(tracked: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "bn1.running_mean": torch.randn(8),
        "bn1.running_var": torch.rand(8) + 0.5,
        "bn1.num_batches_tracked": torch.tensor(tracked),
        "fc.weight": 0.4 * torch.randn(CLASSES, 64),
        "fc.bias": torch.randn(CLASSES),
    }


@dataclass(frozen=True)
class Evidence:
    """What is known of a healthy demo: the histories are real, the scores as in its table."""

    tsm: Network
    ffn: Network
    numbers: Mapping[str, Any]
    summary: Mapping[str, Any]

    def diagnose(self) -> dict[str, Any]:
        row = {"label": "TSM", "published": ["TSM", None], "numbers": self.numbers}
        row["evaluations"] = {"16": [f"results/runs/{self.tsm.record['run']}/seed0/validation_16f.json"]}
        networks = {network.name: network for network in (self.tsm, self.ffn)}
        return diagnose(networks, [{"split": "validation", "rows": [row]}], self.summary)


def healthy() -> Evidence:
    record = {"seed": 0, "videos": 960}
    return Evidence(
        tsm=Network(
            settings=settings(TSM),
            record={**record, "run": "tsm-aff52e89", "best_epoch": 39},
            history=HISTORIES["tsm"],
            predictions={4: predictions(358, first_wrong=200), 8: predictions(394), 16: predictions(479)},
            tensors=tensors(60 * 39),
        ),
        ffn=Network(
            settings=settings(FFN),
            record={**record, "run": "ffn-b3a6ddb3", "best_epoch": 42},
            history=HISTORIES["ffn"],
            predictions={4: predictions(468), 8: predictions(473), 16: predictions(470)},
            tensors=tensors(60 * 42),
        ),
        numbers={"top1_16f": 60.7, "low_16f": 60.1, "high_16f": 61.3, "published_16f": 61.02},
        summary={
            "labelled": {"train": 960, "validation": 480},
            "excluded": {"train": {}, "validation": {}},
        },
    )


Change = Callable[[Evidence, Any], Evidence]


def in_tsm(change: Callable[[Network, Any], dict[str, Any]]) -> Change:
    return lambda evidence, value: replace(evidence, tsm=replace(evidence.tsm, **change(evidence.tsm, value)))


def in_ffn(change: Callable[[Network, Any], dict[str, Any]]) -> Change:
    return lambda evidence, value: replace(evidence, ffn=replace(evidence.ffn, **change(evidence.ffn, value)))


def epochs(network: Network, start: int, stop: int | None = None, **values: float) -> dict[str, Any]:
    """A history with other values in some epochs, counted from 0."""
    chosen = range(len(network.history))[start:stop]
    return {"history": [{**row, **values} if i in chosen else row for i, row in enumerate(network.history)]}


def rise(network: Network, nats: float) -> dict[str, Any]:
    lowest = min(row["train_cross_entropy"] for row in network.history[:30])
    return epochs(network, 30, 31, train_cross_entropy=lowest + nats)


def divergence(network: Network, fraction: float) -> dict[str, Any]:
    first, last = network.history[0], network.history[-1]
    learned = first["train_cross_entropy"] - last["train_cross_entropy"]
    return epochs(network, -1, train_kl_4f=first["train_kl_4f"] + fraction * learned)


def overfit(network: Network, fall: float) -> dict[str, Any]:
    best = max(row["validation_top1_16f"] for row in network.history)
    return epochs(network, -1, train_top1=98.1, validation_top1_16f=best - fall)


def step_schedule(network: Network, milestones: list[int]) -> dict[str, Any]:
    changed = settings(TSM, training={"epochs": 44, "batch_size": 16, "milestones": milestones})
    history = [
        {**row, "learning_rate": 0.01 * 0.1 ** sum(i >= milestone for milestone in milestones)}
        for i, row in enumerate(network.history)
    ]
    return {"settings": changed, "history": history}


def stale_norm(network: Network, tracked: int) -> dict[str, Any]:
    return {"tensors": {**network.tensors, "bn1.num_batches_tracked": torch.tensor(tracked)}}


def new_norm(network: Network, variance: float) -> dict[str, Any]:
    statistics = {"bn1.running_mean": torch.zeros(8), "bn1.running_var": torch.full((8,), variance)}
    return {"tensors": {**network.tensors, **statistics}}


def at_chance(network: Network, right: int, *, train_top1: float) -> dict[str, Any]:
    scores = {4: predictions(40), 16: predictions(right)}
    return {"predictions": scores, **epochs(network, 0, train_top1=train_top1)}


def swallow(network: Network, videos: int) -> dict[str, Any]:
    rows = network.predictions[16].copy()
    others = rows.index[rows["class_1"] != 3][:videos]
    rows.loc[others, "class_1"] = 3
    return {"predictions": {**network.predictions, 16: rows}}


def swap(network: Network, videos: int) -> dict[str, Any]:
    """So many of the 40 videos of the classes 0 and 1 are predicted as the other class."""
    rows = network.predictions[16].copy()
    for label in (0, 1):
        rows.loc[rows.index[rows["label"] == label][:videos], "class_1"] = 1 - label
    return {"predictions": {**network.predictions, 16: rows}}


def permute(network: Network, offset: int) -> dict[str, Any]:
    """All classes are predicted as another one."""
    rows = network.predictions[16]
    permuted = rows.assign(class_1=(rows["class_1"] + offset) % CLASSES)
    return {"predictions": {**network.predictions, 16: permuted}}


def of_4_frames(network: Network, right: int) -> dict[str, Any]:
    return {"predictions": {**network.predictions, 4: predictions(right)}}


def wait(network: Network, percent: float, *, seconds: float = 1200.0) -> dict[str, Any]:
    return epochs(network, 0, data_wait=percent, seconds=seconds)


def skip(network: Network, steps: int) -> dict[str, Any]:
    return epochs(network, 10, 11, skipped_steps=steps)


# Check; change of a healthy demo; a value that makes the fault, and a value just below its threshold.
FAULTS: list[tuple[str, Change, Any, Any]] = [
    ("loss", in_tsm(rise), 1.01, 0.99),
    ("loss", in_ffn(lambda network, value: epochs(network, -1, train_kl_4f=value)), math.nan, 0.09),
    ("distillation", in_ffn(divergence), 0.51, 0.49),
    ("overfitting", in_tsm(overfit), 1.01, 0.99),
    (
        "overfitting",
        in_tsm(lambda network, value: epochs(network, -1, train_top1=value, validation_top1_16f=90.0)),
        98.1,
        97.9,
    ),
    (
        "learning_rate",
        in_tsm(lambda network, value: epochs(network, 20, 21, learning_rate=value)),
        0.01,
        0.005603,
    ),
    ("learning_rate", in_tsm(step_schedule), [], [20, 40]),
    ("skipped_steps", in_tsm(skip), 26, 25),
    ("data_wait", in_tsm(wait), 50.1, 49.9),
    ("data_wait", in_tsm(lambda network, value: wait(network, 60.0, seconds=value)), 23.0, 22.0),
    (
        "classifier",
        in_tsm(
            lambda network, value: {"tensors": {**network.tensors, "fc.weight": value * torch.randn(12, 640)}}
        ),
        0.0019,
        0.0021,
    ),
    ("batchnorm", in_tsm(stale_norm), 0, 60 * 39),
    ("batchnorm", in_tsm(stale_norm), 233, 234),
    ("batchnorm", in_tsm(new_norm), 1.0, 1.01),
    ("batchnorm", in_tsm(lambda network, right: at_chance(network, right, train_top1=97.0)), 116, 117),
    ("chance", in_tsm(lambda network, right: at_chance(network, right, train_top1=20.0)), 61, 63),
    ("one_class", in_tsm(swallow), 74, 72),
    ("labels", in_tsm(swap), 33, 32),
    ("labels", in_tsm(permute), 5, 0),
    ("no_collapse", in_tsm(of_4_frames), 456, 455),
    ("ffn", in_ffn(of_4_frames), 370, 410),
    (
        "published",
        lambda evidence, value: replace(evidence, numbers={**evidence.numbers, "published_16f": value}),
        61.31,
        61.3,
    ),
    (
        "excluded",
        lambda evidence, value: replace(
            evidence,
            summary={**evidence.summary, "excluded": {"train": {}, "validation": {"truncated": value}}},
        ),
        3,
        2,
    ),
]


def same_at_4_frames(network: Network, _: Any) -> dict[str, Any]:
    return {"predictions": {**network.predictions, 4: network.predictions[16]}}


def one_class(network: Network, _: Any) -> dict[str, Any]:
    scores = {frames: rows.assign(class_1=3) for frames, rows in network.predictions.items()}
    return {"predictions": scores}


def permuted(network: Network, _: Any) -> dict[str, Any]:
    scores = {
        frames: rows.assign(class_1=(rows["class_1"] + 5) % CLASSES)
        for frames, rows in network.predictions.items()
    }
    return {"predictions": scores}


def untrained(network: Network, _: Any) -> dict[str, Any]:
    start = {"fc.weight": 0.001 * torch.randn(CLASSES, 640)}
    return {"tensors": {**network.tensors, **start}, **one_class(network, _)}


def stale(network: Network, _: Any) -> dict[str, Any]:
    return {**new_norm(network, 1.0), **one_class(network, _)}


def exploded(network: Network, _: Any) -> dict[str, Any]:
    return {**epochs(network, 5, train_cross_entropy=8.0, train_top1=8.0), **one_class(network, _)}


def unlearnt(network: Network, _: Any) -> dict[str, Any]:
    lowest = of_4_frames(network, 358)
    return {**divergence(network, 0.9), **lowest}


def found(evidence: Evidence) -> set[str]:
    return {finding["check"] for finding in evidence.diagnose()["findings"]}


@pytest.mark.parametrize(("check", "change", "made", "below"), FAULTS)
def test_a_fault_is_found_and_one_below_its_threshold_is_not(
    check: str, change: Change, made: Any, below: Any
) -> None:
    assert found(change(healthy(), made)) == {check}
    assert found(change(healthy(), below)) == set()


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("labels", (in_tsm(permuted), in_ffn(permuted))),
        ("batchnorm", (in_tsm(one_class), in_ffn(one_class))),
        ("batchnorm", (in_tsm(stale),)),
        ("batchnorm", (in_ffn(stale),)),
        ("classifier", (in_tsm(untrained),)),
        ("classifier", (in_ffn(untrained),)),
        ("loss", (in_tsm(exploded),)),
        ("loss", (in_ffn(exploded),)),
        ("distillation", (in_ffn(unlearnt),)),
        ("no_collapse", (in_tsm(same_at_4_frames),)),
    ],
)
def test_a_fault_that_spoils_all_scores_is_the_only_finding(check: str, changes: tuple[Change, ...]) -> None:
    """Its effects on FFN's gain, or on one class, bring no advice of another fault."""
    evidence = healthy()
    for change in changes:
        evidence = change(evidence, None)
    assert found(evidence) == {check}


def test_a_row_with_spoilt_scores_does_not_list_the_settings_that_differ() -> None:
    evidence = replace(healthy(), numbers={**healthy().numbers, "published_16f": 90.0})
    assert found(evidence) == {"published"}
    assert found(in_tsm(permuted)(evidence, None)) == {"labels"}


def test_each_check_has_a_made_fault() -> None:
    assert {check for check, *_ in FAULTS} == set(TITLES)


def test_the_page_has_each_check() -> None:
    page = (ROOT / "docs/diagnosis.md").read_text()
    assert re.findall(r"^\| `(\w+)`", page, re.MULTILINE) == list(TITLES)


def test_nothing_is_found_in_a_healthy_demo() -> None:
    diagnosis = healthy().diagnose()
    assert diagnosis["findings"] == []
    assert diagnosis["checked"] == ["tsm-aff52e89, seed 0", "ffn-b3a6ddb3, seed 0"]
    assert diagnosis["checks"] == [{"name": name, "title": title} for name, title in TITLES.items()]
    assert text(diagnosis) == "Diagnosis: 2 networks checked, nothing found\n"


def test_the_history_of_a_public_reproduction_is_recognised_as_overfitting() -> None:
    """Best 56.7 in epoch 21, 54.4 at the end of 50, with a training accuracy of 99.9 %."""
    validation = [*np.linspace(30.0, 56.7, 21), *np.linspace(56.5, 54.4, 29)]
    training = np.minimum(99.9, np.linspace(30.0, 110.0, 50))
    history = [
        {"train_top1": train, "validation_top1_16f": score}
        for train, score in zip(training, validation, strict=True)
    ]
    (finding,) = overfitted(history, "top1_16f", 24_777)
    assert finding.evidence == (
        "The training accuracy is 99.9 %, but top1_16f on validation fell from 56.7 in epoch 21 to 54.4 in epoch 50."
    )
    assert not list(overfitted(history[:22], "top1_16f", 24_777))


def test_a_fall_within_the_noise_of_few_videos_is_no_overfitting() -> None:
    # Of 100 videos, the standard error of a difference near 70 % is 6.5 points.
    history = [{"train_top1": 99.0, "validation_top1_16f": score} for score in (70.0, 60.0)]
    assert not list(overfitted(history, "top1_16f", 100))
    assert list(overfitted(history, "top1_16f", 1000))


def test_an_imported_network_has_no_checks_of_its_training() -> None:
    evidence = healthy()
    architecture: dict[str, Any] = {"classes": CLASSES}
    record = {"run": "theirs-0a635141", "seed": 0, "imported": {"architecture": architecture}}
    # Files of other people's code may have no count of batches.
    imported = replace(
        evidence.tsm,
        settings=settings({"method": "checkpoint", "path": ""}),
        record=record,
        history=[],
        tensors=tensors(0),
    )
    diagnosis = diagnose({imported.name: imported}, [TABLE], evidence.summary)
    assert diagnosis["findings"] == []
    assert [check["name"] for check in diagnosis["checks"]] == [
        "classifier", "batchnorm", "chance", "one_class", "labels", "no_collapse", "excluded"
    ]  # fmt: skip
    # Its classes may be in another order.
    scores = dict.fromkeys((4, 8, 16), permute(imported, 1)["predictions"][16])
    other = replace(imported, predictions=scores)
    (finding,) = diagnose({other.name: other}, [TABLE], evidence.summary)["findings"]
    assert finding["check"] == "labels"
    assert "of 12 classes are mostly predicted as one other class, such as 0 as 1" in finding["evidence"]


@pytest.mark.parametrize(
    ("permuted", "train_top1", "check"),
    [
        # Of 480 videos, so many are predicted as the class five further on; the others are spread.
        (193, 97.0, "labels"),
        (191, 97.0, "batchnorm"),  # learnt in training only, for whatever reason
        (0, 40.0, "batchnorm"),
        (0, 39.9, "chance"),
    ],
)
def test_a_network_at_chance_has_one_finding(permuted: int, train_top1: float, check: str) -> None:
    rows = predictions(permuted) if permuted else predictions(40)
    rows["class_1"] = (rows["class_1"] + (5 if permuted else 0)) % CLASSES
    evidence = in_tsm(lambda network, _: at_chance(network, 40, train_top1=train_top1))(healthy(), None)
    evidence = in_tsm(lambda network, _: {"predictions": {**network.predictions, 16: rows}})(evidence, None)
    assert found(evidence) == {check}


@pytest.mark.parametrize(("videos", "expected"), [(96, set()), (108, {"batchnorm"})])
def test_scores_of_few_videos_are_not_judged(videos: int, expected: set[str]) -> None:
    evidence = in_tsm(lambda network, right: at_chance(network, right, train_top1=97.0))(healthy(), 40)
    few = {frames: rows.head(videos) for frames, rows in evidence.tsm.predictions.items()}
    tsm = replace(evidence.tsm, predictions=few)
    assert {
        finding["check"] for finding in diagnose({"tsm": tsm}, [TABLE], evidence.summary)["findings"]
    } == expected


def test_frame_counts_that_were_not_trained_are_not_judged() -> None:
    """Where TSM collapses, it predicts several classes as one."""
    rows = predictions(480).assign(class_1=3)
    collapsed = in_tsm(lambda network, _: {"predictions": {**network.predictions, 4: rows}})(healthy(), None)
    assert found(collapsed) == set()


def test_a_network_with_a_count_trained_below_its_own_has_no_collapse_to_show() -> None:
    """Fine-tuned at 4 frames, or trained at several: no collapse is published."""
    scores = dict.fromkeys((4, 8, 16), predictions(470))
    for method in (
        {"method": "tsm", "train_frames": [4]},
        {"method": "proportional", "train_frames": [4, 16], "varrho": 0.5},
    ):
        evidence = healthy()
        history = [{**row, "validation_top1_4f": row["validation_top1_16f"]} for row in evidence.tsm.history]
        tsm = replace(evidence.tsm, settings=settings(method), predictions=scores, history=history)
        assert found(replace(evidence, tsm=tsm)) == set()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"method": {**FFN, "adapter_init": "authors"}}, ["adapter_init authors instead of near_zero"]),
        ({"training": {"milestones": [10]}}, ["training.milestones [10] instead of [20, 40]"]),
        # Of no effect: the milestones of a cosine schedule.
        (
            {"training": {"schedule": "cosine", "milestones": [10]}},
            ["training.schedule cosine instead of step"],
        ),
        ({"weights": None}, ["weights null instead of 0676ba61"]),
        ({"weights": None, "start": "0a635141"}, []),
        ({"dataset": "kinetics-400"}, ["training.flip false instead of true"]),
        ({"dataset": "kinetics-400", "training": {"flip": True}}, []),
        ({"method": {"method": "checkpoint", "path": ""}}, []),
    ],
)
def test_settings_that_differ_from_the_published_recipe(changes: dict[str, Any], expected: list[str]) -> None:
    recipe = {"method": FFN, "weights": "0676ba61", **changes}
    assert unpublished_settings(RunSettings.model_validate(recipe)) == expected


def test_a_figure_outside_its_interval_comes_with_the_settings_that_differ() -> None:
    evidence = replace(healthy(), numbers={**healthy().numbers, "published_16f": 50.0})
    (finding,) = evidence.diagnose()["findings"]
    assert finding["subject"] == "TSM"
    assert finding["evidence"] == "Top-1 is 60.7 [60.1, 61.3] at 16 frames (published 50.00)."
    assert "training.crop random instead of multi_scale" in finding["cause"]
    assert "network.depth 10 instead of 50" in finding["cause"]


def test_findings_of_one_fault_stand_together() -> None:
    diagnosis = in_ffn(wait)(in_tsm(wait)(healthy(), 62.0), 71.0).diagnose()
    assert text(diagnosis).splitlines() == [
        "Diagnosis: 2 networks checked, 2 findings (docs/diagnosis.md)",
        "",
        "The training waits for its data.",
        "  tsm-aff52e89, seed 0: In the median epoch, the training waited for data 62 % of the time, about 9.1 hours in total.",
        "  ffn-b3a6ddb3, seed 0: In the median epoch, the training waited for data 71 % of the time, about 10.4 hours in total.",
        f"  Likely cause: {diagnosis['findings'][0]['cause']}",
        f"  What to do: {diagnosis['findings'][0]['remedy']}",
    ]
