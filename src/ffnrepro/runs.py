"""Runs: folders whose names say what made them, `results/runs/{experiment}-{key}`.

The cache key is a digest of the settings that the network depends on and of the code of `recipe/` that the method uses.
A changed setting means another folder, so the old run stays, and returning to earlier settings finds it again. The data
is not part of the key: `manifest.sha256` is an ordinary input of training.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ffnrepro.config import IMAGENET, Config, TrainingSettings
from ffnrepro.errors import UserError
from ffnrepro.files import file_digest, write_json
from ffnrepro.methods import AnyMethod, Imported
from ffnrepro.recipe.network import NetworkSettings
from ffnrepro.settings import Settings, read_settings

RUNS = Path("results/runs")
STATE = Path("state")

_PACKAGE = Path(__file__).parent
_COMMON_CODE = (
    "step",
    "clips",
    "sampling",
    "transforms",
    "optim",
    "scoring",
    "selection",
    "models.pretrained",
)
"""Modules of `recipe/` that every training uses, whatever its method."""
_NETWORK_CODE = ("models.tsm", "models.ffn")
"""Modules of `recipe/` that an imported network depends on."""


# --- settings and key


class RunSettings(Settings):
    """All settings that a trained network depends on. A missing setting counts as its default, which never changes."""

    dataset: str = "something-something-v2"
    method: AnyMethod
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    short_side: int = 256
    crop_size: int = 224
    cache: Literal["none", "jpeg"] = "none"
    jpeg_quality: int = 90
    """Unused without a cache."""
    weights: str | None = None
    """First eight digits of the SHA-256 of the pretrained weights, or of the file that the network is imported from."""
    start: str | None = None
    """Key of the run that this run starts from."""

    def effective(self) -> "RunSettings":
        """A copy in which each value that has no effect is replaced by its default."""
        update: dict[str, Any] = {"method": self.method.effective(), "training": self.training.effective()}
        if isinstance(self.method, Imported):
            update = {
                # The digest of the file stands for its path.
                "method": self.method.model_copy(update={"path": ""}),
                "network": self.network.model_copy(update={"dropout": NetworkSettings().dropout}),
                "training": TrainingSettings(),
            }
        if self.cache == "none":
            update["jpeg_quality"] = type(self).model_fields["jpeg_quality"].default
        return self.model_copy(update=update)


def run_settings(config: Config, experiment: str) -> RunSettings:
    """The settings of an experiment in the current configuration."""
    own = config.experiments[experiment]
    network = config.network_of(experiment)
    weights: str | None
    if isinstance(own.method, Imported):
        weights = _identity_of(Path(own.method.path))
    else:
        weights = None if own.start else weights_identity(config, network.depth)
    return RunSettings(
        dataset=config.dataset,
        method=own.method,
        network=network,
        training=config.training_of(experiment),
        short_side=config.data.short_side,
        crop_size=config.data.crop_size,
        cache=config.data.cache,
        jpeg_quality=config.data.jpeg_quality,
        weights=weights,
        start=_start_key(config, experiment),
    )


def _start_key(config: Config, experiment: str) -> str | None:
    """Key of the run that an experiment starts from."""
    start = config.experiments[experiment].start
    if start is None:
        return None
    try:
        config.chain_of(experiment)
    except UserError:
        # `check_experiments` refuses it if the experiment is requested.
        return "missing"
    return run_key(run_settings(config, start))


def weights_identity(config: Config, depth: int) -> str | None:
    """The first eight digits of the SHA-256 of the pretrained weights, as declared or computed; None without weights."""
    source, declared = config.network.weights, config.network.weights_sha256
    if source is None:
        return None
    if source == "imagenet":
        # `check_experiments` refuses a depth without such weights when its experiment is requested.
        return IMAGENET.get(depth, "missing")
    if declared is not None:
        return declared[:8]
    return _identity_of(Path(source))


def _identity_of(path: Path) -> str:
    try:
        return _digest_of_file(path)[:8]
    except OSError:
        # A dry run works without the file, too. The training or the import itself refuses to start.
        return "missing"


_digest_of_file = cache(file_digest)


def run_key(settings: RunSettings) -> str:
    """Cache key: eight hexadecimal digits that stand for the settings that differ from their defaults, and for the code."""
    content = settings.effective().model_dump(mode="json", exclude_defaults=True)
    return _digest({"settings": content, "code": method_code(settings.method.method)})


def run_name(config: Config, experiment: str) -> str:
    """Name of an experiment's run, with the current configuration and code."""
    return f"{experiment}-{run_key(run_settings(config, experiment))}"


