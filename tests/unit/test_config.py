"""The configuration is read typed, and every mistake is refused in one line with its key and how to fix it."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from ffnrepro.config import check_experiments, read_config, read_files
from ffnrepro.errors import UserError
from ffnrepro.runs import run_settings
from ffnrepro.tables import check_published, published_accuracy, read_published, read_rows

from ..keys_table import keys_markdown

FOLDER = Path(__file__).parents[2] / "config"


@pytest.fixture
def mapping() -> dict[str, Any]:
    return read_files([FOLDER / "config.yaml"])


def put(mapping: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        mapping = mapping.setdefault(parent, {})
    mapping[last] = value


def test_config_yaml_shows_each_key_with_its_declared_default(mapping: dict[str, Any]) -> None:
    """The defaults themselves are pinned in test_run_keys.py."""
    shown = read_config(mapping)
    for section in ("network", "training", "evaluation", "report", "runtime"):
        assert mapping.pop(section).keys() == type(getattr(shown, section)).model_fields.keys(), section
    assert mapping["data"].keys() == type(shown.data).model_fields.keys()
    mapping["data"] = {"labels": shown.data.labels, "videos": shown.data.videos}
    mapping["experiments"]["ffn"] = {"method": "ffn", "train_frames": [4, 8, 16]}
    assert read_config(mapping) == shown


def test_the_demo_changes_no_method(caplog: pytest.LogCaptureFixture) -> None:
    demo = read_files([FOLDER / "demo.yaml"])
    assert demo.keys() <= {"dataset", "data", "network", "training", "runtime"}
    config = read_config(read_files([FOLDER / name for name in ("config.yaml", "paper.yaml", "demo.yaml")]))
    check_experiments(config, config.experiments)
    assert caplog.text == ""  # the milestones of a cosine schedule are nothing to warn of
    assert config.training_of("ffn").milestones == (20, 40)


TABLES_OF_THE_PAPER = {
    "baselines": "Table 1", "sequences": "Table 2", "more_frames": "Table 3", "ablation": "Table 4", "depths": "Table 5",
    "middle": "Table 6", "any_frame": "Table 7",
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES_OF_THE_PAPER)
def test_a_table_of_the_paper_has_its_rows_and_columns(name: str, caplog: pytest.LogCaptureFixture) -> None:
    config = read_config(read_files([FOLDER / "config.yaml", FOLDER / "paper.yaml"]))
    check_experiments(config, config.experiments_of(name))
    assert caplog.text == ""
    published = read_published(FOLDER.parent / "resources/published.csv")
    rows = [
        {"label": row.label, "published": row.published and tuple(row.published.model_dump().values()), "evaluations": {}}
        for row in config.tables[name].rows
    ]  # fmt: skip
    check_published(read_rows(json.dumps(rows)), published)
    of_table = [figure for figure in published if figure["source"] == TABLES_OF_THE_PAPER[name]]
    ours = {
        (row["published"][0], row["published"][1] or "", n)
        for row in rows
        for n in config.tables[name].frame_counts
    }
    assert ours >= {(figure["method"], figure["setting"], int(figure["frames"])) for figure in of_table}
    for row in rows:
        known = published_accuracy(published, "something-something-v1", *row["published"])
        assert known.keys() >= set(config.tables[name].frame_counts)


SETTINGS = {
    # Method and setting of resources/published.csv, and the settings of the experiment: those of FFN and TSM, but for these.
    ("TSM", ""): {"method": "tsm", "train_frames": (16,)},
    ("TSM-Mixed", "rho 0.50"): {"method": "mixed", "train_frames": (4, 16), "rho": 0.5},
    ("TSM-Mixed", "rho 0.75"): {"method": "mixed", "train_frames": (4, 16), "rho": 0.75},
    ("TSM-Proportional", "varrho 0.50"): {"method": "proportional", "train_frames": (4, 16), "varrho": 0.5},
    ("TSM-Proportional", "varrho 0.75"): {"method": "proportional", "train_frames": (4, 16), "varrho": 0.75},
    ("TSM-Fine-tuning", "16F -> 4F"): {"method": "tsm", "train_frames": (4,), "start": "tsm"},
    ("TSM-FFN", ""): {"method": "ffn", "train_frames": (4, 8, 16)},
    ("TSM-FFN", "with 24F"): {"method": "ffn", "train_frames": (4, 8, 16, 24)},
    **{
        ("TSM-FFN", f"trained at {'/'.join(map(str, counts))}F"): {"method": "ffn", "train_frames": counts}
        for counts in ((4, 16), (4, 8, 12, 16), (4, 10, 16), (4, 12, 16))
    },
    **{
        ("TSM-FFN", f"without {part.replace('_', ' ')}"): {"method": "ffn", "train_frames": (4, 8, 16), part: False}
        for part in ("specialized_normalization", "weight_alteration", "temporal_distillation", "weight_sharing")
    },
    **{
        (method, f"ResNet-{depth}"): {**settings, "depth": depth}
        for depth in (18, 101)
        for method, settings in (
            ("TSM", {"method": "tsm", "train_frames": (16,)}), ("TSM-FFN", {"method": "ffn", "train_frames": (4, 8, 16)})
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ["table1", *TABLES_OF_THE_PAPER])
def test_the_networks_of_a_row_have_the_settings_that_its_published_figures_name(name: str) -> None:
    config = read_config(read_files([FOLDER / "config.yaml", FOLDER / "paper.yaml"]))
    for row in config.tables[name].rows:
        assert row.published is not None
        figures = (row.published.method, row.published.setting or "")
        for n in config.tables[name].frame_counts:
            expected = [SETTINGS[figures]] if figures in SETTINGS else []
            if figures[0] == "TSM-ST":
                depth = {"depth": int(figures[1].removeprefix("ResNet-"))} if figures[1] else {}
                expected = [{"method": "tsm", "train_frames": (n,), **depth}]
            elif figures[0] == "TSM-Ensemble":
                expected = [{"method": "tsm", "train_frames": (count,)} for count in (4, 8, 16)]
            found = []
            for experiment in map(config.experiments.__getitem__, row.experiments_at(n)):
                default = type(experiment.method).model_fields
                changed = {
                    key: value
                    for key, value in experiment.method.model_dump().items()
                    if value != default[key].default
                }
                start, depth_of = experiment.start, experiment.depth
                found.append(
                    changed | ({"start": start} if start else {}) | ({"depth": depth_of} if depth_of else {})
                )
                assert bool(experiment.training) == bool(start)
            assert found == expected, (row.label, n)


@pytest.mark.parametrize("name", ["something-something-v1", "kinetics-400", "hmdb51"])
def test_a_data_set_of_the_paper_differs_in_its_data_and_its_flip_only(name: str) -> None:
    path = FOLDER / f"datasets/{name}.yaml"
    own = read_files([path])
    assert own.keys() <= {"dataset", "data", "training"}
    assert own.get("training", {}).keys() <= {"flip"}
    config = read_config(read_files([FOLDER / "config.yaml", FOLDER / "paper.yaml", path]))
    check_experiments(config, config.experiments)
    of_v1 = name == "something-something-v1"
    assert (config.training_of("ffn").flip, config.data.layout) == (
        not of_v1,
        "frames" if of_v1 else "videos",
    )
    published = read_published(FOLDER.parent / "resources/published.csv")
    assert published_accuracy(published, config.dataset, "TSM-FFN")


def test_readme_has_the_table_of_keys() -> None:
    assert keys_markdown() in (FOLDER / "README.md").read_text(encoding="utf-8"), (
        "replace the table in config/README.md by the output of python -m tests.keys_table"
    )


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("training.leraning_rate", 0.1, r"training\.leraning_rate is not a key; did you mean training\.learning_rate\?$"),
        ("colour", "red", r"^config: colour is not a key; valid keys: dataset, seeds"),
        ("experiments.ffn.train_frame", [4, 8], r"experiments\.ffn\.train_frame is not a key; did you mean .*ffn\.train_frames"),
        ("experiments.ffn.dept", 18, r"experiments\.ffn\.dept is not a key; did you mean experiments\.ffn\.depth\?"),
        ("experiments.tsm.distillation_weight", 2.0, r"experiments\.tsm\.distillation_weight is not a key; valid keys: method, train_frames, depth"),
        ("experiments.ffn.method", "fnn", r"experiments\.ffn\.method is 'fnn'; it must be one of 'tsm', 'ffn', 'mixed', 'proportional'"),
        ("experiments.new", {"method": "mixed", "train_frames": [4, 16]}, r"experiments\.new\.rho is missing"),
        ("experiments.new", {"method": "mixed", "train_frames": [16], "rho": 0.5}, r"new\.train_frames is \[16\]; mixed trains at two"),
        ("experiments.new", {"method": "proportional", "train_frames": [4, 8, 16], "varrho": 0.5}, r"proportional trains at two"),
        ("experiments.new", {"method": "proportional", "train_frames": [4, 16], "varrho": 1.5}, r"new\.varrho is 1\.5; it must be 1 or less"),
        ("experiments.new", {"train_frames": [4]}, r"experiments\.new\.method is missing; config/README\.md describes it"),
        ("experiments.new", {"method": "tsm"}, r"experiments\.new\.train_frames is missing"),
        ("experiments.ffn.training_shift", "theirs", r"ffn\.training_shift is 'theirs'; it must be 'per_clip' or 'authors'"),
        ("experiments.ffn.train_frames", [16], r"experiments\.ffn\.train_frames is \[16\]; ffn trains at two"),
        ("experiments.tsm.train_frames", [4, 16], r"tsm trains at one frame count"),
        ("experiments.ffn.train_frames", [4, 0], r"ffn\.train_frames\[1\] is 0; it must be 1 or more"),
        ("experiments.ffn.distillation_weight", -1, r"experiments\.ffn\.distillation_weight is -1; it must be 0 or more"),
        ("experiments.a/b", {"method": "tsm", "train_frames": [4]}, r"experiments\.a/b is 'a/b'; it must be text that matches"),
        ("experiments.ffn.depth", 34, r"experiments\.ffn\.depth is 34; it must be 10, 18, 50 or 101"),
        ("experiments.ffn.training", {"epoch": 3}, r"ffn\.training\.epoch is not a key; did you mean experiments\.ffn\.training\.epochs"),
        ("experiments.ffn.training", {"epochs": 0}, r"experiments\.ffn\.training\.epochs is 0; it must be more than 0"),
        ("experiments.ffn.training", {"gpus": 2}, r"experiments\.ffn\.training\.gpus is not a key"),
        ("training.weight_decay", "much", r"weight_decay is 'much'; it must be a number"),
        ("training.weight_decay", float("nan"), r"weight_decay is nan; it must be a finite number"),
        ("training.clip_norm", "inf", r"clip_norm is inf; it must be a finite number"),
        ("training.epochs", True, r"training\.epochs is True; it must be a whole number"),
        ("training.epochs", 4.5, r"training\.epochs is 4\.5; it must be a whole number"),
        ("training.milestones", [20, 20], r"milestones is \[20, 20\]; write each number once, in ascending order: \[20\]"),
        ("training.milestones", [40, 20], r"ascending order: \[20, 40\]"),
        ("training.milestones", [-1, 20], r"training\.milestones\[0\] is -1; it must be 0 or more"),
        ("training.learning_rate", None, r"training\.learning_rate is None; it must be a number"),
        ("runtime.cache_decoded", 1, r"runtime\.cache_decoded is 1; it must be true or false"),
        ("data.labels", 5, r"data\.labels is 5; it must be text"),
        ("data.crop_size", 300, r"data\.crop_size is 300; it must be at most data\.short_side 256"),
        ("data.max_excluded", 1.5, r"data\.max_excluded is 1\.5; it must be 1 or less"),
        ("data", None, r"data is None; it must be a mapping"),
        ("network.stem", 6, r"network\.stem is 6; a kernel size is odd"),
        ("network.width", 20, r"multiple of 8"),
        ("network.dropout", 1.0, r"must be below 1"),
        ("network.weights_sha256", "0676ba6", r"weights_sha256 is '0676ba6'; it must be text that matches"),
        ("seeds", [-1], r"seeds\[0\] is -1; it must be 0 or more"),
        ("seeds", [], r"seeds is \[\]"),
        ("seeds", [1, 1], r"seeds is \[1, 1\]"),
        ("seeds", 0, r"seeds is 0; it must be a list, such as \[0\]"),
        ("table", [{"method": "TSM", "experiments": "tsm"}], r"keys of version 0\.1\.0; write tables: \{table1: "),
        ("evaluation.frame_counts", [4, 8], r"keys of version 0\.1\.0; write tables: \{table1: "),
        ("experiments", {}, r"experiments is \{\}; it must be a list or mapping of length 1 or more"),
        ("tables.Table", {}, r"tables\.Table is 'Table'; it must be text that matches"),
        ("tables.table1.frame_counts", [4, 1600], r"tables\.table1\.frame_counts\[1\] is 1600; it must be 256 or less"),
        ("tables.table1.frame_counts", [16, 4], r"ascending order: \[4, 16\]"),
        ("tables.table1.frame_counts", [], r"frame_counts is \[\]; it must be a list or mapping of length 1 or more"),
        ("tables.table1.frame_counts", 16, r"must be a list, such as \[16\]"),
        ("tables.table1.rows", [], r"tables\.table1\.rows is \[\]"),
        ("tables.table1.rows", [{"label": "A", "experiments": {4: 5}}], r"rows\[0\]\.experiments\.4 is 5; it must be text"),
        ("tables.table1.rows", [{"label": "A", "experiments": {4: "tsm"}}], r"table1: rows\[0\]\.experiments .* \[4, 8, 16\]"),
        ("tables.table1.rows", [{"label": "A", "experiments": "tsm", "compare_with": "A"}], r"compare_with is 'A'; it must be the .* another row"),
        ("tables.table1.rows", [{"label": "A"}], r"rows\[0\]: the row 'A' needs either experiments or ensemble"),
        ("tables.table1.rows", [{"label": "A", "experiments": "tsm", "ensemble": ["tsm", "ffn"]}], r"row 'A' needs either experiments or"),
        ("tables.table1.rows", [{"label": "A", "ensemble": ["tsm", "tsm"]}], r"ensemble of the row 'A' names an experiment twice"),
        ("tables.table1.rows", [{"label": "A", "ensemble": ["tsm"]}], r"rows\[0\]\.ensemble is \['tsm'\]; it must be .* of length 2 or more"),
        ("tables.table1.rows", [{"label": "A", "experiments": "tsm"}] * 2, r"table1: the label 'A' appears twice"),
    ],
)  # fmt: skip
def test_a_wrong_key_is_refused_in_one_line(mapping: dict[str, Any], key: str, value: Any, says: str) -> None:
    put(mapping, key, value)
    with pytest.raises(UserError, match=says) as error:
        read_config(mapping)
    assert "\n" not in str(error.value)


def test_text_is_read_as_yaml_where_no_text_is_legal(mapping: dict[str, Any]) -> None:
    """YAML 1.1 takes 5e-4 for text, and the values inside `--config training='{epochs: 30}'` are text, too."""
    for key, value in (
        ("training.weight_decay", "5e-4"),
        ("training.epochs", "60"),
        ("training.clip_norm", "null"),
        ("network.weights", "null"),
        ("data.partial", "true"),
        ("training.milestones", "[10, 20]"),
        ("tables.table1.frame_counts", ["4", "6"]),
        ("tables.table1.rows", [{"label": "4", "experiments": {"4": "tsm_4f", "6": "tsm_8f"}}]),
        ("experiments.ffn.depth", "18"),
        ("experiments.ffn.training", {"epochs": "30"}),
    ):
        put(mapping, key, value)
    config = read_config(mapping)
    training, table = config.training, config.tables["table1"]
    assert (training.weight_decay, training.epochs, training.clip_norm) == (5e-4, 60, None)
    assert training.milestones == (10, 20)
    assert (config.network.weights, config.data.partial) == (None, True)
    assert (table.frame_counts, table.rows[0].label) == ((4, 6), "4")
    assert [table.rows[0].experiments_at(frames) for frames in (4, 6)] == [("tsm_4f",), ("tsm_8f",)]
    assert (config.network_of("ffn").depth, config.training_of("ffn").epochs) == (18, 30)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"training.warmup_epochs": 50}, r"training\.warmup_epochs is 50; it must be below training\.epochs 50"),
        ({"training.gpus": 3}, r"training\.batch_size is 32; it must be a multiple of training\.gpus 3"),
        ({"experiments.ffn.training": {"batch_size": 9}, "training.gpus": 2},
         r"experiments\.ffn\.training\.batch_size is 9; it must be a multiple of training\.gpus 2"),
        ({"experiments.ffn.depth": 10}, r"weights is imagenet, which does not fit experiments\.ffn \(depth 10"),
        ({"network.width": 32}, r"does not fit experiments\.ffn .*width 32"),
        ({"network.stem": 5}, r"does not fit experiments\.ffn .*stem 5"),
        ({"report.tables": ["tabel1"]}, r"report\.tables names 'tabel1', which is not in tables \(table1"),
        ({"experiments.ffn.start": "tms"}, r"experiments\.ffn\.start names 'tms', which is not in experiments \(tsm, "),
        ({"experiments.ffn.start": "tsm", "experiments.tsm.depth": 18},
         r"ffn\.start is 'tsm', whose network has kind tsm, depth 18, but the network of ffn has kind ffn, depth 50; both"),
        ({"experiments.two": {"method": "ffn", "train_frames": [4, 16], "weight_alteration": False}, "experiments.ffn.start": "two"},
         r"has train_frames \[4, 16\], weight_alteration False, but the network of ffn has train_frames \[4, 8, 16\], weight_"),
        ({"experiments.tsm_4f.start": "tsm", "experiments.tsm.start": "tsm_4f"}, r"cycle: tsm_4f -> tsm -> tsm_4f"),
        # The settings that one starts from are checked with it.
        ({"experiments.tsm_4f.start": "tsm", "experiments.tsm.training": {"epochs": 5, "warmup_epochs": 5}}, r"experiments\.tsm\.training"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_together_are_refused(
    mapping: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    for key, value in changes.items():
        put(mapping, key, value)
    with pytest.raises(UserError, match=says) as error:
        check_experiments(read_config(mapping), ["ffn", "tsm_4f"])
    assert "\n" not in str(error.value)


def test_the_earlier_name_of_micro_batch_is_refused_in_one_line(mapping: dict[str, Any]) -> None:
    for key in ("experiments.ffn.training", "training"):
        put(mapping, key, {"batchnorm_clips": 16})
        with pytest.raises(UserError, match=rf"^config: {key}: batchnorm_clips is now micro_batch$"):
            read_config(mapping)


def test_micro_batches_that_divide_nothing_count_as_null(mapping: dict[str, Any]) -> None:
    found = []
    for micro_batch, gpus in ((32, 1), (16, 2), (31, 1), (12, 2)):
        mapping["training"] |= {"micro_batch": micro_batch, "gpus": gpus}
        found.append(read_config(mapping).training_of("tsm").micro_batch)
    assert found == [None, None, 31, 12]


def test_recompute_is_a_setting_of_each_experiment_but_not_of_its_numbers(mapping: dict[str, Any]) -> None:
    put(mapping, "experiments.ffn.training", {"recompute": True})
    config = read_config(mapping)
    assert [config.recompute_of(name) for name in ("tsm", "ffn")] == [False, True]
    mapping["experiments"]["ffn"].pop("training")
    assert run_settings(config, "ffn") == run_settings(read_config(mapping), "ffn")
    assert "recompute" not in run_settings(config, "ffn").model_dump()["training"]


def test_only_the_given_experiments_are_checked(mapping: dict[str, Any]) -> None:
    put(mapping, "experiments.wrong", {"method": "tsm", "train_frames": [4], "depth": 10, "start": "nothing"})
    put(mapping, "experiments.ffn_a", mapping["experiments"]["ffn"] | {"training": {"epochs": 50}})
    put(mapping, "tables.other", {"frame_counts": [4], "rows": [{"label": "A", "experiments": "nothing"}]})
    config = read_config(mapping)
    assert config.experiments_of("table1") == ("tsm", "ffn")
    put(mapping, "tables.table1.rows", [{"label": "A", "ensemble": ["tsm_4f", "nothing"]}])
    with pytest.raises(UserError, match=r"table1\.rows\[0\]\.ensemble names 'nothing', which is not in"):
        read_config(mapping).experiments_of("table1")
    check_experiments(config, config.experiments_of("table1"))
    with pytest.raises(
        UserError, match=r"tables\.other\.rows\[0\]\.experiments names 'nothing', which is not in"
    ):
        config.experiments_of("other")
    with pytest.raises(UserError, match=r"experiments\.ffn_a has the same settings as ffn"):
        check_experiments(config, ["ffn", "ffn_a"])


def test_milestones_beyond_the_end_are_dropped_with_a_warning(
    mapping: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    put(mapping, "training.epochs", 40)
    put(mapping, "experiments.ffn.training", {"epochs": 15})
    config = read_config(mapping)
    with caplog.at_level(logging.WARNING):
        check_experiments(config, ["tsm", "tsm_4f", "ffn"])
    assert [record.message for record in caplog.records] == [
        "config: training.milestones: [40] is dropped, because training has only 40 epochs",
        "config: training.milestones: [20, 40] is dropped, because training has only 15 epochs",
    ]
    assert [config.training_of(name).milestones for name in ("tsm", "ffn")] == [(20,), ()]


@pytest.mark.parametrize(
    ("frames", "batch_size", "multiple"),
    [([4, 8, 16], 30, 4), ([4, 16], 6, 4), ([8, 16], 3, 2), ([4, 6], 16, 3)],
)
def test_the_authors_shift_needs_batches_that_fill_whole_chunks(
    mapping: dict[str, Any], frames: list[int], batch_size: int, multiple: int
) -> None:
    put(mapping, "experiments.ffn.train_frames", frames)
    put(mapping, "experiments.ffn.training_shift", "authors")
    put(mapping, "training.batch_size", 8 * multiple)
    check_experiments(read_config(mapping), ["ffn"])
    for key, value in (("batch_size", batch_size), ("micro_batch", 1)):
        put(mapping, f"training.{key}", value)
        with pytest.raises(UserError, match=rf"training\.{key} is {value}; .* a multiple of {multiple}$"):
            check_experiments(read_config(mapping), ["ffn"])
