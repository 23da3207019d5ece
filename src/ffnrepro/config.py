"""The configuration: frozen dataclasses, and the one function that reads the mapping.

`read_config` refuses unknown, missing, mistyped and inconsistent keys with one line that names the key and the
legal values, before any job starts. Nothing else in the package reads the mapping, and no class of the library
takes a `Config`: each is given plain keyword arguments.
"""

import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from ffnrepro.errors import UserError

MAX_FRAMES = 256
"""No clip of the data sets is longer than this at the rates that are used; more is a slip of the keyboard."""

DEPTHS = (10, 18, 50, 101)


@dataclass(frozen=True)
class DataConfig:
    """Where the labels and videos are, and the size of the pictures."""

    labels: str
    videos: str
    partial: bool
    layout: Literal["videos", "frames"]
    verify: Literal["decode", "packets"]
    watch: Literal["names", "stat", "none"]
    index_shards: int
    max_excluded: float
    max_bad_fraction: float
    short_side: int
    crop_size: int


@dataclass(frozen=True)
class NetworkConfig:
    """The ResNet that all experiments share."""

    depth: int
    width: int
    stem: int
    dropout: float
    weights: str | None
    weights_sha256: str | None


@dataclass(frozen=True)
class ExperimentConfig:
    """One network that is trained: its method and its training frame counts."""

    method: Literal["tsm", "ffn"]
    train_frames: tuple[int, ...]
    depth: int | None = None
    distillation_weight: float = 1.0
    training_shift: Literal["per_clip", "authors"] = "per_clip"
    adapter_init: Literal["near_zero", "authors"] = "near_zero"


FFN_SWITCHES = ("distillation_weight", "training_shift", "adapter_init")
"""Keys of an experiment that are for the method ffn alone."""


@dataclass(frozen=True)
class TrainingConfig:
    """The recipe."""

    epochs: int
    batch_size: int
    gpus: int
    learning_rate: float
    schedule: Literal["step", "cosine"]
    milestones: tuple[int, ...]
    warmup_epochs: int
    momentum: float
    weight_decay: float
    clip_norm: float | None
    batchnorm_clips: int | None
    crop: Literal["multi_scale", "random"]
    precision: Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True)
class EvaluationConfig:
    """Which videos, at which frame counts."""

    split: Literal["train", "validation", "test"]
    frame_counts: tuple[int, ...]
    batch_size: int


@dataclass(frozen=True)
class TableRowConfig:
    """A row of the table: one experiment for all frame counts, or one for each (`TSM-ST`)."""

    method: str
    experiments: str | dict[int, str]

    def experiment_at(self, frames: int) -> str:
        """Name of the experiment that is evaluated at `frames` frames."""
        return self.experiments if isinstance(self.experiments, str) else self.experiments[frames]


@dataclass(frozen=True)
class RuntimeConfig:
    """How the work is run; nothing here changes a number beyond rounding, but for CUDA's `training.precision`."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    threads: int
    workers: int
    cache_decoded: bool
    save_minutes: float
    time_budget: float | None


@dataclass(frozen=True)
class Config:
    """The whole configuration."""

    dataset: str
    seeds: tuple[int, ...]
    data: DataConfig
    network: NetworkConfig
    experiments: dict[str, ExperimentConfig]
    training: TrainingConfig
    evaluation: EvaluationConfig
    table: tuple[TableRowConfig, ...]
    runtime: RuntimeConfig

    @property
    def own_weights(self) -> str | None:
        """Path of the user's own pretrained weights."""
        return None if self.network.weights == "imagenet" else self.network.weights

    def depth_of(self, experiment: str) -> int:
        """Depth of an experiment's ResNet: its own, or the one of `network`."""
        return self.experiments[experiment].depth or self.network.depth


