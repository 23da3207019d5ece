"""Networks that are imported: which files are taken, what a run is made of, and what its key depends on."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from ffnrepro import export
from ffnrepro.checkpoint_files import convert
from ffnrepro.cli import main
from ffnrepro.config import read_config, read_files
from ffnrepro.errors import UserError
from ffnrepro.evaluation import training_time
from ffnrepro.files import file_digest, write_text
from ffnrepro.imports import check_imports, import_network, read_network
from ffnrepro.methods import Imported
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.recipe.network import NetworkSettings
from ffnrepro.run_list import RunList
from ffnrepro.runs import RUNS, RunSettings, method_code, run_key, run_name, run_settings, write_run
from ffnrepro.tables import TableRow, check_published, read_published
from ffnrepro.weights import load_checkpoint, save_checkpoint, start_from, tensors_digest

from ..golden import formula_clips, formula_weights, golden_figures
from ..trainings import CONFIG as TRAINING_CONFIG
from ..trainings import ROOT, configuration, write_network
from .test_weights import to_authors

CLASSES = ("a", "b", "c", "d", "e", "f")
SMALL: dict[str, Any] = {"classes": 6, "depth": 18, "width": 8}


def small(**changes: Any) -> RunSettings:
    """Settings of a run that imports a small network."""
    network = NetworkSettings(depth=18, width=8)
    own = {"method": Imported(method="checkpoint", path="x.pth"), "network": network, "dataset": "ours"}
    return RunSettings.model_validate({**own, **changes})


def theirs(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of a TSM by the names of FFN's authors."""
    return {to_authors(name): tensor for name, tensor in model.state_dict().items()}


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


# --- What a run is made of -------------------------------------------------------------------------------------


def test_the_authors_ffn_becomes_a_run_with_the_original_networks_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    figures = golden_figures("authors_figures")
    state = formula_weights(figures["keys"]["tsm_ffn"])
    save(Path("theirs.pth.tar"), {"epoch": 50, "state_dict": state, "best_prec1": torch.tensor(63.6)})
    experiments = {"ffn_of_authors": {"method": "checkpoint", "path": "theirs.pth.tar"}}
    network = {"depth": 50, "width": 64, "stem": 7}
    config = configuration(experiments=experiments, network=network)
    run = RUNS / run_name(config, "ffn_of_authors")
    write_run(run, run_settings(config, "ffn_of_authors"))
    classes = [str(n) for n in range(174)]
    import_network(run, 0, path=Path("theirs.pth.tar"), classes=classes, data="d1")
    assert sorted(path.name for path in (run / "seed0").iterdir()) == [
        "history.parquet", "model.pt", "model.sha256", "run.json",
    ]  # fmt: skip
    model = load_checkpoint(run / "seed0/model.pt")
    with torch.no_grad():
        logits = model(formula_clips(4).float())
    assert (logits - torch.tensor(figures["logits"]["tsm_ffn@4"])).abs().max() < 1e-3
    digest = (run / "seed0/model.sha256").read_text().strip()
    assert digest == tensors_digest(model.state_dict())
    record = json.loads((run / "seed0/run.json").read_text())
    assert {key: record[key] for key in ("run", "seed", "data", "model", "parameters")} == {
        "run": run.name, "seed": 0, "data": "d1", "model": digest, "parameters": 24_010_158,
    }  # fmt: skip
    assert record["imported"]["sha256"] == file_digest(Path("theirs.pth.tar"))
    assert (record["imported"]["source"], record["imported"]["kind"]) == ("FFN's authors", "ffn")
    assert len(pd.read_parquet(run / "seed0/history.parquet")) == 0
    assert training_time(run / "seed0") == f"{run.name}, seed0, was imported, not trained"


