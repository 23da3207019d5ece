"""Weights of the networks: our own checkpoints, checkpoints of other people's code, and ImageNet weights.

`load_checkpoint` returns a ready network from our own files and from the files of FFN's authors, of
mit-han-lab's TSM and of mmaction2's TSM; `start_from` starts a network from one of them, or from an image network.
Either every weight is filled, or one error lists the weights that do not match.
"""

import hashlib
import logging
import socket
from collections.abc import Mapping, Sequence
from functools import cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights, ResNet101_Weights

from ffnrepro.checkpoint_formats import FORMAT, KIND_NAMES, Checkpoint, Kind, first_names, read_checkpoint
from ffnrepro.config import IMAGENET
from ffnrepro.errors import UserError
from ffnrepro.files import file_digest, read_record, replacing
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork, SeparateNetworks
from ffnrepro.recipe.models.pretrained import load_pretrained, pretrained_targets
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.recipe.network import NetworkSettings, Shift
from ffnrepro.settings import listed_values

logger = logging.getLogger(__name__)

Network = TSM | FrameFlexibleNetwork | SeparateNetworks

_KINDS: dict[Kind, type[Network]] = {
    "tsm": TSM,
    "ffn": FrameFlexibleNetwork,
    "ffn_separate": SeparateNetworks,
}
"""Names of the networks in our own files, as `method` of their architecture."""

PRETRAINED = {
    18: ResNet18_Weights.IMAGENET1K_V1.url,
    50: ResNet50_Weights.IMAGENET1K_V1.url,
    101: ResNet101_Weights.IMAGENET1K_V1.url,
}
"""torchvision's ImageNet-1k V1 weights, from which the published networks start, by depth."""