def read_files(paths: Sequence[Path]) -> dict[str, Any]:
    """The mapping of configuration files; a later one changes the keys that it names, as Snakemake has it.

    Raises:
        UserError: a file is not there or is no YAML mapping.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{path}: cannot be read ({error})".replace("\n", " ")) from error
        if not isinstance(mapping, dict):
            raise UserError(f"{path}: no mapping of keys")
        _merge(merged, mapping)
    return merged


def _merge(into: dict[str, Any], mapping: Mapping[str, Any]) -> None:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def read_config(mapping: Mapping[str, Any]) -> Config:
    """Check a configuration mapping and return it typed.

    Raises:
        UserError: an unknown, missing, mistyped or inconsistent key; one line with the key and the mend.
    """
    config: Config = _read(Config, mapping, "")
    _check(config)
    return config


def _read(kind: Any, value: Any, key: str) -> Any:
    """Convert `value`, found at the dotted `key`, to the annotated type `kind`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, key)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"config: {key} is {value!r}; it must be one of {', '.join(map(str, arguments))}")
        return value
    if origin in (types.UnionType, typing.Union):
        return _read_union(arguments, value, key)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"config: {key} is {value!r}; it must be a list, such as [{value}]")
        return tuple(_read(arguments[0], item, f"{key}[{i}]") for i, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, Mapping) or not value:
            raise UserError(f"config: {key} is {value!r}; it must be a mapping with at least one entry")
        # On the command line (`--config`) the keys of a mapping arrive as text.
        keys = {k: int(k) if arguments[0] is int and str(k).isdecimal() else k for k in value}
        return {
            _read(arguments[0], keys[k], f"{key}: the entry {k!r}"): _read(arguments[1], v, f"{key}.{k}")
            for k, v in value.items()
        }
    value = _plain(kind, value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise UserError(f"config: {key} is {value!r}; it must be {_TYPE_NAMES[kind]}")
    return value


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _plain(kind: Any, value: Any) -> Any:
    """A number or a truth that came as text: YAML 1.1 reads 5e-4 as text, and `--config a='{b: 1}'` reads all so."""
    if not isinstance(value, str):
        return value
    try:
        return {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
    except (KeyError, ValueError):
        return value


def _read_union(kinds: tuple[Any, ...], value: Any, key: str) -> Any:
    if value is None or value == "null":
        if type(None) in kinds:
            return None
        raise UserError(f"config: {key} is empty; give it a value")
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds:  # a mapping goes to the mapping's type, everything else to the plain one
        if (typing.get_origin(kind) is dict) == isinstance(value, Mapping):
            return _read(kind, value, key)
    return _read(kinds[0], value, key)


def _read_dataclass(kind: Any, value: Any, key: str) -> Any:
    where = key or "the configuration"
    if not isinstance(value, Mapping):
        raise UserError(f"config: {where} is {value!r}; it must be a mapping")
    types_of = typing.get_type_hints(kind)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in types_of:
            near = difflib.get_close_matches(str(name), types_of, n=1)
            mend = f"did you mean {prefix}{near[0]}?" if near else f"legal: {', '.join(types_of)}"
            raise UserError(f"config: {prefix}{name} is not a key; {mend}")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name, field in fields.items():
        if name not in value and field.default is dataclasses.MISSING:
            raise UserError(f"config: {prefix}{name} is missing; config/README.md describes it")
    return kind(**{name: _read(types_of[name], item, f"{prefix}{name}") for name, item in value.items()})


def _check(config: Config) -> None:
    """Refuse values that have the right type and make no sense, alone or together."""
    for section in ("data", "network", "training", "evaluation", "runtime"):
        for name, value in vars(getattr(config, section)).items():
            if name != "frame_counts":  # they have a check and words of their own
                _check_sign(f"{section}.{name}", name, value)
    seeds = list(config.seeds)
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(
            f"config: seeds is {seeds}; give different whole numbers of 0 or more, such as [0, 1, 2]"
        )
    _check_depth("network.depth", config.network.depth)
    if not config.network.dropout < 1:
        raise UserError(f"config: network.dropout is {config.network.dropout}; it must be below 1")
    if config.network.stem % 2 == 0:
        raise UserError(f"config: network.stem is {config.network.stem}; a kernel size is odd, such as 7")
    if config.network.width % 8:
        raise UserError(
            f"config: network.width is {config.network.width}; it must be a multiple of 8 (the shift takes eighths)"
        )
    for name in ("max_excluded", "max_bad_fraction"):
        if getattr(config.data, name) > 1:
            raise UserError(
                f"config: data.{name} is {getattr(config.data, name)}; it is a fraction, from 0 to 1, such as 0.01"
            )
    if config.data.crop_size > config.data.short_side:
        raise UserError(
            f"config: data.crop_size {config.data.crop_size} exceeds data.short_side {config.data.short_side}; "
            "the crop is cut out of a picture whose shorter side is data.short_side"
        )
    late = [epoch for epoch in config.training.milestones if epoch >= config.training.epochs]
    if config.training.schedule == "step" and late:
        raise UserError(
            f"config: training.milestones holds {late[0]}, which training.epochs {config.training.epochs} never reaches; "
            "lower the milestones with the epochs"
        )
    if config.training.warmup_epochs >= config.training.epochs:
        raise UserError(
            f"config: training.warmup_epochs {config.training.warmup_epochs} must be below training.epochs "
            f"{config.training.epochs}"
        )
    if config.training.batch_size % config.training.gpus:
        raise UserError(
            f"config: training.batch_size is {config.training.batch_size}; it must be a multiple of training.gpus "
            f"{config.training.gpus}, which share each batch"
        )
    clips = config.training.batchnorm_clips
    if clips is not None and config.training.gpus > 1:
        raise UserError(
            "config: training.batchnorm_clips is for one GPU; with several each normalises its own part of a batch"
        )
    if clips is not None and config.training.batch_size % clips:
        raise UserError(
            f"config: training.batchnorm_clips is {clips}; training.batch_size {config.training.batch_size} must be a "
            "multiple of it"
        )
    for name, experiment in config.experiments.items():
        _check_experiment(name, experiment)
        _check_weights(name, config)
        _check_authors_shift(name, experiment, config.training)
    check_frames("evaluation.frame_counts", config.evaluation.frame_counts)
    _check_table(config)


_MAY_BE_ZERO = {
    "dropout",
    "milestones",
    "warmup_epochs",
    "momentum",
    "weight_decay",
    "workers",
    "max_excluded",
    "max_bad_fraction",
}


def _check_sign(key: str, name: str, value: Any) -> None:
    values = value if isinstance(value, tuple) else (value,)
    for item in values:
        if isinstance(item, bool) or not isinstance(item, int | float):
            continue
        if item < 0 or (item == 0 and name not in _MAY_BE_ZERO):
            least = "0 or more" if name in _MAY_BE_ZERO else "more than 0"
            raise UserError(f"config: {key} is {item:g}; it must be {least}")


def _check_depth(key: str, depth: int) -> None:
    if depth not in DEPTHS:
        raise UserError(f"config: {key} is {depth}; it must be one of {', '.join(map(str, DEPTHS))}")


def check_frames(key: str, frame_counts: tuple[int, ...]) -> None:
    """Refuse frame counts that make no sense, that stand twice or are out of order.

    Raises:
        UserError: names `key` and the mend.
    """
    if not frame_counts:
        raise UserError(f"config: {key} is empty; give at least one frame count, such as [16]")
    for frames in frame_counts:
        if not 1 <= frames <= MAX_FRAMES:
            raise UserError(f"config: {key} holds {frames}; a frame count lies between 1 and {MAX_FRAMES}")
    if list(frame_counts) != sorted(set(frame_counts)):
        raise UserError(
            f"config: {key} is {list(frame_counts)}; write each frame count once, in rising order: "
            f"{sorted(set(frame_counts))}"
        )


def _check_experiment(name: str, experiment: ExperimentConfig) -> None:
    key = f"experiments.{name}"
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"config: {key}: use letters, digits, _ and - only: the name becomes a folder")
    if experiment.depth is not None:
        _check_depth(f"{key}.depth", experiment.depth)
    check_frames(f"{key}.train_frames", experiment.train_frames)
    if experiment.distillation_weight < 0:
        raise UserError(
            f"config: {key}.distillation_weight is {experiment.distillation_weight}; it must be 0 or more"
        )
    count = len(experiment.train_frames)
    if experiment.method == "tsm" and count != 1:
        raise UserError(
            f"config: {key}.train_frames is {list(experiment.train_frames)}; tsm trains at one frame count, "
            "ffn at several"
        )
    if experiment.method == "tsm":
        for switch in FFN_SWITCHES:
            if getattr(experiment, switch) != getattr(ExperimentConfig, switch):
                raise UserError(f"config: {key}.{switch} is for the method ffn; take it out")
    if experiment.method == "ffn" and count < 2:
        raise UserError(
            f"config: {key}.train_frames is {list(experiment.train_frames)}; ffn trains at two frame counts or "
            "more, such as [4, 8, 16]"
        )


def _check_authors_shift(name: str, experiment: ExperimentConfig, training: TrainingConfig) -> None:
    if experiment.training_shift != "authors":
        return
    longest = experiment.train_frames[-1]
    # The batch sizes at which batch_size * frames is a multiple of the longest clip, for each frame count.
    multiple = math.lcm(*(longest // math.gcd(longest, frames) for frames in experiment.train_frames))
    together = training.batchnorm_clips or training.batch_size // training.gpus
    key = "batch_size" if training.batchnorm_clips is None else "batchnorm_clips"
    per_gpu = " a GPU" if training.gpus > 1 else ""
    if together % multiple:
        raise UserError(
            f"config: training.{key} is {together}{per_gpu}; experiments.{name}.training_shift: authors shifts pieces of "
            f"{longest} frames, which clips of {list(experiment.train_frames)} frames fill only where that is a multiple "
            f"of {multiple}"
        )


def _check_weights(name: str, config: Config) -> None:
    """Refuse ImageNet weights for a network that they do not fit."""
    depth, network = config.depth_of(name), config.network
    if network.weights == "imagenet" and (depth == 10 or network.width != 64 or network.stem != 7):
        raise UserError(
            f"config: network.weights is imagenet, which does not fit experiments.{name} (depth {depth}, width "
            f"{network.width}, stem {network.stem}); set network.weights: null, or depth 18, 50 or 101, width 64, stem 7"
        )
    if config.own_weights and network.weights_sha256 is None and depth == 10:
        raise UserError("config: network.weights_sha256 is null; give the sha256 of network.weights")


def _check_table(config: Config) -> None:
    if not config.table:
        raise UserError("config: table is empty; give at least one row")
    methods = [row.method for row in config.table]
    for i, row in enumerate(config.table):
        key = f"table[{i}]"
        if methods.count(row.method) > 1:
            raise UserError(f"config: {key}.method {row.method!r} stands twice; give each row its own name")
        if isinstance(row.experiments, dict):
            missing = [n for n in config.evaluation.frame_counts if n not in row.experiments]
            extra = [n for n in row.experiments if n not in config.evaluation.frame_counts]
            if missing or extra:
                raise UserError(
                    f"config: {key}.experiments names {list(row.experiments)}; it must name each of "
                    f"evaluation.frame_counts {list(config.evaluation.frame_counts)} and no other"
                )
        for frames in config.evaluation.frame_counts:
            name = row.experiment_at(frames)
            if name not in config.experiments:
                raise UserError(
                    f"config: {key}.experiments names {name!r}, which is not in experiments "
                    f"({', '.join(config.experiments)})"
                )


def evaluation_settings(config: Config, experiment: str, frames: int) -> dict[str, Any]:
    """What decides an evaluation beside the network and the data, as plain values."""
    return {
        "method": config.experiments[experiment].method,
        "frames": frames,
        "split": config.evaluation.split,
        "short_side": config.data.short_side,
        "crop_size": config.data.crop_size,
    }


def training_settings(config: Config, experiment: str, seed: int) -> dict[str, Any]:
    """What decides an experiment's result beside its data and pretrained weights, as plain values.

    Nothing else of the configuration reaches a training rule, so nothing else can rerun it.
    """
    own = config.experiments[experiment]
    settings: dict[str, Any] = {
        "method": own.method,
        "train_frames": list(own.train_frames),
        "seed": seed,
        "short_side": config.data.short_side,
        "crop_size": config.data.crop_size,
        "network": {
            "depth": own.depth or config.network.depth,
            "width": config.network.width,
            "stem": config.network.stem,
            "dropout": config.network.dropout,
        },
        "training": {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in dataclasses.asdict(config.training).items()
        },
    }
    if config.training.schedule == "cosine":
        settings["training"]["milestones"] = []  # not used: they shall neither retrain nor be recorded
    if own.method == "ffn":
        settings |= {switch: getattr(own, switch) for switch in FFN_SWITCHES}
    return settings
