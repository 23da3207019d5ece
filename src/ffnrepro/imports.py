"""Imported networks: runs whose network is read from a file of weights instead of trained (`method: checkpoint`)."""

from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd
import torch

from ffnrepro.checkpoint_formats import Checkpoint, read_checkpoint
from ffnrepro.config import Config
from ffnrepro.errors import UserError
from ffnrepro.files import file_digest, replacing, write_json, write_text
from ffnrepro.logs import logger
from ffnrepro.provenance import provenance
from ffnrepro.runs import RunSettings, check_key, read_run, run_settings
from ffnrepro.settings import listed_values
from ffnrepro.weights import (
    Network,
    build_network,
    check_same_network,
    save_checkpoint,
    settings_beside,
    tensors_digest,
)


def check_imports(
    config: Config,
    experiments: Collection[str],
    classes: Sequence[str],
    *,
    trained: Collection[str] = (),
    evaluated: Collection[tuple[str, int]] = (),
) -> None:
    """Check the files of imported networks before any job runs; see `read_network`.

    Warns if an FFN is to be evaluated at frame counts for which it has no sub-network: the file may be another one than the
    user thinks, because the configuration does not contain the frame counts of an imported network.

    Args:
        config: The configuration.
        experiments: Names of the experiments whose networks are imported.
        classes: Class names of the labels, in index order.
        trained: Names of the experiments that are trained; some may start from an imported network.
        evaluated: Experiments and the frame counts at which they are evaluated.

    Raises:
        UserError: A file cannot be imported, or a training cannot start from its network.
    """
    for name in sorted(experiments):
        path = config.imports[name]
        _, network = read_network(path, run_settings(config, name), classes)
        counts = network.architecture.get("frame_counts", [])
        others = sorted(frames for of, frames in evaluated if of == name and counts and frames not in counts)
        if others:
            logger.warning(
                "%s: its network has sub-networks for %s frames; at %s frames, the nearest one is evaluated; if that is not meant, set "
                "experiments.%s.path to another file, or change the frame_counts of the table",
                path,
                _listed(counts),
                _listed(others),
                name,
            )
        for training in sorted(trained):
            if config.experiments[training].start == name:
                with torch.device("meta"):
                    model = config.experiments[training].method.build(
                        len(classes), config.network_of(training)
                    )
                try:
                    check_same_network(path, network, model)
                except UserError as error:
                    raise UserError(f"config: experiments.{training}.start is {name!r}; {error}") from error


def read_network(path: Path, settings: RunSettings, classes: Sequence[str]) -> tuple[Checkpoint, Network]:
    """Read the network that a run imports, and check that it fits the settings and the labels.

    Warns if the file, or a `run.json` in its folder, says that the network has other classes.

    Args:
        path: The file.
        settings: Settings of the run. `network.shift` is used for a file whose keys do not say which blocks shift.
        classes: Class names of the labels, in index order.

    Returns:
        The content of the file, and its network.

    Raises:
        UserError: The file holds no known network, or a network that does not fit the settings and labels.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file; set the `path` of its experiment to the file of the network")
    checkpoint = read_checkpoint(path)
    found, configured = checkpoint.architecture, settings.network.model_dump()
    if differ := [key for key in ("depth", "width", "stem") if found.get(key) != configured[key]]:
        raise UserError(
            f"{path}: its ResNet has {listed_values(found, differ)}, but the configuration says {listed_values(configured, differ)}; give another "
            f"file, or set {', '.join(f'network.{key}: {found.get(key)}' for key in differ)} (an experiment may have a depth of its own)"
        )
    shift = None if "shift" in found else settings.network.shift
    network = build_network(path, checkpoint, shift=shift)
    if shift:
        logger.info("%s: its keys do not say which blocks shift, so network.shift decides: %s", path, shift)
    if found["classes"] != len(classes):
        raise UserError(
            f"{path}: its network has {found['classes']} classes, but the labels of {settings.dataset} have {len(classes)}; "
            "give a network that was trained on this data set"
        )
    if warning := _class_warning(path, checkpoint, settings, classes):
        logger.warning("%s", warning)
    return checkpoint, network


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _class_warning(
    path: Path, checkpoint: Checkpoint, settings: RunSettings, classes: Sequence[str]
) -> str | None:
    """A warning if the file, or the `run.json` in its folder, says that the network was trained on other classes."""
    names = checkpoint.class_names
    if names is not None and len(names) == len(classes):
        differ = [i for i in range(len(classes)) if names[i] != classes[i]]
        if not differ:
            return None
        return (
            f"{path}: {len(differ)} of its {len(names)} class names are not those of the labels of {settings.dataset}, such as class "
            f"{differ[0]}: {names[differ[0]]!r} instead of {classes[differ[0]]!r}; its scores are meaningless unless both lists name the "
            "same classes in different words"
        )
    dataset = checkpoint.dataset or settings_beside(path).get("dataset")
    if dataset not in (None, settings.dataset):
        return (
            f"{path}: was trained on {dataset}, but the labels are those of {settings.dataset}; its scores are meaningless unless both "
            "have the same list of classes"
        )
    return None


def import_network(run: Path, seed: int, *, path: Path, classes: Sequence[str], data: str) -> None:
    """Write `model.pt`, `model.sha256`, an empty `history.parquet` and `run.json` of a run that imports its network.

    Args:
        run: Folder of the run, with its `settings.json`.
        seed: Seed whose folder the files are written to; the network is the same for each seed.
        path: The file to import.
        classes: Class names of the labels, in index order.
        data: Digest of the data.

    Raises:
        UserError: The network is not the one that the run describes; see `read_network`.
    """
    settings, code = read_run(run)
    check_key(run, settings)
    checkpoint, network = read_network(path, settings, classes)
    sha256 = file_digest(path)
    if not sha256.startswith(str(settings.weights)):
        raise UserError(f"{path}: changed after {run.name} was planned; run snakemake again")
    folder, digest = run / f"seed{seed}", tensors_digest(network.state_dict())
    save_checkpoint(
        folder / "model.pt",
        network,
        class_names=checkpoint.class_names,
        dataset=checkpoint.dataset,
        train_frames=checkpoint.train_frames,
        sizes=checkpoint.sizes,
    )
    write_text(folder / "model.sha256", digest + "\n")
    with replacing(folder / "history.parquet") as temporary:
        pd.DataFrame({"epoch": pd.array([], dtype="int64")}).to_parquet(temporary, index=False)
    write_json(
        folder / "run.json",
        {
            "run": run.name,
            "seed": seed,
            "settings": settings.model_dump(mode="json"),
            "data": data,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "model": digest,
            "code": code,
            "imported": {
                "path": str(path),
                "sha256": sha256,
                "source": checkpoint.source,
                "kind": checkpoint.kind,
                "architecture": network.architecture,
            },
            **provenance(torch.device("cpu")),
        },
    )
    logger.info("%s: imported %s (%s)", run.name, checkpoint.describe(), path)
