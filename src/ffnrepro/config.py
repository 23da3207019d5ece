"""The configuration: one model for each section, and the functions that read and check it.

Each key is declared once, here or in `recipe/network.py` and `recipe/methods/`, with its type, bounds, default and
description; `python -m tests.keys_table` prints the table of keys in config/README.md. The declared defaults are the
paper's recipe and never change: a run's cache key is computed from the settings that differ from them.

Each key is checked whenever a configuration is read. `check_experiments` checks combinations of keys, but only for
the experiments of the requested tables, so that a mistake in another table stops nothing.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ffnrepro.errors import UserError
from ffnrepro.methods import CLASSES, AnyMethod, Imported
from ffnrepro.recipe.methods.ffn import Ffn
from ffnrepro.recipe.methods.method import Method
from ffnrepro.recipe.network import Depth, NetworkSettings
from ffnrepro.settings import FrameCounts, Rising, Settings, listed_values, read_settings, refuse_unknown_keys

logger = logging.getLogger(__name__)

IMAGENET = {18: "f37072fd", 50: "0676ba61", 101: "63fe2227"}
"""First digits of the SHA-256 of torchvision's ImageNet-1k V1 weights, by depth."""

Fraction = Annotated[float, Field(ge=0, le=1)]


ExperimentName = Annotated[str, Field(pattern="^[A-Za-z0-9_-]+$")]
TableName = Annotated[str, Field(pattern="^[a-z0-9_]+$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{8,64}$")]