def test_the_network_is_the_same_for_each_seed(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", theirs(TSM(**SMALL)))
    settings = small(weights=file_digest(path)[:8])
    run = tmp_path / f"x-{run_key(settings)}"
    write_run(run, settings)
    for seed in (0, 1):
        import_network(run, seed, path=path, classes=CLASSES, data="d1")
    assert (run / "seed0/model.sha256").read_text() == (run / "seed1/model.sha256").read_text()


def test_a_file_that_changed_after_the_run_was_planned(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", theirs(TSM(**SMALL)))
    settings = small(weights="01234567")
    run = tmp_path / f"x-{run_key(settings)}"
    write_run(run, settings)
    with pytest.raises(UserError, match=r"x\.pth: changed after x-\w{8} was planned; run snakemake again"):
        import_network(run, 0, path=path, classes=CLASSES, data="d1")
    assert [file.name for file in run.iterdir()] == ["settings.json"]


@pytest.mark.parametrize(
    ("experiment", "to", "counts"),
    [("tsm", "ours", [16]), ("tsm", "mit-han-lab", []), ("ffn", "authors", [4, 8, 16])],
)
def test_an_imported_network_keeps_the_frame_counts_of_its_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, capsys: Any,
    experiment: str, to: Any, counts: list[int],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "theirs.pth"
    convert(write_network(tmp_path, data, experiment) / "model.pt", path, to=to)
    experiments = {"theirs": {"method": "checkpoint", "path": str(path)}}
    Path("theirs.yaml").write_text(json.dumps({"experiments": experiments}))
    config = configuration(experiments=experiments)
    run = RUNS / run_name(config, "theirs")
    write_run(run, run_settings(config, "theirs"))
    import_network(run, 0, path=path, classes=CLASSES * 2, data="d1")
    options = ["--configfile", *map(str, TRAINING_CONFIG), "theirs.yaml"]
    video = str(next((data / "data/videos").glob("*.webm")))

    for arguments, expected in (([], counts), (["--budget", "0.004"], [n for n in counts if n <= 8][-1:])):
        code = main(["predict", video, "--run", "theirs", "--json", *arguments, *options])
        if expected:
            assert sorted({row["frames"] for row in json.loads(capsys.readouterr().out)}) == expected
        else:
            assert code == 1
            told = "every frame count takes more" if counts else "does not say at which frame counts"
            assert told in caplog.messages[-1]

    def write_nothing(_: Any, folder: Path, **__: Any) -> dict[str, float]:
        for name in ("model.onnx", "model.pt2"):
            write_text(folder / name, "")
        return {}

    monkeypatch.setattr(export, "write_programs", write_nothing)
    assert main(["export", "theirs", "--frames", "8", "--output", "out", *options]) == 0
    assert {row["epoch"] for row in RunList(config).rows() if row["run"] == run.name} == {"imported"}
    card = Path("out/README.md").read_text()
    assert ("sub-network of 8 frames of a Frame Flexible Network" in card) == (experiment == "ffn")
    told = f"trained at {', '.join(map(str, counts))} frames." if counts else "whose file does not say at"
    assert f"on a ResNet-10, {told}" in card
    assert "from theirs.pth, in the format of" in card
    assert "the terms of that file" in card


# --- Which files are taken -------------------------------------------------------------------------------------


class _Hostile:
    """Runs a command where it is unpickled without protection."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("hostile",)


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "ResNet-101 for ResNet-50": (
        lambda: theirs(TSM(classes=6, depth=101, width=8)),
        r"its ResNet has depth 101, but the configuration says depth 50; give another file, or set network\.depth: 101 \(an exp",
    ),
    "width": (
        lambda: theirs(TSM(classes=6, depth=50, width=16)),
        r"its ResNet has width 16, but the configuration says width 8; give another file, or set network\.width: 16 ",
    ),
    "classes": (
        lambda: theirs(TSM(classes=7, depth=50, width=8)),
        r"its network has 7 classes, but the labels of ours have 6; give a network that was trained on this data set$",
    ),
    "missing and left over": (
        lambda: {
            name.replace("layer1.0.bn1.bias", "layer1.0.bn1.extra"): x
            for name, x in theirs(TSM(classes=6, depth=50, width=8)).items()
        },
        r"do not fit the network \(missing: layer1\.0\.bn1\.bias; left over: layer1\.0\.bn1\.extra\)",
    ),
    "image network": (
        lambda: TSM(classes=6, depth=50, width=8).state_dict(),
        r"is an image network .*, not a video network; a training can start from it",
    ),
    "no classifier": (
        lambda: {k: x for k, x in theirs(TSM(classes=6, depth=50, width=8)).items() if "fc" not in k},
        r"without a classifier; a training can start from it",
    ),
    "hostile": (lambda: {"state_dict": {"x": _Hostile()}}, r"holds an object of posix\.mkdir, but only tensors"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_not_the_network_of_the_configuration_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = REFUSED[case]
    path = save(tmp_path / "x.pth", make())
    with pytest.raises(UserError, match=message) as error:
        read_network(path, small(network=NetworkSettings(depth=50, width=8)), CLASSES)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert not Path("hostile").exists()


def test_files_that_are_incomplete_or_missing(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", theirs(TSM(**SMALL)))
    _cut(path)
    with pytest.raises(UserError, match=r"x\.pth: is incomplete: its end is missing .*; download it again$"):
        read_network(path, small(), CLASSES)
    with pytest.raises(UserError, match=r"y\.pth: no such file; set the `path` of its experiment"):
        read_network(tmp_path / "y.pth", small(), CLASSES)


def test_network_shift_counts_where_the_keys_do_not_tell(tmp_path: Path, caplog: Any) -> None:
    path = save(tmp_path / "x.pth", theirs(TSM(**SMALL)))
    none = small(network=NetworkSettings(depth=18, width=8, shift="none"))
    assert read_network(path, none, CLASSES)[1].architecture["shift"] == "none"
    marked = {
        name.replace(".0.conv1.weight", ".0.conv1.net.weight"): x for name, x in theirs(TSM(**SMALL)).items()
    }
    path = save(tmp_path / "x.pth", marked)
    assert read_network(path, none, CLASSES)[1].architecture["shift"] == "every_second"
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


OTHER = ("a", "b", "x", "y", "e", "f")


@pytest.mark.parametrize(
    ("content", "beside", "says"),
    [
        ({}, None, None),
        ({"meta": {"CLASSES": list(CLASSES)}}, None, None),
        ({"meta": {"dataset_meta": {"classes": CLASSES}}}, None, None),
        ({"meta": {"CLASSES": OTHER}}, None, "names"),
        ({"meta": {"dataset_meta": {"classes": list(OTHER)}, "config": "x"}}, None, "names"),
        ({}, {"settings": {"dataset": "theirs"}}, "data set"),
        ({}, {"settings": {"dataset": "ours"}}, None),
        ({}, {"settings": "other"}, None),
    ],
)  # fmt: skip
def test_classes_that_are_known_to_be_others_are_warned_of(
    tmp_path: Path, caplog: Any, content: Any, beside: Any, says: Any
) -> None:
    path = save(tmp_path / "x.pth", {"state_dict": theirs(TSM(**SMALL)), **content})
    if beside:
        (tmp_path / "run.json").write_text(json.dumps(beside))
    read_network(path, small(), CLASSES)
    names = (
        f"{path}: 2 of its 6 class names are not those of the labels of ours, such as class 2: 'x' instead of 'c'; its scores are "
        "meaningless unless both lists name the same classes in different words"
    )
    dataset = (
        f"{path}: was trained on theirs, but the labels are those of ours; its scores are meaningless unless both have the same list "
        "of classes"
    )
    expected = {None: [], "names": [names], "data set": [dataset]}[says]
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == expected


def test_our_own_files_tell_their_classes_and_data_set(tmp_path: Path, caplog: Any) -> None:
    path = tmp_path / "x.pt"
    save_checkpoint(path, TSM(**SMALL), class_names=OTHER, dataset="theirs")
    checkpoint, _ = read_network(path, small(), CLASSES)
    assert (checkpoint.class_names, checkpoint.dataset) == (OTHER, "theirs")
    assert re.search("2 of its 6 class names", caplog.text)
    caplog.clear()
    save_checkpoint(path, TSM(**SMALL), class_names=CLASSES, dataset="theirs")
    read_network(path, small(), CLASSES)
    assert not caplog.records


# --- Configuration and key -------------------------------------------------------------------------------------


def test_the_key_depends_on_the_file_and_on_what_scores_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.pth").write_bytes(b"one")
    shutil.copy("a.pth", "b.pth")
    Path("c.pth").write_bytes(b"two")

    def name(path: str = "a.pth", **changes: Any) -> str:
        return run_name(
            configuration(experiments={"x": {"method": "checkpoint", "path": path}}, **changes), "x"
        )

    first = name()
    assert first == name("b.pth") == name(training={"epochs": 7}) == name(network={"dropout": 0.2})
    assert first == name(data={"jpeg_quality": 50})
    others = [
        name("c.pth"),
        name("missing.pth"),
        name(data={"crop_size": 24}),
        name(data={"cache": "jpeg"}),
        name(network={"shift": "none"}),
    ]
    assert len({first, *others}) == 6
    assert "ffnrepro.recipe.models.specialized_norm" in method_code("checkpoint")
    assert "ffnrepro.recipe.step" not in method_code("checkpoint")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"start": "tsm"}, "experiments.x: method checkpoint imports a network and trains nothing; remove start and training"),
        ({"training": {"epochs": 3}}, "experiments.x: method checkpoint imports a network and trains nothing; remove start"),
        ({"train_frames": [4]}, "experiments.x.train_frames is not a key; valid keys: method, path"),
        ({"path": 7}, "experiments.x.path is 7; it must be text"),
    ],
)  # fmt: skip
def test_an_import_has_no_settings_of_training(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as error:
        configuration(experiments={"x": {"method": "checkpoint", "path": "a.pth", **settings}})
    assert str(error.value).startswith(f"config: {says}")


def test_a_training_may_start_from_an_imported_network_of_its_depth(tmp_path: Path, caplog: Any) -> None:
    experiments = {
        "x": {"method": "checkpoint", "path": "a.pth"},
        "tuned": {"method": "ffn", "train_frames": [4, 8], "start": "x"},
    }
    config = configuration(experiments=experiments)
    assert config.chain_of("tuned") == ("tuned", "x")
    experiments["x"]["depth"] = 18
    with pytest.raises(
        UserError, match="'x', whose network has depth 18, but the network of tuned has depth 10; both"
    ):
        configuration(experiments=experiments).chain_of("tuned")
    model = TSM(**SMALL)
    save_checkpoint(tmp_path / "x.pt", TSM(**SMALL, shift="every_second"))
    start_from(model, tmp_path / "x.pt")
    assert "its network has shift every_second, but network.shift is all; set network.shift" in caplog.text
    with pytest.raises(
        UserError,
        match=r"is a TSM checkpoint, but this training has to start from a checkpoint of a Frame",
    ):
        start_from(FrameFlexibleNetwork(**SMALL), tmp_path / "x.pt")


def test_imports_in_the_plan_of_a_table_and_in_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    text = {"x": {"method": "checkpoint", "path": "a.pth"}}
    table = {"frame_counts": [4], "rows": [{"label": "X", "experiments": "x"}]}
    config = configuration(experiments=text, tables={"published": table})
    rows, summary = RunList(config).plan("published")
    assert [(row["basis"], row["hours"]) for row in rows] == [("imported, not trained", "0.0")]
    assert summary.startswith("published needs 0 trainings; finished: 0; the others take about 0.0 ")
    Path("x.yaml").write_text(json.dumps({"dataset": "d", "data": {"labels": "l", "videos": "v"}, "experiments": text, "tables": {"published": table}, "report": {"tables": ["published"]}}))  # fmt: skip
    assert main(["runs", "--plan", "published", "--configfile", "x.yaml"]) == 0
    assert (
        "published needs 0 trainings; finished: 0; the others take about 0.0 GPU" in capsys.readouterr().out
    )
    assert main(["doctor", "x", "--configfile", "x.yaml"]) == 1
    assert "x is imported, not trained; ffnrepro checkpoint show a.pth" in caplog.text


def test_an_ffn_of_other_frame_counts_is_imported(tmp_path: Path) -> None:
    model = FrameFlexibleNetwork(**SMALL, frame_counts=(2, 5))
    save_checkpoint(tmp_path / "x.pt", model)
    checkpoint, network = read_network(tmp_path / "x.pt", small(), CLASSES)
    assert checkpoint.architecture["frame_counts"] == [2, 5]
    with torch.no_grad():  # at any frame count, by the nearest sub-network
        torch.testing.assert_close(network(formula_clips(3).float()), model.eval()(formula_clips(3).float()))


def test_frame_counts_that_tables_and_trainings_need_of_an_imported_network(
    tmp_path: Path, caplog: Any
) -> None:
    """An FFN of 2 sub-networks: the nearest is a warning, a training of 3 sub-networks that starts from it is an error."""
    network = {"depth": 18, "width": 8, "stem": 7}
    save_checkpoint(tmp_path / "two.pt", FrameFlexibleNetwork(**SMALL, frame_counts=(4, 16)))
    save_checkpoint(tmp_path / "tsm.pt", TSM(**SMALL))
    experiments = {
        "two": {"method": "checkpoint", "path": str(tmp_path / "two.pt")},
        "one": {"method": "checkpoint", "path": str(tmp_path / "tsm.pt")},
        "same": {"method": "ffn", "train_frames": [4, 16], "start": "two"},
        "more": {"method": "ffn", "train_frames": [4, 8, 16], "start": "two"},
        "other": {"method": "ffn", "train_frames": [4, 16], "start": "one"},
    }
    config = configuration(network=network, experiments=experiments)

    def check(trained: set[str], *evaluated: tuple[str, int]) -> None:
        check_imports(config, {"one", "two"}, CLASSES, trained=trained, evaluated=set(evaluated))

    check({"same"}, ("two", 4), ("two", 16), ("one", 8), ("more", 8))
    assert not caplog.messages
    check(set(), ("two", 8), ("two", 2), ("two", 4))
    assert caplog.messages == [
        (
            f"{tmp_path / 'two.pt'}: its network has sub-networks for 4, 16 frames; at 2, 8 frames, the nearest one is evaluated; if "
            "that is not meant, set experiments.two.path to another file, or change the frame_counts of the table"
        )
    ]
    for training, says in (
        ("more", r"start is 'two'; .*two\.pt: its network has frame_counts \[4, 16\], but the one to train has .* \[4, 8, 16\]"),
        ("other", r"start is 'one'; .*tsm\.pt: is a TSM checkpoint, but this training has to start from a checkpoint of a Frame"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=rf"^config: experiments\.{training}\.{says}"):
            check({"same", training})


def test_config_published_names_published_rows_and_trains_nothing() -> None:
    files = [ROOT / f"config/{name}.yaml" for name in ("config", "paper", "published")]
    config = read_config(read_files(files))
    assert set(config.experiments_of("published")) == set(config.imports)
    rows = [
        TableRow(row.label, (row.published.method, None), {})
        for row in config.tables["published"].rows
        if row.published
    ]
    assert len(rows) == 2
    check_published(rows, read_published(ROOT / "resources/published.csv"))
