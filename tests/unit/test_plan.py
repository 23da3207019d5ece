"""What a dry run says: differences and hours, against values by hand."""

import pytest

from ffnrepro.plan import PlannedJob, describe, differences, training_hours

DIGEST = "0123456789abcdef"


def test_what_is_different_is_said_by_key() -> None:
    made = {
        "settings": {"training": {"learning_rate": 0.01, "epochs": 50}, "depth": 50, "rows": ["a" * 60]},
        "data": DIGEST * 4,
        "code": {"ffnrepro.recipe.losses": DIGEST, "ffnrepro.recipe.optim": DIGEST},
        "host": "not asked for",
    }
    now = {
        "settings": {"training": {"learning_rate": 0.02, "epochs": 50}, "gpus": 3, "rows": ["b" * 60]},
        "data": DIGEST[::-1] * 4,
        "code": {"ffnrepro.recipe.losses": DIGEST[::-1], "ffnrepro.recipe.optim": DIGEST},
    }
    assert differences(made, now) == [
        "training.learning_rate 0.01 -> 0.02",
        "gpus none -> 3",
        "rows changed",
        "data changed",
        "depth 50 -> none",
        "code of ffnrepro.recipe.losses",
    ]
    assert differences(now, now) == []
    with pytest.raises(KeyError):
        differences({"settings": {}}, now)


def test_hours_are_those_of_all_gpus_together() -> None:
    past = {
        "experiment": "ffn",
        "wall_seconds": 10 * 3600,
        "settings": {"seed": 0, "train_frames": [4, 8, 16], "training": {"epochs": 50, "gpus": 4}},
    }
    hours, basis = training_hours(25, 28, "something-something-v2", past)
    assert hours == 20  # half the epochs of ten hours on four GPUs
    assert basis == "by ffn, seed 0, which took 10 hours"
    hours, basis = training_hours(50, 16, "something-something-v2", None)
    assert hours == pytest.approx(50 * 168_913 * 16 / 1200 / 3600)
    assert "guess" in basis
    assert training_hours(50, 16, "demo", None)[0] is None


def test_jobs_of_one_reason_share_a_line() -> None:
    jobs = [PlannedJob("evaluate", f"frames {n}", ("after train_ffn",), 0.25, "as last time") for n in (4, 8)]
    assert describe(jobs, gpu=True) == (
        "What would run, and why:\n"
        "  evaluate (frames 4; frames 8): after train_ffn\n"
        "      about 30 GPU minutes, as last time\n"
        "About 30 GPU minutes in all, as far as is known."
    )
    assert describe([], gpu=True).startswith("Nothing to do")


def test_what_is_not_known_is_not_called_short() -> None:
    unknown = PlannedJob(
        "train_tsm", "tsm", ("first time",), None, "hours unknown: nothing like it was trained"
    )
    kept = PlannedJob("train_ffn", "ffn", ("lost",), 0, "kept from before")
    light = PlannedJob("parse_labels", "", ("first time",))
    assert describe([light, kept], gpu=False).endswith("\nNo long work, as far as is known.")
    assert describe([light, kept, unknown], gpu=False).endswith("\nHow long it takes is not known.")
    known = PlannedJob("evaluate", "tsm", ("first time",), 2, "as last time")
    assert describe([known, unknown], gpu=True).endswith(
        "\nAbout 2.0 GPU hours, and what is not known beside it."
    )