def tensors_digest(state_dict: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors: of their names, types, shapes and values in the order of the names.

    A digest of a file's bytes would not do, because the bytes also depend on the file's name and the memory format.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        tensor = state_dict[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


# --- Our own files ---------------------------------------------------------------------------------------------


def save_checkpoint(
    path: Path,
    model: nn.Module,
    *,
    class_names: Sequence[str] | None = None,
    dataset: str | None = None,
    train_frames: Sequence[int] = (),
    sizes: tuple[int, int] | None = None,
) -> None:
    """Write a network in the form that `load_checkpoint` reads: tensors and plain values, atomically.

    Args:
        path: the file to write; its folder is made if necessary.
        model: the network.
        class_names: names of its classes; None: not known.
        dataset: name of the data set that it was trained on; None: not known.
        train_frames: frame counts that it was trained at; empty: not known.
        sizes: short side of the frames and size of the clips that it was trained on, in pixels; None: not known.
    """
    content: dict[str, Any] = {
        "format": FORMAT,
        "architecture": {"method": _kind_of(model), **model.architecture},  # type: ignore[dict-item]
        "state_dict": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        **({"classes": list(class_names)} if class_names else {}),
        **({"dataset": dataset} if dataset else {}),
        **({"train_frames": list(train_frames)} if train_frames else {}),
        **({"short_side": sizes[0], "crop_size": sizes[1]} if sizes else {}),
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)


def _kind_of(model: nn.Module) -> Kind:
    return next(name for name, kind in _KINDS.items() if type(model) is kind)


def settings_beside(path: Path) -> dict[str, Any]:
    """The settings in the `run.json` beside a file; none where there is no such record."""
    settings = read_record(path.with_name("run.json")).get("settings")
    return settings if isinstance(settings, dict) else {}


def load_checkpoint(path: Path | str, *, shift: Shift | None = None) -> Network:
    """Read a network from a checkpoint of ours, of FFN's authors, of mit-han-lab's TSM or of mmaction2's TSM.

    Args:
        path: the file. Depth, width, classes, frame counts and shifted blocks are read from it.
        shift: the blocks that shift, for a file whose keys do not say; None: all, with a warning.

    Returns:
        The network on the CPU, in evaluation mode, every weight filled.

    Raises:
        UserError: the file is missing or not a checkpoint, its format is unknown, it shifts other blocks than `shift`, or its
            weights do not make up exactly one network; the message lists weights that are missing, left over or of
            another shape.
    """
    path = Path(path)
    return build_network(path, read_checkpoint(path), shift=shift)


def build_network(path: Path, checkpoint: Checkpoint, *, shift: Shift | None = None) -> Network:
    """Make the network of a checkpoint that was read from `path`; see `load_checkpoint`."""
    if checkpoint.kind == "image":
        raise UserError(
            f"{path}: is {checkpoint.describe()}, not a video network; a training can start from it (network.weights)"
        )
    if "classes" not in checkpoint.architecture:
        raise UserError(
            f"{path}: is {checkpoint.describe()}, without a classifier; a training can start from it (network.weights)"
        )
    known = checkpoint.architecture.get("shift")
    if shift and known not in (None, shift):
        raise UserError(
            f"{path}: its network has shift {known}, not {shift}; leave --shift out (in Python: the argument shift)"
        )
    if not shift and known is None:
        logger.warning(
            "%s: its keys do not say which blocks shift, so every block does, as in the TSM of FFN's authors; if that is wrong, "
            "ffnrepro checkpoint convert %s NEW --to ours --shift every_second (or none) writes a file that says so",
            path,
            path,
        )
    architecture = checkpoint.architecture | {"shift": known or shift or "all"}
    try:
        # Build the network without memory first, so that no random numbers are drawn for weights that are replaced.
        with torch.device("meta"):
            model = _KINDS[checkpoint.kind](**architecture)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: does not describe a network that this version knows ({error!r}); give the file of a whole network, written "
            "by this version or an earlier one"
        ) from error
    _require_match(path, model.state_dict(), checkpoint.tensors)
    model.to_empty(device="cpu")
    model.load_state_dict(checkpoint.tensors)
    return model.eval()


def _require_match(path: Path | str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in found]
    left_over = [name for name in found if name not in expected]
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("left over", left_over), ("of another shape", shapes))
    wrong = [f"{kind}: {first_names(names)}" for kind, names in kinds if names]
    if wrong:
        raise UserError(
            f"{path}: its weights do not fit the network ({'; '.join(wrong)}); the file is incomplete, or of another network, such as a "
            "ResNeXt: give the whole file of a plain ResNet, or of a TSM or FFN on one"
        )


# --- Starting from other weights -------------------------------------------------------------------------------


def start_from(model: nn.Module, path: Path, *, digest: str | None = None) -> str:
    """Start a network from the backbone of a file, or from a trained network of the same architecture.

    Args:
        model: TSM, FrameFlexibleNetwork or SeparateNetworks, changed in place. Each private BatchNorm starts as that of
            the file. Classifier and weight alteration stay as they are.
        path: an image network or a TSM of the same depth, width and stem, in any format that `read_checkpoint` knows; or a
            checkpoint of ours, where `digest` is None.
        digest: the beginning of the SHA-256 that the file must have.

    Returns:
        A line for the log, which says what the network starts from.

    Raises:
        UserError: the file is missing, has another SHA-256, or its weights do not fit the network.
    """
    checkpoint = read_checkpoint(path)
    if digest is None:
        network = build_network(path, checkpoint)
        check_same_network(path, network, model)
        # An imported network may shift other blocks; any other network was trained with network.shift.
        shifts = (each.architecture["shift"] for each in (network, cast("Network", model)))
        _warn_of_shift(path, *shifts)
        model.load_state_dict(network.state_dict())
        return f"starts from the network in {path}"
    check_pretrained(path, digest)
    if checkpoint.kind not in ("tsm", "image"):
        raise UserError(
            f"{path}: is {checkpoint.describe()}, which has separate weights for each frame count; give a TSM or an image network as "
            "network.weights"
        )
    theirs, ours = checkpoint.architecture, dict[str, Any](model.architecture)  # type: ignore[arg-type]
    if differ := [key for key in ("depth", "width", "stem") if theirs.get(key) != ours[key]]:
        raise UserError(
            f"{path}: its ResNet has {listed_values(theirs, differ)}, but the one to train has {listed_values(ours, differ)}; set "
            f"{', '.join(f'network.{key}' for key in differ)}, or another file as network.weights"
        )
    # Some files have a count of batches, but here it starts at zero.
    found = {
        name: tensor
        for name, tensor in checkpoint.tensors.items()
        if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
    }
    _require_match(path, {name: copies[0] for name, copies in pretrained_targets(model).items()}, found)
    load_pretrained(model, found)
    if checkpoint.kind == "tsm" and "shift" not in theirs:
        _warn_once(
            f"{path}: its keys do not say which blocks shift; this training uses network.shift: {ours['shift']} (all, "
            "every_second or none)"
        )
    elif checkpoint.kind == "tsm":
        _warn_of_shift(path, theirs["shift"], ours["shift"])
    return f"starts from the backbone of {checkpoint.describe()}; the classifier is new ({path})"


