"""The configuration is read typed, and every slip is refused in one line that names the key and the mend."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from ffnrepro.config import read_config, training_settings
from ffnrepro.errors import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def mapping() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())
    return loaded


def put(mapping: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        mapping = mapping[parent]
    mapping[last] = value


def test_the_default_is_the_published_recipe(mapping: dict[str, Any]) -> None:
    config = read_config(mapping)
    assert config.training.epochs == 50
    assert config.training.milestones == (20, 40)
    assert (config.training.batch_size, config.training.learning_rate) == (32, 0.01)
    assert (config.training.momentum, config.training.weight_decay) == (0.9, 5e-4)
    assert config.training.crop == "multi_scale"
    assert (config.data.short_side, config.data.crop_size) == (256, 224)
    assert config.experiments["ffn"].train_frames == (4, 8, 16)
    assert config.experiments["ffn"].distillation_weight == 1.0
    assert config.network.weights == "imagenet"


def test_the_demo_changes_only_schedule_augmentation_network_and_epochs(mapping: dict[str, Any]) -> None:
    demo = yaml.safe_load((ROOT / "config" / "demo.yaml").read_text())
    assert set(demo) <= {"dataset", "data", "network", "training", "runtime"}
    assert set(demo["training"]) <= {
        "epochs",
        "batch_size",
        "learning_rate",
        "schedule",
        "warmup_epochs",
        "crop",
    }
    merged = {
        k: {**v, **demo.get(k, {})} if isinstance(v, dict) else demo.get(k, v) for k, v in mapping.items()
    }
    read_config(merged)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("training.leraning_rate", 0.1, r"training\.leraning_rate is not a key; did you mean training\.learning_rate\?"),
        ("colour", "red", r"colour is not a key; legal: dataset, seeds"),
        ("experiments.ffn.train_frame", [4, 8], r"experiments\.ffn\.train_frame is not a key; did you mean .*train_frames"),
        ("evaluation.frame_counts", [4, 0], r"evaluation\.frame_counts holds 0; a frame count lies between 1 and"),
        ("evaluation.frame_counts", [4, -8], r"evaluation\.frame_counts holds -8"),
        ("evaluation.frame_counts", [4, 1600], r"evaluation\.frame_counts holds 1600"),
        ("evaluation.frame_counts", [16, 4], r"rising order: \[4, 16\]"),
        ("evaluation.frame_counts", [4, 4, 8], r"write each frame count once"),
        ("evaluation.frame_counts", [], r"evaluation\.frame_counts is empty"),
        ("evaluation.frame_counts", 16, r"must be a list, such as \[16\]"),
        ("evaluation.frame_counts", [4.5], r"frame_counts\[0\] is 4\.5; it must be a whole number"),
        ("experiments.ffn.train_frames", [16], r"experiments\.ffn\.train_frames is \[16\]; ffn trains at two"),
        ("experiments.tsm.train_frames", [4, 16], r"tsm trains at one frame count"),
        ("experiments.tsm.distillation_weight", 2.0, r"is for the method ffn"),
        ("experiments.tsm.training_shift", "authors", r"experiments\.tsm\.training_shift is for the method ffn"),
        ("experiments.tsm.adapter_init", "authors", r"experiments\.tsm\.adapter_init is for the method ffn"),
        ("experiments.ffn.training_shift", "theirs", r"'theirs'; it must be one of per_clip, authors"),
        ("experiments.ffn.method", "fnn", r"experiments\.ffn\.method is 'fnn'; it must be one of tsm, ffn"),
        ("experiments.a/b", {"method": "tsm", "train_frames": [4]}, r"letters, digits"),
        ("experiments.ffn.depth", 34, r"experiments\.ffn\.depth is 34; it must be one of 10, 18, 50, 101"),
        ("training.weight_decay", "much", r"weight_decay is 'much'; it must be a number"),
        ("training.epochs", 0, r"training\.epochs is 0; it must be more than 0"),
        ("training.epochs", True, r"training\.epochs is True; it must be a whole number"),
        ("training.batchnorm_clips", 12, r"batchnorm_clips is 12; training\.batch_size 32 must be a multiple of it"),
        ("training.gpus", 3, r"batch_size is 32; it must be a multiple of training\.gpus 3"),
        ("training.precision", "half", r"'half'; it must be one of float16, bfloat16, float32"),
        ("runtime.save_minutes", 0, r"runtime\.save_minutes is 0; it must be more than 0"),
        ("training.epochs", 30, r"training\.milestones holds 40, which training\.epochs 30 never reaches"),
        ("training.warmup_epochs", 50, r"must be below training\.epochs 50"),
        ("training.learning_rate", None, r"training\.learning_rate is None"),
        ("data.crop_size", 300, r"data\.crop_size 300 exceeds data\.short_side 256"),
        ("data.layout", "jpeg", r"data\.layout is 'jpeg'; it must be one of videos, frames"),
        ("data.max_excluded", 1.5, r"data\.max_excluded is 1\.5; it is a fraction"),
        ("data.max_bad_fraction", -0.1, r"data\.max_bad_fraction is -0\.1; it must be 0 or more"),
        ("data", None, r"data is None; it must be a mapping"),
        ("network.stem", 6, r"network\.stem is 6; a kernel size is odd"),
        ("network.width", 20, r"multiple of 8"),
        ("network.dropout", 1.0, r"must be below 1"),
        ("seeds", [-1], r"seeds is \[-1\]; give different whole numbers"),
        ("seeds", [], r"seeds is \[\]"),
        ("seeds", [1, 1], r"seeds is \[1, 1\]"),
        ("seeds", 0, r"seeds is 0; it must be a list, such as \[0\]"),
        ("table", [], r"table is empty"),
        ("table", [{"method": "TSM", "experiments": "tms"}], r"table\[0\]\.experiments names 'tms', which is not in"),
        ("table", [{"method": "A", "experiments": {4: "tsm_4f", 8: "tsm_8f"}}], r"each of evaluation\.frame_counts"),
        ("table", [{"method": "A", "experiments": "tsm"}] * 2, r"stands twice"),
        ("runtime.device", "gpu", r"runtime\.device is 'gpu'; it must be one of auto, cpu, cuda, mps"),
    ],
)  # fmt: skip
def test_a_slip_is_refused_in_one_line(mapping: dict[str, Any], key: str, value: Any, says: str) -> None:
    put(mapping, key, value)
    with pytest.raises(UserError, match=says) as error:
        read_config(mapping)
    assert "\n" not in str(error.value)


def test_a_missing_key_is_named(mapping: dict[str, Any]) -> None:
    del mapping["data"]["videos"]
    with pytest.raises(UserError, match=r"data\.videos is missing"):
        read_config(mapping)


def test_numbers_that_come_as_text_are_read(mapping: dict[str, Any]) -> None:
    """YAML 1.1 reads 5e-4 as text, and the values inside of `--config training='{epochs: 30}'` are text, too."""
    for key, value in (
        ("training.weight_decay", "5e-4"),
        ("training.epochs", "60"),
        ("training.clip_norm", "null"),
        ("data.partial", "true"),
        ("evaluation.frame_counts", ["4", "6"]),
    ):
        put(mapping, key, value)
    config = read_config(mapping)
    assert (config.training.weight_decay, config.training.epochs, config.training.clip_norm) == (
        5e-4,
        60,
        None,
    )
    assert config.data.partial is True
    assert config.evaluation.frame_counts == (4, 6)


def test_null_switches_clipping_and_weights_off(mapping: dict[str, Any]) -> None:
    put(mapping, "training.clip_norm", None)
    put(mapping, "network.weights", None)
    config = read_config(mapping)
    assert config.training.clip_norm is None
    assert config.network.weights is None


@pytest.mark.parametrize(
    ("frames", "batch_size", "multiple"),
    [([4, 8, 16], 30, 4), ([4, 16], 6, 4), ([8, 16], 3, 2), ([4, 6], 16, 3)],
)
def test_the_authors_shift_wants_batches_that_fill_whole_pieces(
    mapping: dict[str, Any], frames: list[int], batch_size: int, multiple: int
) -> None:
    put(mapping, "experiments.ffn.train_frames", frames)
    put(mapping, "experiments.ffn.training_shift", "authors")
    put(mapping, "training.batch_size", batch_size)
    with pytest.raises(
        UserError, match=rf"training\.batch_size is {batch_size}; .* a multiple of {multiple}$"
    ):
        read_config(mapping)
    put(mapping, "training.batch_size", 8 * multiple)
    read_config(mapping)
    if multiple > 1:  # what is normalised together was on one GPU, and shifted together
        put(mapping, "training.batchnorm_clips", 1)
        with pytest.raises(UserError, match=rf"training\.batchnorm_clips is 1; .* a multiple of {multiple}$"):
            read_config(mapping)


def test_switches_of_the_authors_code_are_settings_of_the_run(mapping: dict[str, Any]) -> None:
    ours = training_settings(read_config(mapping), "ffn", 0)
    assert (ours["training_shift"], ours["adapter_init"]) == ("per_clip", "near_zero")
    put(mapping, "experiments.ffn.training_shift", "authors")
    put(mapping, "experiments.ffn.adapter_init", "authors")
    theirs = training_settings(read_config(mapping), "ffn", 0)
    assert (theirs["training_shift"], theirs["adapter_init"]) == ("authors", "authors")


def test_separate_training_is_three_experiments_in_a_row(mapping: dict[str, Any]) -> None:
    mapping["table"].append({"method": "TSM-ST", "experiments": {4: "tsm_4f", 8: "tsm_8f", 16: "tsm"}})
    row = read_config(mapping).table[-1]
    assert [row.experiment_at(frames) for frames in (4, 8, 16)] == ["tsm_4f", "tsm_8f", "tsm"]


def test_training_settings_hold_what_decides_a_result_and_nothing_else(mapping: dict[str, Any]) -> None:
    config = read_config(mapping)
    tsm, ffn = (training_settings(config, name, 3) for name in ("tsm", "ffn"))
    assert tsm["seed"] == 3
    assert "distillation_weight" not in tsm
    assert ffn["distillation_weight"] == 1.0
    for key, value in (
        ("runtime.workers", 0),
        ("runtime.threads", 1),
        ("data.videos", "elsewhere"),
        ("experiments.ffn.distillation_weight", 0.5),
        ("evaluation.frame_counts", [4]),
        ("dataset", "other"),
    ):
        put(mapping, key, value)
    mapping["table"] = [{"method": "TSM", "experiments": "tsm"}]
    assert training_settings(read_config(mapping), "tsm", 3) == tsm
    assert training_settings(read_config(mapping), "ffn", 3) != ffn
