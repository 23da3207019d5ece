"""What decides a result, as plain values: settings, data, weights, code. Its digest is the key of what is kept.

Trainings and evaluations keep their work by this key (`state/train/KEY`, `state/evaluation/KEY`). Every job writes it
beside its results, as `state`; the workflow makes it, too, to tell whether files are of other settings, data or code.
"""

from pathlib import Path
from typing import Any

from ffnrepro.code_digest import code_digests
from ffnrepro.files import settings_digest, write_json


def key_of(decides: Any) -> str:
    """Name of what is kept."""
    return settings_digest(decides)[:16]


def data_decides(script: Path, **settings: Any) -> dict[str, Any]:
    """What decides the files of a job of the data or of the table.

    Args:
        script: of the rule.
        **settings: plain values that the job uses; of files that it reads the digests.
    """
    return {"settings": settings, "code": code_digests(script)}


def write_decides(path: Path, decides: dict[str, Any]) -> None:
    """Write what decided a job; last, since it says that the job's other files are whole."""
    write_json(path, {"state": key_of(decides), **decides})


def training_decides(
    script: Path, settings: dict[str, Any], *, manifest: Path, weights: Path | None
) -> dict[str, Any]:
    """What decides a trained network.

    Args:
        script: of the rule.
        settings: of `config.training_settings`.
        manifest: folder of the manifest.
        weights: pretrained, with their digest in a file beside them; or None.
    """
    return {
        "settings": settings,
        "data": _text(manifest / "manifest.sha256"),
        "weights": None if weights is None else _text(weights.with_suffix(".sha256")),
        "code": code_digests(script, settings["method"]),
    }


def evaluation_decides(
    script: Path, settings: dict[str, Any], *, manifest: Path, model: str
) -> dict[str, Any]:
    """What decides the predictions of a network.

    Args:
        script: of the rule.
        settings: of `config.evaluation_settings`.
        manifest: folder of the manifest.
        model: digest of the network's tensors.
    """
    return {
        "settings": settings,
        "data": _text(manifest / "manifest.sha256"),
        "model": model,
        "code": code_digests(script, settings["method"]),
    }


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8").strip()
