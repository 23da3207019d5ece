"""Cache keys of runs: which settings and which code change the key, and how differences are described."""

import ast
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ffnrepro import methods, runs
from ffnrepro.config import TrainingSettings, read_config
from ffnrepro.errors import UserError
from ffnrepro.recipe.methods.ffn import Ffn
from ffnrepro.recipe.methods.tsm import Tsm
from ffnrepro.recipe.network import NetworkSettings
from ffnrepro.run_list import RunList
from ffnrepro.runs import (
    RunSettings,
    check_key,
    differences,
    method_code,
    read_run,
    run_key,
    run_settings,
    scoring_code,
    state_folder,
    write_run,
)

SOURCE = Path(runs.__file__).parent
ONLY_FFN = {"methods.ffn", "models.ffn", "models.specialized_norm", "models.weight_alteration"}
"""Modules of `recipe/` that TSM must not depend on."""


def tsm(**settings: Any) -> RunSettings:
    return RunSettings(**{"method": Tsm(method="tsm", train_frames=(16,)), **settings})


def ffn(method: dict[str, Any] | None = None, **settings: Any) -> RunSettings:
    own = Ffn(**{"method": "ffn", "train_frames": (4, 8, 16), **(method or {})})
    return RunSettings(**{"method": own, **settings})


# --- Settings --------------------------------------------------------------------------------------------------


def test_declared_defaults_never_change() -> None:
    """A run from before an option existed counts as one with the option's default, so a default must never change."""
    assert ffn().model_dump(mode="json") == {
        "dataset": "something-something-v2",
        "method": {
            "method": "ffn",
            "train_frames": [4, 8, 16],
            "weight_sharing": True,
            "specialized_normalization": True,
            "weight_alteration": True,
            "temporal_distillation": True,
            "distillation_weight": 1.0,
            "training_shift": "per_clip",
            "adapter_init": "near_zero",
        },
        "network": {"depth": 50, "width": 64, "stem": 7, "dropout": 0.5, "shift": "all"},
        "training": {
            "epochs": 50,
            "batch_size": 32,
            "gpus": 1,
            "learning_rate": 0.01,
            "schedule": "step",
            "milestones": [20, 40],
            "warmup_epochs": 0,
            "momentum": 0.9,
            "weight_decay": 0.0005,
            "clip_norm": 20.0,
            "micro_batch": None,
            "crop": "multi_scale",
            "flip": False,
            "precision": "float16",
        },
        "short_side": 256,
        "crop_size": 224,
        "cache": "none",
        "jpeg_quality": 90,
        "weights": None,
        "start": None,
    }


@pytest.mark.parametrize(
    "other",
    [
        tsm(),
        ffn({"train_frames": (4, 16)}),
        ffn({"distillation_weight": 0.5}),
        ffn({"weight_alteration": False}),
        ffn(dataset="other"),
        ffn(network=NetworkSettings(depth=18)),
        ffn(training=TrainingSettings(epochs=49)),
        ffn(training=TrainingSettings(milestones=(20, 41))),
        ffn(training=TrainingSettings(clip_norm=None)),
        ffn(short_side=240),
        ffn(crop_size=192),
        ffn(cache="jpeg"),
        ffn(weights="0676ba61"),
        ffn(start="0676ba61"),
    ],
)
def test_a_changed_setting_changes_the_key(other: RunSettings) -> None:
    assert run_key(other) != run_key(ffn())


@pytest.mark.parametrize(
    ("given", "effective"),
    [
        # A whole number is the same as its fraction.
        (ffn({"distillation_weight": 1}), ffn()),
        (
            ffn({"temporal_distillation": False, "distillation_weight": 2.0}),
            ffn({"temporal_distillation": False}),
        ),
        (ffn({"weight_alteration": False, "adapter_init": "authors"}), ffn({"weight_alteration": False})),
        (ffn(jpeg_quality=80), ffn()),
        (
            ffn(training=TrainingSettings(schedule="cosine", milestones=(7,))),
            ffn(training=TrainingSettings(schedule="cosine")),
        ),
        (
            ffn(training=TrainingSettings(epochs=30)),
            ffn(training=TrainingSettings(epochs=30, milestones=(20,))),
        ),
    ],
)
def test_settings_without_effect_do_not_count(given: RunSettings, effective: RunSettings) -> None:
    assert run_key(given) == run_key(effective)


