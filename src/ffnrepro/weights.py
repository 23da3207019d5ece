"""Weights of the networks: our own checkpoints, checkpoints of other people's code, and ImageNet weights.

`load_checkpoint` returns a ready network from our own files and from the files of FFN's authors, of
mit-han-lab's TSM and of mmaction2's TSM. It recognises the format by the keys, and renames the keys to ours
(torchvision's). Either every weight is filled, or one error lists the weights that do not match.
"""

import hashlib
import re
import socket
from collections.abc import Callable, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, ResNet50_Weights, ResNet101_Weights

from ffnrepro.config import IMAGENET
from ffnrepro.errors import UserError
from ffnrepro.files import file_digest, replacing
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork, SeparateNetworks
from ffnrepro.recipe.models.pretrained import load_pretrained, pretrained_targets
from ffnrepro.recipe.models.tsm import BLOCKS, TSM, BasicBlock, Bottleneck

FORMAT = "ffnrepro checkpoint 1"
"""Marks our own files; the number is raised when older files can no longer be read."""

Network = TSM | FrameFlexibleNetwork | SeparateNetworks

_KINDS: dict[str, type[Network]] = {
    "tsm": TSM,
    "ffn": FrameFlexibleNetwork,
    "ffn_separate": SeparateNetworks,
}
"""Names of the networks in our own files, as `method` of their architecture."""

_scalar: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
_NUMPY_SCALARS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    # Other people's checkpoints hold numpy scalars (`best_prec1`), under the name of numpy 1 or of numpy 2.
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]


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


def save_checkpoint(path: Path, model: nn.Module) -> None:
    """Write a network in the form that `load_checkpoint` reads: tensors and plain values, atomically.

    Args:
        path: the file to write; its folder is made if necessary.
        model: the network.
    """
    kind = next(name for name, kind in _KINDS.items() if type(model) is kind)
    content: dict[str, Any] = {
        "format": FORMAT,
        "architecture": {"method": kind, **model.architecture},  # type: ignore[dict-item]
        "state_dict": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)


def load_checkpoint(path: Path | str) -> Network:
    """Read a network from a checkpoint of ours, of FFN's authors, of mit-han-lab's TSM or of mmaction2's TSM.

    Args:
        path: the file. Depth, width, classes and frame counts are read from it.

    Returns:
        The network on the CPU, in evaluation mode, every weight filled.

    Raises:
        UserError: the file is missing or not a checkpoint, its format is unknown, or its weights do not make up
            exactly one network; the message lists weights that are missing, left over or of another shape.
    """
    path = Path(path)
    content = _read(path)
    own = "format" in content
    state = _tensors(path, content) if own else _rename(path, _tensors(path, content))
    try:
        architecture = {**content["architecture"]} if own else _architecture_of(state)
        # Build the network without memory first, so that no random numbers are drawn for weights that are replaced.
        with torch.device("meta"):
            model = _KINDS[architecture.pop("method")](**architecture)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: does not describe a network that this version knows ({error!r}); fetch or write the file again"
        ) from error
    _require_match(path, model.state_dict(), state)
    model.to_empty(device="cpu")
    model.load_state_dict(state)
    return model.eval()


# --- Reading files and recognising formats ---------------------------------------------------------------------


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of a checkpoint")
    try:
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:160]
        raise UserError(
            f"{path}: not a checkpoint of tensors and plain values ({type(error).__name__}: {reason}); "
            "fetch it again, or save its state_dict alone with torch.save where it was made"
        ) from error
    return content if isinstance(content, Mapping) else {"state_dict": content}


def _tensors(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The named tensors of a state dict, raw or under "state_dict", without a wrapper's `module.`."""
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path}: holds no state_dict of tensors; save the model's state_dict")
    return {str(name).removeprefix("module."): tensor for name, tensor in state.items()}


_BASE_MODEL = (  # FFN's authors and mit-han-lab's TSM
    (r"^base_model\.", ""),
    (r"^new_fc\.", "fc."),
    (r"\.conv1\.net\.", ".conv1."),
    (r"(^|\.)bn(\d)_(\d+)\.", r"\1bn\2.\3."),
    (r"\.adaconv_(\d+)\.weight$", r".conv1.alteration.\1"),
    (r"\.downsample_conv\.", ".downsample.0."),
    (r"\.downsample_bn_(\d+)\.", r".downsample.1.\1."),
)
_MMACTION2 = (
    (r"^backbone\.", ""),
    (r"^cls_head\.fc_cls\.", "fc."),
    (r"\.downsample\.conv\.", ".downsample.0."),
    (r"\.downsample\.bn\.", ".downsample.1."),
    (r"(^|\.)conv(\d)\.bn\.", r"\1bn\2."),
    (r"\.conv1\.conv\.net\.", ".conv1."),
    (r"(^|\.)conv(\d)\.conv\.", r"\1conv\2."),
)