def check_same_network(path: Path, network: Network, model: nn.Module) -> None:
    """Check that a training of `model` can start from `network`, which was read from `path`.

    Raises:
        UserError: they differ in their kind, classes, ResNet or frame counts, so the weights of one do not fit the other.
    """
    found, needed = _kind_of(network), _kind_of(model)
    if found != needed:
        raise UserError(
            f"{path}: is {KIND_NAMES[found]}, but this training has to start from {KIND_NAMES[needed]}; set its `start` to an "
            "experiment of that kind"
        )
    theirs, ours = network.architecture, cast("Network", model).architecture
    if differ := [key for key in ours if key not in ("dropout", "shift") and theirs[key] != ours[key]]:
        raise UserError(
            f"{path}: its network has {listed_values(theirs, differ)}, but the one to train has {listed_values(ours, differ)}; both "
            "must be the same: set `start` to another experiment, or change the settings of the one to train"
        )


def _warn_of_shift(path: Path, theirs: Shift, ours: Shift) -> None:
    if theirs != ours:
        _warn_once(
            f"{path}: its network has shift {theirs}, but network.shift is {ours}; set network.shift: {theirs} to keep the shift "
            "that its weights were trained with"
        )


_warn_once = cache(logger.warning)


def check_start(path: Path, network: NetworkSettings, *, digest: str) -> str:
    """Check, without any training, that networks with these settings can start from a file; see `start_from`."""
    with torch.device("meta"):
        model = TSM(classes=1, **network.model_dump())
    return start_from(model, path, digest=digest)


def check_pretrained(path: Path, sha256_prefix: str) -> None:
    """Check that a file's SHA-256 begins with the expected digits.

    Raises:
        UserError: it does not.
    """
    found = file_digest(path)
    if not found.startswith(sha256_prefix):
        raise UserError(
            f"{path}: SHA-256 {found[: max(8, len(sha256_prefix))]}... instead of {sha256_prefix}...; "
            "the file is damaged or another one: delete it and download it again"
        )


def fetch_pretrained(depth: int, path: Path) -> None:
    """Download torchvision's ImageNet weights of a depth, unless the file exists, and check its hash.

    Args:
        depth: 18, 50 or 101.
        path: the file to write; its folder is made if necessary, and a partial file is never left there.

    Raises:
        UserError: the existing file has another hash, or the file cannot be downloaded.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        # Compute nodes often drop outgoing packets, and the download would wait for minutes.
        socket.setdefaulttimeout(30)
        try:
            torch.hub.download_url_to_file(PRETRAINED[depth], str(path), IMAGENET[depth], progress=False)
        except (OSError, RuntimeError, HTTPException) as error:
            raise UserError(
                f"{path}: cannot be downloaded ({error}); fetch {PRETRAINED[depth]} on a machine with internet access and set "
                "network.weights to the file"
            ) from error
    check_pretrained(path, IMAGENET[depth])