class LaterTraining(TrainingSettings):
    """The settings of a later version, with one option more."""

    averaging: float = 0.0


class LaterRun(RunSettings):
    training: LaterTraining = LaterTraining()
    mirrored: bool = False


@pytest.mark.parametrize("training", [{}, {"epochs": 30}])
def test_a_new_option_with_its_default_leaves_the_key(training: dict[str, Any]) -> None:
    before = run_key(tsm(training=TrainingSettings(**training)))
    method = Tsm(method="tsm", train_frames=(16,))
    assert run_key(LaterRun(method=method, training=LaterTraining(**training))) == before
    assert run_key(LaterRun(method=method, training=LaterTraining(averaging=0.5, **training))) != before
    assert run_key(LaterRun(method=method, training=LaterTraining(**training), mirrored=True)) != before


# --- From the configuration ------------------------------------------------------------------------------------

CONFIG: dict[str, Any] = {
    "dataset": "something-something-v2",
    "data": {"labels": "labels", "videos": "videos"},
    "experiments": {
        "tsm": {"method": "tsm", "train_frames": [16]},
        "small": {"method": "tsm", "train_frames": [8], "depth": 18, "training": {"epochs": 30}},
        "ffn": {"method": "ffn", "train_frames": [4, 8, 16], "distillation_weight": 0.5},
        "longer": {"method": "ffn", "train_frames": [4, 8, 16], "start": "ffn"},
    },
    "tables": {"table1": {"frame_counts": [4], "rows": [{"label": "TSM", "experiments": "tsm"}]}},
}


def test_settings_of_the_experiments() -> None:
    config = read_config(CONFIG)
    assert run_settings(config, "tsm") == tsm(weights="0676ba61")
    small = run_settings(config, "small")
    assert (small.weights, small.network.depth, small.network.width) == ("f37072fd", 18, 64)
    assert (small.training.epochs, small.training.milestones) == (30, (20,))
    assert run_settings(config, "ffn") == ffn({"distillation_weight": 0.5}, weights="0676ba61")
    assert run_settings(config, "longer") == ffn(start=run_key(run_settings(config, "ffn")))
    names = RunList(config).selected
    assert names == {name: f"{name}-{run_key(run_settings(config, name))}" for name in CONFIG["experiments"]}


def test_a_cache_and_its_quality_count_and_its_folder_does_not() -> None:
    def key(**data: Any) -> str:
        return run_key(run_settings(read_config(CONFIG | {"data": {**CONFIG["data"], **data}}), "tsm"))

    assert len({key(), key(cache="jpeg"), key(cache="jpeg", jpeg_quality=80)}) == 3
    assert key(cache="jpeg", cache_folder="/scratch") == key(cache="jpeg")
    assert key(jpeg_quality=80) == key()


def test_a_run_that_starts_from_another_depends_on_it() -> None:
    before = RunList(read_config(CONFIG)).selected
    changed = {"method": "ffn", "train_frames": [4, 8, 16], "distillation_weight": 0.6}
    after = RunList(read_config(CONFIG | {"experiments": CONFIG["experiments"] | {"ffn": changed}})).selected
    assert {name for name in before if before[name] != after[name]} == {"ffn", "longer"}


def test_a_wrong_start_of_an_experiment_that_is_not_asked_for_stops_nothing() -> None:
    wrong = {
        "lost": {"method": "tsm", "train_frames": [4], "start": "nothing"},
        "egg": {"method": "tsm", "train_frames": [4], "start": "hen"},
        "hen": {"method": "tsm", "train_frames": [8], "start": "egg"},
    }
    config = read_config(CONFIG | {"experiments": CONFIG["experiments"] | wrong})
    assert RunList(config).selected.items() >= RunList(read_config(CONFIG)).selected.items()
    assert run_settings(config, "egg").start == "missing"