def _rename(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by our names, from another code's state dict without `module.`."""
    if any(name.startswith("base_model.") for name in state):
        rules = _BASE_MODEL
    elif any(name.startswith("backbone.") for name in state):
        rules = _MMACTION2
    else:
        raise UserError(
            f"{path}: its keys ({_some(list(state))}) are of no known format; known are the formats of ffnrepro, FFN's authors, "
            "mit-han-lab's TSM and mmaction2's TSM. Set network.weights for a file of ImageNet weights"
        )
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours = name
        for pattern, replacement in rules:
            ours = re.sub(pattern, replacement, ours)
        renamed[ours] = tensor.flatten() if ".alteration." in ours else tensor
    for name in [name for name in renamed if name.endswith(".running_var")]:
        # Files from before PyTorch 0.4.1 have no count of batches, and nothing depends on it.
        renamed.setdefault(name.removesuffix("running_var") + "num_batches_tracked", torch.tensor(0))
    return renamed


def _architecture_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The architecture whose weights have these names and shapes; `_require_match` finds missing weights later."""
    block = Bottleneck if any(".conv3." in name for name in state) else BasicBlock
    stages = tuple(
        len({name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")})
        for stage in (1, 2, 3, 4)
    )
    depths = {f"{kind.__name__} {blocks}": depth for depth, (kind, blocks) in BLOCKS.items()}
    private = (re.search(r"(?:bn\d|downsample\.1|alteration)\.(\d+)(?:\.|$)", name) for name in state)
    frame_counts = sorted({int(match[1]) for match in private if match})
    return {
        "method": "ffn" if frame_counts else "tsm",
        "classes": state["fc.weight"].shape[0],
        "depth": depths[f"{block.__name__} {stages}"],
        "width": state["conv1.weight"].shape[0],
        "stem": state["conv1.weight"].shape[-1],
        # The dropout of all published networks; their files do not store it.
        "dropout": 0.5,
        **({"frame_counts": frame_counts} if frame_counts else {}),
    }


def _require_match(path: Path | str, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    missing = [name for name in expected if name not in found]
    left_over = [name for name in found if name not in expected]
    shapes = [
        f"{name} {tuple(found[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and found[name].shape != tensor.shape
    ]
    kinds = (("missing", missing), ("left over", left_over), ("of another shape", shapes))
    wrong = [f"{kind}: {_some(names)}" for kind, names in kinds if names]
    if wrong:
        raise UserError(
            f"{path}: its weights do not fit the network ({'; '.join(wrong)}); give the file of this network"
        )


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


# --- Pretrained on ImageNet ------------------------------------------------------------------------------------


def start_from(model: nn.Module, path: Path, *, digest: str | None = None) -> None:
    """Start a network from ImageNet weights, or from a trained network of the same architecture.

    Args:
        model: the network, changed in place.
        path: torchvision's file of the same depth; or a checkpoint, where `digest` is None.
        digest: the beginning of the SHA-256 that the ImageNet weights must have.

    Raises:
        UserError: the file is missing, has another SHA-256, or its weights do not fit the network.
    """
    if digest is None:
        state = load_checkpoint(path).state_dict()
        _require_match(path, model.state_dict(), state)
        model.load_state_dict(state)
        return
    state = _tensors(path, _read(path))
    check_pretrained(path, digest)
    # Some files have a count of batches, but here it starts at zero.
    found = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith("fc.") and not name.endswith(".num_batches_tracked")
    }
    _require_match(path, {name: copies[0] for name, copies in pretrained_targets(model).items()}, found)
    load_pretrained(model, found)


def check_pretrained(path: Path, sha256_prefix: str) -> None:
    """Check that a file's SHA-256 begins with the expected digits.

    Raises:
        UserError: it does not.
    """
    found = file_digest(path)
    if not found.startswith(sha256_prefix):
        raise UserError(
            f"{path}: SHA-256 {found[: max(8, len(sha256_prefix))]}... instead of {sha256_prefix}...; "
            "the file is damaged or another one: delete it and fetch it again"
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