def start_path(config: Config, experiment: str, seed: int) -> Path | None:
    """The file that a training starts from: ImageNet weights, the user's own, the network of another run, or None."""
    start, weights = config.experiments[experiment].start, config.network.weights
    if start is not None:
        return RUNS / run_name(config, start) / f"seed{seed}/model.pt"
    if weights == "imagenet":
        return Path(f"results/weights/resnet{config.network_of(experiment).depth}.pth")
    return None if weights is None else Path(weights)


# --- digests of code


def method_code(method: str) -> dict[str, str]:
    """A digest for each module of `recipe/` that a network of this method depends on."""
    modules = _NETWORK_CODE if method == "checkpoint" else (f"methods.{method}", *_COMMON_CODE)
    return code_digests(f"ffnrepro.recipe.{module}" for module in modules)


def scoring_code() -> str:
    """Digest of the code that the scores of a network on given videos depend on."""
    return _digest(code_digests(["ffnrepro.recipe.scoring", "ffnrepro.recipe.clips"]))


def evaluation_inputs(
    *, split: str, short_side: int, crop_size: int, manifest_digest: Path
) -> dict[str, Any]:
    """The inputs that all evaluations of a table share, with the keys of their records; `code` is that of scoring.

    Args:
        split: split that is evaluated.
        short_side: short side of the resized frames in pixels.
        crop_size: height and width of the clips in pixels.
        manifest_digest: the file `manifest.sha256`.
    """
    data = manifest_digest.read_text(encoding="utf-8").strip()
    return {
        "split": split,
        "short_side": short_side,
        "crop_size": crop_size,
        "data": data,
        "code": scoring_code(),
    }


def module_code(module: str) -> str:
    """Digest of the code of a module and of all modules that it imports from this package."""
    return _digest(code_digests([module], within="ffnrepro"))


def code_digests(modules: Iterable[str], *, within: str = "ffnrepro.recipe") -> dict[str, str]:
    """A digest for each module and for each module that it imports from the package `within`, directly or indirectly.

    Comments, docstrings and formatting do not count.
    """
    digests: dict[str, str] = {}
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module in digests:
            continue
        text, imported = _read_module(module)
        digests[module] = hashlib.sha256(text.encode()).hexdigest()[:8]
        # Importing a module also runs the `__init__.py` of its packages.
        todo += [
            name for name in (*imported, module.rpartition(".")[0]) if f"{name}.".startswith(f"{within}.")
        ]
    return {module: digests[module] for module in sorted(digests)}