def test_identity_of_pretrained_weights(tmp_path: Path) -> None:
    def identity(**network: Any) -> str | None:
        return run_settings(read_config(CONFIG | {"network": network}), "tsm").weights

    path = tmp_path / "weights.pth"
    assert identity(weights=None) is None
    assert identity(weights=str(path)) == "missing"
    path.write_bytes(b"first")
    # printf first | sha256sum
    assert identity(weights=str(path)) == "a7937b64"
    path.write_bytes(b"other one")
    # Each process reads the file once.
    runs._digest_of_file.cache_clear()
    assert identity(weights=str(path)) not in ("missing", "a7937b64")
    assert identity(weights=str(path), weights_sha256="0123456789abcdef") == "01234567"


# --- Code ------------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the package, which the keys are made from."""
    copy = tmp_path / "ffnrepro"
    shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(runs, "_PACKAGE", copy)
    runs._read_module.cache_clear()
    yield copy
    runs._read_module.cache_clear()


def keys() -> dict[str, str]:
    runs._read_module.cache_clear()
    return {"tsm": run_key(tsm()), "ffn": run_key(ffn())}


def changed_by(edit: Callable[[], Any]) -> set[str]:
    """The methods whose key an edit changes."""
    before = keys()
    edit()
    after = keys()
    return {method for method in before if before[method] != after[method]}


def modules_of_recipe() -> set[str]:
    """All modules of `recipe/` by their names in it; "" is its `__init__`."""
    paths = (path.relative_to(SOURCE / "recipe") for path in (SOURCE / "recipe").rglob("*.py"))
    return {".".join(path.with_suffix("").parts).removesuffix("__init__").rstrip(".") for path in paths}


def closure(method: str) -> set[str]:
    return {module.removeprefix("ffnrepro.recipe").lstrip(".") for module in method_code(method)}


def test_tsm_does_not_depend_on_ffn() -> None:
    assert closure("ffn") >= ONLY_FFN
    assert not closure("tsm") & ONLY_FFN


def test_every_module_of_recipe_belongs_to_a_method() -> None:
    assert set().union(*(closure(method) for method in methods.NAMES)) == modules_of_recipe()


def test_comments_docstrings_and_form_do_not_count(source: Path) -> None:
    def rewrite() -> None:
        for path in (source / "recipe").rglob("*.py"):
            tree = ast.parse(path.read_text())
            for node in ast.walk(tree):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    node.value.value = "Another docstring, or a bare string below an attribute."
            # This leaves out comments, and breaks and quotes lines in its own way.
            path.write_text(f"# A comment.\n\n'A bare string.'\n{ast.unparse(tree)}\n")

    assert changed_by(rewrite) == set()


def test_code_of_a_module_counts_for_the_methods_that_use_it(source: Path) -> None:
    for module in closure("tsm") | closure("ffn"):
        path = source.joinpath("recipe", *filter(None, module.split(".")))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        owner = {"ffn"} if module in ONLY_FFN else {"tsm"} if module == "methods.tsm" else None
        edit = partial(path.write_text, path.read_text() + "\nNEW = 1\n")
        assert changed_by(edit) == (owner or {"tsm", "ffn"}), module


def test_a_new_method_and_code_outside_recipe_change_no_key(source: Path) -> None:
    def edit() -> None:
        shutil.copy(source / "recipe/methods/tsm.py", source / "recipe/methods/third.py")
        for path in source.rglob("*.py"):
            if "recipe" not in path.parts:
                path.write_text(path.read_text() + "\nNEW = 1\n")

    assert changed_by(edit) == set()