class DataSettings(Settings):
    """Where the labels and videos are, and the size of the frames."""

    labels: str
    """Folder of the label files, as released."""
    videos: str
    """Folder of the videos."""
    partial: bool = False
    """`true`: the labels are deliberately only a part of the data set; `false`: something-something-v1 and -v2 must
    have the official numbers of classes and of training, validation and test videos."""
    layout: Literal["videos", "frames"] = "videos"
    """`videos`: one file per video; `frames`: one folder of JPEG or PNG frames per video, as in Something-Something V1."""
    verify: Literal["decode", "packets"] = "decode"
    """`decode`: decode every frame of each video; `packets`: decode only the first frame, and read the rest undecoded."""
    watch: Literal["names", "stat", "none"] = "names"
    """Which changes make the index examine videos again: `names`: a file was added, removed or renamed (or the first file
    of a shard changed its size); `stat`: also when the size or time of any file changed (slow on a network file system);
    `none`: only a change of `data.videos`."""
    index_shards: PositiveInt = 64
    """Number of jobs that index the videos; a new video reruns one of them. 64 suits Something-Something; 1 or 2
    suit a few hundred videos."""
    cache: Literal["none", "jpeg"] = "none"
    """`jpeg`: decode each video once, keep its frames as JPEG, and train and evaluate on these; `none`: decode the videos
    each time (docs/performance.md)."""
    cache_folder: str = "cache"
    """Folder of the cached frames, on a disk that all jobs can access; Something-Something V2 needs 165 to 350 GB."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 90
    """JPEG quality of the cached frames: a frame of 427x240 takes about 18 kB at 80, 27 kB at 90 and 39 kB at 95."""
    max_excluded: Fraction = 0.005
    """Fraction of the labelled videos that may be unusable; if there are more, the workflow stops with a count of each
    reason and the most likely fix."""
    max_bad_fraction: Fraction = 0.01
    """Fraction of an epoch's samples that training may leave out because their files became unreadable after
    indexing; any value above 0 allows at least one sample."""
    short_side: PositiveInt = 256
    """Length of the shorter side in pixels, to which frames are resized in evaluation and for `training.crop: random`
    (section 4.1)."""
    crop_size: PositiveInt = 224
    """Height and width of the clips in pixels (section 4.1); at most `data.short_side`, from which the crop
    is cut."""

    @field_validator("crop_size")
    @classmethod
    def _check_crop_size(cls, crop_size: int, info: ValidationInfo) -> int:
        short_side = info.data.get("short_side", crop_size)
        if crop_size > short_side:
            raise ValueError(f"it must be at most data.short_side {short_side}, from which the crop is cut")
        return crop_size


class NetworkConfig(NetworkSettings):
    """The ResNet of all experiments, and the pretrained weights that it starts from."""

    weights: str | None = "imagenet"
    """`imagenet`: torchvision's ImageNet-1k V1 weights, downloaded and checked by hash; or the path of a file:
    a ResNet with torchvision's keys, or a TSM (ours, the authors', mit-han-lab's or mmaction2's), whose backbone is taken;
    or `null`: none."""
    weights_sha256: Sha256 | None = None
    """Expected SHA-256 of your own weights file, or at least its first 8 hexadecimal digits; `null`: not checked."""


class TrainingSettings(Settings):
    """The training recipe (section 4.1 and the authors' scripts)."""

    epochs: PositiveInt = 50
    """Passes over the training videos; an incomplete last batch is dropped."""
    batch_size: PositiveInt = 32
    """Videos per step, across all GPUs; FFN takes one clip per frame count from each video."""
    gpus: PositiveInt = 1
    """GPUs of one machine that share each batch, with one process per GPU. BatchNorm sees `batch_size / gpus` clips, so
    this changes the result."""
    learning_rate: PositiveFloat = 0.01
    """Learning rate of convolutions and normalisation; multiplied by 5 for the classifier's weight, by 10 for
    its bias, and by 2 for biases of convolutions."""
    schedule: Literal["step", "cosine"] = "step"
    """`step`: the learning rate is multiplied by 0.1 at each of `training.milestones`; `cosine`: it falls to
    zero at the end."""
    milestones: Annotated[tuple[NonNegativeInt, ...], Rising] = (20, 40)
    """Epochs after which `schedule: step` lowers the learning rate; those at or beyond `training.epochs` are dropped
    with a warning."""
    warmup_epochs: NonNegativeInt = 0
    """Number of epochs at the start during which the learning rate rises linearly; less than `training.epochs`."""
    momentum: NonNegativeFloat = 0.9
    """Momentum of SGD."""
    weight_decay: NonNegativeFloat = 0.0005
    """Weight decay of SGD; not applied to biases and normalisation."""
    clip_norm: PositiveFloat | None = 20.0
    """Largest norm of the gradient, which is clipped after unscaling; `null`: no clipping, as in the published run."""
    micro_batch: PositiveInt | None = None
    """Number of clips that go through the network at a time. A step is split into such groups to save memory, and
    BatchNorm normalises each group by itself. 16 does on one GPU what the published run did on two. `null`: all clips of
    a GPU."""
    crop: Literal["multi_scale", "random"] = "multi_scale"
    """`multi_scale`: one of 4 scales and 13 positions, as published; `random`: a plain random crop."""
    flip: bool = False
    """`true`: a random half of the training samples is flipped horizontally, as published for data sets other than
    Something-Something."""
    precision: Literal["float16", "bfloat16", "float32"] = "float16"
    """Precision of the forward pass on CUDA: `float16` with loss scaling, as published, `bfloat16` or
    `float32`. CPU and MPS always compute in float32."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_earlier_name(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "batchnorm_clips" in value:
            raise ValueError("batchnorm_clips is now micro_batch")
        return value

    def effective(self) -> Self:
        """A copy in which each value that has no effect is replaced by its default.

        Milestones that are never reached are dropped; a cosine schedule uses none.
        """
        milestones = tuple(epoch for epoch in self.milestones if epoch < self.epochs)
        if self.schedule == "cosine":
            milestones = type(self).model_fields["milestones"].default
        divided = self.micro_batch is not None and self.micro_batch < self.batch_size // self.gpus
        micro_batch = self.micro_batch if divided else None
        return self.model_copy(update={"milestones": milestones, "micro_batch": micro_batch})


class TrainingConfig(TrainingSettings):
    """The training recipe, and how a training uses memory."""

    recompute: bool = False
    """Activation checkpointing: keep only the input of each residual block, and recompute the rest in the backward pass.
    This takes less memory and more time, and gives the same numbers, so a training may continue with another value."""


class Experiment(Settings):
    """One network to train or to import; in the configuration, the settings of its method are on the same level as these keys."""

    method: AnyMethod
    depth: Depth | None = None
    """Depth of this experiment's ResNet; `null`: `network.depth`."""
    start: str | None = None
    """Name of an experiment: the training starts from its network of the same seed and depth (for `ffn`, also of the same
    frame counts and components); `null`: from `network.weights`."""
    training: dict[str, Any] = Field(default={})
    """Keys of `training` that differ for this experiment, such as `{epochs: 30}`; any key except `gpus`."""

    @model_validator(mode="before")
    @classmethod
    def _gather_method(cls, value: Any) -> Any:
        """Collect the settings of the method, which the configuration has on the same level as the experiment's own keys."""
        if not isinstance(value, Mapping) or isinstance(value.get("method"), Method):
            return value
        own = {key: item for key, item in value.items() if key in cls.model_fields and key != "method"}
        method = {key: item for key, item in value.items() if key not in own}
        chosen = CLASSES.get(str(value.get("method")))
        if chosen is not None:
            refuse_unknown_keys(value, dict.fromkeys([*chosen.model_fields, *cls.model_fields]))
        return own | {"method": method}

    @model_validator(mode="after")
    def _check_import(self) -> Self:
        if isinstance(self.method, Imported) and (self.start or self.training):
            raise ValueError(
                "method checkpoint imports a network and trains nothing; remove start and training"
            )
        return self


class EvaluationSettings(Settings):
    """What is evaluated."""

    split: Literal["train", "validation", "test"] = "validation"
    """Split that is evaluated; the published figures are for `validation`."""
    batch_size: PositiveInt = 32
    """Number of clips that go through the network at a time; it changes results only by rounding."""
    any_frame: FrameCounts = tuple(range(2, 21))
    """Frame counts of the curves `results/{table}_curve.csv`, in ascending order. For curves, a batch has a quarter of
    `evaluation.batch_size` videos."""


class PublishedFigures(Settings):
    """The published figures that a row is compared with: rows of resources/published.csv."""

    method: str
    """Method of resources/published.csv whose figures are shown next to the row."""
    setting: str | None = None
    """Setting of resources/published.csv, such as an ablation or a depth; `null`: the plain method."""


class Row(Settings):
    """A row of a table."""

    label: str
    """Name of the row, unique in its table."""
    # On the command line (`--config`) the keys of a mapping arrive as text.
    experiments: str | dict[Annotated[int, Field(strict=False)], str] | None = None
    """Name of an experiment, or one name for each of the table's frame counts, such as `{4: tsm_4f, 8: tsm_8f,
    16: tsm}`; `null`: the row is an `ensemble`."""
    ensemble: Annotated[tuple[str, ...], Field(min_length=2)] | None = None
    """Names of experiments whose class probabilities are averaged, with each network evaluated at the frame count of the
    column (Table 1); `null`: the row has `experiments`."""
    compare_with: str | None = None
    """Label of the row that this row is compared with on the same videos (Table 5); `null`: the first row of the table."""
    published: PublishedFigures | None = None

    @model_validator(mode="after")
    def _check_networks(self) -> Self:
        if (self.experiments is None) == (self.ensemble is None):
            raise ValueError(f"the row {self.label!r} needs either experiments or ensemble")
        if self.ensemble and len(set(self.ensemble)) < len(self.ensemble):
            raise ValueError(f"ensemble of the row {self.label!r} names an experiment twice; name each once")
        return self

    def experiments_at(self, frames: int) -> tuple[str, ...]:
        """Names of the experiments that are evaluated at `frames` frames: one, or those of the ensemble."""
        if self.ensemble is not None:
            return self.ensemble
        assert self.experiments is not None
        return (self.experiments if isinstance(self.experiments, str) else self.experiments[frames],)


class Table(Settings):
    """A table of results."""

    frame_counts: FrameCounts
    """Frame counts of evaluation, one column each, in ascending order; any frame count works (Table 7)."""
    rows: Annotated[tuple[Row, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_rows(self) -> Self:
        labels = [row.label for row in self.rows]
        for i, row in enumerate(self.rows):
            if labels.count(row.label) > 1:
                raise ValueError(f"the label {row.label!r} appears twice; give each row its own label")
            if row.compare_with is not None and row.compare_with not in {*labels} - {row.label}:
                raise ValueError(
                    f"rows[{i}].compare_with is {row.compare_with!r}; it must be the label of another row of the table"
                )
            if isinstance(row.experiments, dict) and sorted(row.experiments) != list(self.frame_counts):
                raise ValueError(
                    f"rows[{i}].experiments names the frame counts {list(row.experiments)}; it must name each of "
                    f"frame_counts {list(self.frame_counts)} and no other"
                )
        return self


class ReportSettings(Settings):
    """What the report shows."""

    tables: Annotated[tuple[str, ...], Field(min_length=1)] = ("table1",)
    """Tables that `results/report.html` shows, and whose networks `results/diagnosis.json` checks."""


class RuntimeSettings(Settings):
    """How jobs are run. Nothing here changes results by more than rounding, except that only CUDA uses `training.precision`."""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """`auto`: cuda, else mps, else cpu (but never the CPU in a SLURM job: set `cpu` to use it there). `run.json`
    records the device, because CPU and MPS train in float32."""
    threads: PositiveInt = 8
    """CPU cores of a training or evaluation job; with several GPUs, each process uses all of these cores."""
    workers: NonNegativeInt = 8
    """Processes of a job that decode videos, shared by its GPUs; 0: the training process itself decodes."""
    cache_decoded: bool = False
    """Keep decoded videos in memory; only for data sets of a few thousand small videos."""
    save_minutes: PositiveFloat = 10.0
    """Minutes between saves of a training's state, which is also saved after each epoch and when the training is
    stopped."""
    time_budget: PositiveFloat | None = None
    """Minutes after which a training saves, stops and says "unfinished, run again" (exit code 75); `null`: no limit,
    but in a SLURM job a training stops shortly before the job ends."""


class Config(Settings):
    """The whole configuration."""

    dataset: str
    """Name of the data set. If resources/published.csv has figures for this name, the tables show them."""
    seeds: Annotated[tuple[NonNegativeInt, ...], Field(min_length=1), Rising] = (0,)
    """Seeds of initialisation, order, frames, crops and dropout. Each network is trained once per seed; with several
    seeds, the tables show the mean and the sample standard deviation (n - 1)."""
    data: DataSettings
    network: NetworkConfig = NetworkConfig()
    experiments: Annotated[dict[ExperimentName, Experiment], Field(min_length=1)]
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationSettings = EvaluationSettings()
    tables: Annotated[dict[TableName, Table], Field(min_length=1)]
    report: ReportSettings = ReportSettings()
    runtime: RuntimeSettings = RuntimeSettings()

    @property
    def own_weights(self) -> str | None:
        """Path of the user's own pretrained weights."""
        return None if self.network.weights == "imagenet" else self.network.weights

    @property
    def imports(self) -> dict[str, Path]:
        """The file of each experiment whose network is imported."""
        methods = {name: experiment.method for name, experiment in self.experiments.items()}
        return {name: Path(method.path) for name, method in methods.items() if isinstance(method, Imported)}

    def network_of(self, experiment: str) -> NetworkSettings:
        """Settings of an experiment's network."""
        settings = self.network.model_dump(include=set(NetworkSettings.model_fields))
        return NetworkSettings.model_validate(
            settings | {"depth": self.experiments[experiment].depth or self.network.depth}
        )

    def training_of(self, experiment: str) -> TrainingSettings:
        """Settings of an experiment's training, without those that have no effect on its numbers."""
        recipe = self._all_training_of(experiment).model_dump(include=set(TrainingSettings.model_fields))
        return TrainingSettings.model_validate(recipe).effective()

    def recompute_of(self, experiment: str) -> bool:
        """Whether an experiment's training recomputes activations in the backward pass."""
        return self._all_training_of(experiment).recompute

    def _all_training_of(self, experiment: str) -> TrainingConfig:
        changes = self.experiments[experiment].training
        return TrainingConfig.model_validate(self.training.model_dump() | changes)

    def experiments_of(self, table: str) -> tuple[str, ...]:
        """Names of the experiments of a table, each once.

        Raises:
            UserError: a row names an experiment that does not exist.
        """
        names: dict[str, None] = {}
        for i, row in enumerate(self.tables[table].rows):
            key = f"tables.{table}.rows[{i}].{'ensemble' if row.ensemble else 'experiments'}"
            for name in (name for n in self.tables[table].frame_counts for name in row.experiments_at(n)):
                self._check_name(name, key)
                names[name] = None
        return tuple(names)

    def _check_name(self, name: str, key: str) -> None:
        if name not in self.experiments:
            raise UserError(
                f"config: {key} names {name!r}, which is not in experiments ({', '.join(self.experiments)})"
            )

    def _weights_of(self, experiment: str) -> dict[str, Any]:
        """Settings that determine which weights a network has; both networks of a `start` have the same."""
        method, depth = self.experiments[experiment].method, self.network_of(experiment).depth
        if isinstance(method, Imported):
            # The rest is not known before the file is read (`imports.check_imports`).
            return {"depth": depth}
        if not isinstance(method, Ffn):
            return {"kind": method.family, "depth": depth}
        switches = {"train_frames", "weight_sharing", "specialized_normalization", "weight_alteration"}
        return {"kind": method.family, "depth": depth, **method.model_dump(mode="json", include=switches)}

    def chain_of(self, experiment: str) -> tuple[str, ...]:
        """Names of an experiment, of the experiment that it starts from, and so on.

        Raises:
            UserError: a `start` does not exist, has a network with other weights (kind, depth, frame counts), or leads back to an earlier experiment.
        """
        chain = [experiment]
        while (start := self.experiments[chain[-1]].start) is not None:
            key = f"experiments.{chain[-1]}.start"
            self._check_name(start, key)
            if start in chain:
                raise UserError(
                    f"config: {key} is {start!r}, which makes a cycle: {' -> '.join([*chain, start])}; set start of one of them to null"
                )
            of_start, own = (self._weights_of(name) for name in (start, chain[-1]))
            if differ := [name for name in own if name in of_start and of_start[name] != own[name]]:
                raise UserError(
                    f"config: {key} is {start!r}, whose network has {listed_values(of_start, differ)}, but the network of {chain[-1]} "
                    f"has {listed_values(own, differ)}; both must be the same"
                )
            chain.append(start)
        return tuple(chain)


def read_files(paths: Sequence[Path]) -> dict[str, Any]:
    """Read and merge configuration files; a later file overrides the keys that it contains, as in Snakemake.

    Raises:
        UserError: a file does not exist or is not a YAML mapping.
    """
    merged: dict[str, Any] = {}
    for path in paths:
        try:
            mapping = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, yaml.YAMLError) as error:
            raise UserError(f"{path}: cannot be read ({error})".replace("\n", " ")) from error
        if not isinstance(mapping, dict):
            raise UserError(f"{path}: not a mapping; write keys and their values, such as seeds: [0]")
        _merge(merged, mapping)
    return merged


def _merge(into: dict[str, Any], mapping: Mapping[str, Any]) -> None:
    for key, value in mapping.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def read_config(mapping: Mapping[str, Any]) -> Config:
    """Read a configuration and check each key.

    Raises:
        UserError: an unknown, missing, mistyped or impossible value, in one line with its key and how to fix it.
    """
    evaluation = mapping.get("evaluation")
    if "table" in mapping or (isinstance(evaluation, Mapping) and "frame_counts" in evaluation):
        raise UserError(
            "config: table and evaluation.frame_counts are keys of version 0.1.0; write tables: {table1: {frame_counts: [4, 8, 16], "
            "rows: [{label: TSM, experiments: tsm, published: {method: TSM}}]}}"
        )
    config = read_settings(Config, mapping)
    for name, experiment in config.experiments.items():
        key = f"experiments.{name}.training"
        read_settings(TrainingConfig, experiment.training, key=key)
        if "gpus" in experiment.training:
            raise UserError(f"config: {key}.gpus is not a key; all experiments share training.gpus")
    for name in config.report.tables:
        if name not in config.tables:
            raise UserError(
                f"config: report.tables names {name!r}, which is not in tables ({', '.join(config.tables)})"
            )
    return config


def check_experiments(config: Config, names: Iterable[str]) -> None:
    """Check combinations of keys, for some experiments and those that they start from.

    Logs a warning about milestones that are never reached.

    Raises:
        UserError: settings that do not fit together, or two experiments with the same settings.
    """
    found: dict[Any, str] = {}
    for name in dict.fromkeys(link for first in names for link in config.chain_of(first)):
        experiment, training = config.experiments[name], config.training_of(name)
        network = config.network_of(name)
        if name in config.imports:
            continue
        _check_training(name, config)
        if config.network.weights == "imagenet" and (
            network.depth == 10 or network.width != 64 or network.stem != 7
        ):
            raise UserError(
                f"config: network.weights is imagenet, which does not fit experiments.{name} (depth {network.depth}, width "
                f"{network.width}, stem {network.stem}); set network.weights: null, or depth 18, 50 or 101, width 64, stem 7"
            )
        late = set(config._all_training_of(name).milestones) - set(training.milestones)
        if late and training.schedule == "step":
            key = _training_key(name, "milestones", experiment)
            _warn_once(
                f"config: {key}: {sorted(late)} is dropped, because training has only {training.epochs} epochs"
            )
        settings = (experiment.method.effective(), network, training, experiment.start)
        if settings in found:
            raise UserError(
                f"config: experiments.{name} has the same settings as {found[settings]}; remove one of them"
            )
        found[settings] = name


_warn_once = cache(logger.warning)


def _training_key(name: str, key: str, experiment: Experiment) -> str:
    """Dotted key under which a setting of an experiment's training is set."""
    return f"experiments.{name}.training.{key}" if key in experiment.training else f"training.{key}"


def _check_training(name: str, config: Config) -> None:
    experiment, training = config.experiments[name], config.training_of(name)
    method = experiment.method

    def fail(key: str, problem: str) -> None:
        where, value = _training_key(name, key, experiment), getattr(training, key)
        raise UserError(f"config: {where} is {value}; {problem}")

    if training.warmup_epochs >= training.epochs:
        fail("warmup_epochs", f"it must be below training.epochs {training.epochs}")
    if training.batch_size % training.gpus:
        fail(
            "batch_size", f"it must be a multiple of training.gpus {training.gpus}: the GPUs share each batch"
        )
    if isinstance(method, Ffn) and method.training_shift == "authors":
        longest = method.train_frames[-1]
        # At each frame count, the clips that go through the network together must fill whole chunks of `longest` frames.
        multiple = math.lcm(*(longest // math.gcd(longest, frames) for frames in method.train_frames))
        taken = {"micro_batch": training.micro_batch, "batch_size": training.batch_size // training.gpus}
        for key, clips in taken.items():
            if clips is not None and clips % multiple:
                fail(
                    key,
                    f"experiments.{name}.training_shift: authors shifts chunks of {longest} frames, so the number of clips "
                    f"that go through the network at a time must be a multiple of {multiple}",
                )