@cache
def _read_module(module: str) -> tuple[str, tuple[str, ...]]:
    """Code of a module without docstrings and other bare strings, and the modules that it imports."""
    tree = ast.parse(_file_of(module).read_bytes())
    imported = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            imported += [name if _file_of(name).exists() else node.module for name in names]
        elif isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        body = getattr(node, "body", None)
        if isinstance(body, list):
            body[:] = [
                item
                for item in body
                if not (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
            ]
    return ast.unparse(tree), tuple(imported)


def _file_of(module: str) -> Path:
    path = _PACKAGE.parent.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


# --- folders


def write_run(folder: Path, settings: RunSettings) -> None:
    """Write `settings.json`: all settings of the run, and the digests of its code.

    Raises:
        UserError: the folder's name is not that of these settings and of this code.
    """
    check_key(folder, settings)
    content = settings.model_dump(mode="json")
    write_json(folder / "settings.json", {"settings": content, "code": method_code(settings.method.method)})


def read_run(folder: Path) -> tuple[RunSettings, dict[str, str]]:
    """Settings of a run, and the digests of the code that its key was computed from.

    Raises:
        UserError: the file cannot be read, or has settings that this version does not know.
    """
    path = folder / "settings.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        training = content["settings"].get("training", {})
        if "batchnorm_clips" in training:
            # The earlier name of the same setting.
            training["micro_batch"] = training.pop("batchnorm_clips")
        return read_settings(RunSettings, content["settings"], source=str(path)), dict(content["code"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); delete it and run snakemake again") from error


def check_key(folder: Path, settings: RunSettings) -> None:
    """Refuse to work in a folder whose key is not that of these settings and of the code of this process.

    Raises:
        UserError: the keys differ, because code was edited while the job waited in the queue.
    """
    key = run_key(settings)
    if not folder.name.endswith(f"-{key}"):
        raise UserError(
            f"{folder}: code and settings.json now have the key {key}, because one of them was edited after this job was "
            "planned. Nothing was computed; run snakemake again"
        )


def state_folder(state: Path, run: str, seed: int, data: str) -> Path:
    """Folder of the resumable state of a training; each digest of the data has its own folder.

    Args:
        state: folder of all states.
        run: name of the run.
        seed: seed of the training.
        data: digest of the data.
    """
    return state / run / f"seed{seed}-{data[:8]}"


def latest_states(state: Path) -> dict[tuple[str, str], Path]:
    """The state folder of each training, by run and seed; if it was trained on several states of the data, the latest one."""
    changed = {}
    for folder in state.glob("*-????????/seed*-*"):
        # The folder may be deleted at this moment; a network file system has its own errors for that.
        with suppress(OSError):
            changed[folder] = folder.stat().st_mtime
    folders = sorted(changed, key=changed.__getitem__)
    return {(path.parent.name, path.name.removeprefix("seed").partition("-")[0]): path for path in folders}


def differences(old: Path, new: RunSettings) -> list[str]:
    """The settings and modules in which a new run differs from that in the folder `old`, such as `depth 50 -> 18`."""
    settings, code = read_run(old)
    before, after = (dict(_flat(item.effective().model_dump(mode="json"))) for item in (settings, new))
    changes = [
        f"{key.removeprefix('method.')} {before.get(key, 'unset')} -> {after.get(key, 'unset')}"
        for key in dict.fromkeys([*after, *before])
        if before.get(key) != after.get(key)
    ]
    code_now = method_code(new.method.method)
    modules = [module for module in {**code, **code_now} if code.get(module) != code_now.get(module)]
    return changes + [f"code of {module}" for module in modules]


def unpublished_settings(settings: RunSettings) -> list[str]:
    """The settings of a run that differ from the published recipe, such as `training.crop random instead of multi_scale`.

    The recipe is that of the declared defaults, with ImageNet weights, and horizontal flip on other data sets than
    Something-Something. Settings without a default belong to the method. An imported network has no such settings.
    """
    if isinstance(settings.method, Imported):
        return []
    own = settings.effective()
    flip = not own.dataset.startswith("something-something")
    defaults = {
        name: field.default
        for name, field in type(own.method).model_fields.items()
        if not field.is_required()
    }
    recipe = RunSettings(
        dataset=own.dataset,
        method=own.method.model_copy(update=defaults),
        training=TrainingSettings(flip=flip),
        weights=None if own.start else IMAGENET.get(own.network.depth, "imagenet"),
        start=own.start,
    )
    published, found = (dict(_flat(item.model_dump(mode="json"))) for item in (recipe, own))
    return [
        f"{key.removeprefix('method.')} {_yaml(value)} instead of {_yaml(published[key])}"
        for key, value in found.items()
        if value != published[key]
    ]


def _yaml(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