def test_a_module_that_is_imported_in_any_way_counts(source: Path) -> None:
    added = source / "recipe/added.py"
    added.write_text("VALUE = 1\n")
    step = source / "recipe/step.py"
    text = step.read_text()
    for statement in (
        "import ffnrepro.recipe.added",
        "import ffnrepro.recipe.added as other",
        "from ffnrepro.recipe import added",
        "from ffnrepro.recipe.added import VALUE",
        "def late():\n    from ffnrepro.recipe.added import VALUE\n    return VALUE",
    ):
        step.write_text(f"{text}\n{statement}\n")
        assert changed_by(lambda: added.write_text(f"{added.read_text()}VALUE += 1\n")) == {"tsm", "ffn"}


def test_scoring_has_a_digest_of_its_own(source: Path) -> None:
    before = scoring_code()
    for file, counts in (("optim", False), ("step", False), ("transforms", True), ("sampling", True)):
        path = source / f"recipe/{file}.py"
        path.write_text(path.read_text() + "\nNEW = 1\n")
        runs._read_module.cache_clear()
        after = scoring_code()
        assert (after != before) == counts, file
        before = after


# --- Rules of import -------------------------------------------------------------------------------------------


def imports_of(path: Path) -> Iterator[str]:
    """Every module, or name of a module, that a file imports, wherever it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # The key follows absolute imports only.
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_recipe_imports_only_itself_plain_helpers_and_libraries() -> None:
    allowed = ("ffnrepro.recipe.", "ffnrepro.errors.", "ffnrepro.settings.")
    for path in (SOURCE / "recipe").rglob("*.py"):
        for name in imports_of(path):
            assert not name.startswith("ffnrepro") or name.startswith(allowed), f"{path} imports {name}"
            assert not name.startswith(("importlib", "runpy")), f"{path}: the key does not follow {name}"


def test_the_package_never_imports_snakemake() -> None:
    for path in SOURCE.rglob("*.py"):
        assert not [name for name in imports_of(path) if name.split(".")[0] == "snakemake"], path


# --- Folders ---------------------------------------------------------------------------------------------------


def made(folder: Path, settings: RunSettings) -> Path:
    """The folder of a run."""
    run = folder / f"name-{run_key(settings)}"
    write_run(run, settings)
    return run


def edit_settings(run: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    path = run / "settings.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    settings = ffn({"distillation_weight": 0.5}, training=TrainingSettings(epochs=30, clip_norm=None))
    run = made(tmp_path, settings)
    assert read_run(run) == (settings, method_code("ffn"))
    check_key(run, read_run(run)[0])
    assert differences(run, settings) == []
    # All settings stand in the file, those with their default too.
    content = json.loads((run / "settings.json").read_text())
    assert content["settings"] == settings.model_dump(mode="json")


def test_a_setting_missing_in_a_file_counts_as_its_default(tmp_path: Path) -> None:
    run = made(tmp_path, ffn({"distillation_weight": 0.5}))

    def forget(content: dict[str, Any]) -> None:
        for section, key in (("method", "adapter_init"), ("training", "precision"), ("network", "stem")):
            del content["settings"][section][key]
        del content["settings"]["start"]

    edit_settings(run, forget)
    check_key(run, read_run(run)[0])
    assert differences(run, ffn({"distillation_weight": 0.5})) == []


def test_a_file_with_the_earlier_name_of_micro_batch_is_read(tmp_path: Path) -> None:
    settings = tsm(training=TrainingSettings(micro_batch=16))
    run = made(tmp_path, settings)
    edit_settings(run, lambda c: c["settings"]["training"].update(batchnorm_clips=c["settings"]["training"].pop("micro_batch")))  # fmt: skip
    assert read_run(run)[0] == settings


def test_a_folder_of_other_settings_or_code_is_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(
        UserError, match=r"name-01234567: code and settings.json now have the key [0-9a-f]{8}"
    ):
        write_run(tmp_path / "name-01234567", tsm())
    assert not (tmp_path / "name-01234567").exists()
    run = made(tmp_path, tsm())
    path = source / "recipe/step.py"
    text = path.read_text()
    path.write_text(text + "\nNEW = 1\n")
    runs._read_module.cache_clear()
    with pytest.raises(UserError, match="was edited after this job was planned"):
        check_key(run, read_run(run)[0])
    path.write_text(text)
    runs._read_module.cache_clear()
    check_key(run, read_run(run)[0])
    edit_settings(run, lambda content: content["settings"]["training"].update(epochs=7))
    with pytest.raises(UserError, match="have the key"):
        check_key(run, read_run(run)[0])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (ffn(), ffn({"distillation_weight": 0.5}), ["distillation_weight 1.0 -> 0.5"]),
        (
            ffn(training=TrainingSettings(learning_rate=0.02), weights="0676ba61"),
            ffn(training=TrainingSettings(epochs=30), weights="0676ba61", short_side=240),
            [
                "training.epochs 50 -> 30",
                "training.learning_rate 0.02 -> 0.01",
                "training.milestones [20, 40] -> [20]",
                "short_side 256 -> 240",
            ],
        ),
        # Settings without an effect are no difference.
        (
            ffn({"temporal_distillation": False, "distillation_weight": 3.0}),
            ffn({"temporal_distillation": False}),
            [],
        ),
    ],
)
def test_differences_of_settings(
    tmp_path: Path, old: RunSettings, new: RunSettings, words: list[str]
) -> None:
    assert differences(made(tmp_path, old), new) == words


def test_differences_of_methods(tmp_path: Path) -> None:
    words = differences(made(tmp_path, tsm()), ffn())
    assert words[:3] == [
        "method tsm -> ffn",
        "train_frames [16] -> [4, 8, 16]",
        "weight_sharing unset -> True",
    ]
    assert "code of ffnrepro.recipe.methods.tsm" in words
    assert "code of ffnrepro.recipe.models.weight_alteration" in words


def test_differences_of_code(tmp_path: Path, source: Path) -> None:
    run = made(tmp_path, ffn())
    for file in ("recipe/step.py", "recipe/models/ffn.py"):
        (source / file).write_text((source / file).read_text() + "\nNEW = 1\n")
    (source / "recipe/added.py").write_text("")
    (source / "recipe/optim.py").write_text(
        (source / "recipe/optim.py").read_text() + "\nimport ffnrepro.recipe.added\n"
    )
    runs._read_module.cache_clear()
    assert sorted(differences(run, ffn({"weight_alteration": False}))) == [
        "code of ffnrepro.recipe.added",
        "code of ffnrepro.recipe.models.ffn",
        "code of ffnrepro.recipe.optim",
        "code of ffnrepro.recipe.step",
        "weight_alteration True -> False",
    ]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda c: c["settings"]["training"].update(averaging=1), "training.averaging is not a key"),
        (
            lambda c: c["settings"].update(method={"method": "third", "train_frames": [4]}),
            "third.*'tsm', 'ffn'",
        ),
        (lambda c: c["settings"]["network"].update(depth=34), "network.depth is 34"),
        (
            lambda c: c["settings"]["method"].update(train_frames=[4, 8]),
            r"method\.train_frames is \[4, 8\]; tsm trains at one",
        ),
        (lambda c: c.pop("code"), "cannot be read .KeyError.*delete it and run snakemake again"),
    ],
)
def test_a_file_that_this_version_cannot_read_is_named(
    tmp_path: Path, edit: Callable[[dict[str, Any]], Any], words: str
) -> None:
    run = made(tmp_path, tsm())
    edit_settings(run, edit)
    with pytest.raises(UserError, match=words) as error:
        check_key(run, read_run(run)[0])
    assert str(error.value).startswith(f"{run / 'settings.json'}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [None, "", "[]", "{", '{"settings": {}, "code": 3}'])
def test_a_file_that_is_not_a_settings_file_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "settings.json").write_text(content)
    with pytest.raises(UserError) as error:
        read_run(tmp_path)
    assert str(error.value).startswith(f"{tmp_path / 'settings.json'}: ")
    assert "\n" not in str(error.value)


def test_other_data_has_another_state() -> None:
    found = state_folder(Path("state"), "tsm-01234567", 3, "abcdef0123456789")
    assert found == Path("state/tsm-01234567/seed3-abcdef01")
