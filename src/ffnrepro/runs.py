"""Runs: folders named by what made them, `results/runs/{experiment}-{key}`.

The key is a digest of the settings that decide the network and of the code of `recipe/` that the method uses. A changed
setting is another folder, so the old run stays, and going back to earlier settings finds it again. The data is not
part of the key: `manifest.sha256` is an ordinary input of training.
"""

import ast
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ffnrepro.config import IMAGENET, Config, TrainingSettings
from ffnrepro.errors import UserError
from ffnrepro.files import file_digest, write_json
from ffnrepro.methods import AnyMethod
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


# --- settings and key


class RunSettings(Settings):
    """All settings that decide a trained network. A missing one counts as its default, which never changes."""

    dataset: str = "something-something-v2"
    method: AnyMethod
    network: NetworkSettings = NetworkSettings()
    training: TrainingSettings = TrainingSettings()
    short_side: int = 256
    crop_size: int = 224
    weights: str | None = None
    """first eight digits of the SHA-256 of the pretrained weights"""
    start: str | None = None
    """key of the run that this one starts from"""

    def effective(self) -> "RunSettings":
        """The same settings, with the default in place of each value that has no effect."""
        return self.model_copy(
            update={"method": self.method.effective(), "training": self.training.effective()}
        )


def run_settings(config: Config, experiment: str) -> RunSettings:
    """The settings of an experiment, as the configuration is now."""
    own = config.experiments[experiment]
    network = config.network_of(experiment)
    return RunSettings(
        dataset=config.dataset,
        method=own.method,
        network=network,
        training=config.training_of(experiment),
        short_side=config.data.short_side,
        crop_size=config.data.crop_size,
        weights=None if own.start else weights_identity(config, network.depth),
        start=run_key(run_settings(config, own.start)) if own.start else None,
    )


def weights_identity(config: Config, depth: int) -> str | None:
    """The first eight digits of the SHA-256 of an experiment's pretrained weights: declared, or computed."""
    source, declared = config.network.weights, config.network.weights_sha256
    if source is None:
        return None
    if source == "imagenet":
        # `check_experiments` refuses a depth without such weights where its experiment is asked for.
        return IMAGENET.get(depth, "missing")
    if declared is not None:
        return declared[:8]
    try:
        return _digest_of_file(Path(source))[:8]
    except OSError:
        # A plan is made without the file, too. The run itself refuses to start.
        return "missing"


_digest_of_file = cache(file_digest)


def run_key(settings: RunSettings) -> str:
    """Eight hexadecimal digits over the settings that differ from their defaults, and the code."""
    content = settings.effective().model_dump(mode="json", exclude_defaults=True)
    return _digest({"settings": content, "code": method_code(settings.method.method)})


def run_name(config: Config, experiment: str) -> str:
    """Name of the run that an experiment stands for, as configuration and code are now."""
    return f"{experiment}-{run_key(run_settings(config, experiment))}"


# --- digests of code


def method_code(method: str) -> dict[str, str]:
    """A digest for each module of `recipe/` that decides a network of this method."""
    return code_digests(f"ffnrepro.recipe.{module}" for module in (f"methods.{method}", *_COMMON_CODE))


def scoring_code() -> str:
    """Digest of the code that decides the scores of a network on given videos."""
    return _digest(code_digests(["ffnrepro.recipe.scoring", "ffnrepro.recipe.clips"]))


def module_code(module: str) -> str:
    """Digest of the code of a module and of all that it imports from this package."""
    return _digest(code_digests([module], within="ffnrepro"))


def code_digests(modules: Iterable[str], *, within: str = "ffnrepro.recipe") -> dict[str, str]:
    """A digest for each module and for all that it imports from the package `within`, directly or indirectly.

    Comments, docstrings and the form of the code do not count.
    """
    digests: dict[str, str] = {}
    todo = list(modules)
    while todo:
        module = todo.pop()
        if module in digests:
            continue
        text, imported = _read_module(module)
        digests[module] = hashlib.sha256(text.encode()).hexdigest()[:8]
        # Importing a module runs the packages around it.
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
        UserError: settings and code are not those that the folder is named by.
    """
    check_key(folder, settings)
    content = settings.model_dump(mode="json")
    write_json(folder / "settings.json", {"settings": content, "code": method_code(settings.method.method)})


def read_run(folder: Path) -> tuple[RunSettings, dict[str, str]]:
    """Settings of a run, and the digests of the code that its key stands for.

    Raises:
        UserError: the file cannot be read, or has settings that this version does not know.
    """
    path = folder / "settings.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return read_settings(RunSettings, content["settings"], source=str(path)), dict(content["code"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: cannot be read ({error!r}); delete it and run snakemake again") from error


def check_key(folder: Path, settings: RunSettings) -> None:
    """Refuse to work in a folder whose name is not of these settings and the code of this process.

    Raises:
        UserError: it is not, since the code was edited while the job waited in the queue.
    """
    key = run_key(settings)
    if not folder.name.endswith(f"-{key}"):
        raise UserError(
            f"{folder}: code or settings.json now make the key {key}: one was edited after this job was planned. Nothing was "
            "computed; run snakemake again"
        )


def state_folder(state: Path, run: str, seed: int, data: str) -> Path:
    """Folder of the resumable state of a training: other data has another one.

    Args:
        state: folder of all states.
        run: name of the run.
        seed: of the training.
        data: digest of the data.
    """
    return state / run / f"seed{seed}-{data[:8]}"


def differences(old: Path, new: RunSettings) -> list[str]:
    """What makes a new run another one than that of the folder `old`: `training.learning_rate 0.01 -> 0.02`."""
    settings, code = read_run(old)
    before, after = (dict(_flat(item.effective().model_dump(mode="json"))) for item in (settings, new))
    words = [
        f"{key.removeprefix('method.')} {before.get(key, 'unset')} -> {after.get(key, 'unset')}"
        for key in dict.fromkeys([*after, *before])
        if before.get(key) != after.get(key)
    ]
    code_now = method_code(new.method.method)
    modules = [module for module in {**code, **code_now} if code.get(module) != code_now.get(module)]
    return words + [f"code of {module}" for module in modules]


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from _flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
