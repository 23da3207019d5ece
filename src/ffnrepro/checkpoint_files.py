"""`ffnrepro checkpoint`: describe a checkpoint file, and write its network in another format."""

import re
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ffnrepro.checkpoint_formats import KIND_NAMES, PAPER_SIZES, Checkpoint, read_checkpoint
from ffnrepro.errors import UserError
from ffnrepro.files import file_digest, make_folder, replacing
from ffnrepro.logs import logger
from ffnrepro.recipe.models.tsm import is_shifted
from ffnrepro.recipe.network import NetworkSettings, Shift
from ffnrepro.weights import Network, build_network, save_checkpoint, tensors_digest

Format = Literal["ours", "authors", "mit-han-lab"]


def describe(path: Path, *, shift: Shift | None = None) -> tuple[dict[str, str], str | None]:
    """Describe a checkpoint line by line, and what is wrong with its network, if anything.

    Args:
        path: The file.
        shift: The blocks that shift, for a file whose keys do not say.

    Raises:
        UserError: The file cannot be read, or is of no known format.
    """
    checkpoint = read_checkpoint(path)
    architecture = checkpoint.architecture
    names = checkpoint.class_names
    counts = ", ".join(map(str, checkpoint.train_frames))
    if checkpoint.kind in ("tsm", "image"):
        counts = f"one set of weights for all{counts and ', trained at '}{counts}"
    shifts = {
        "all": "all blocks",
        "every_second": "blocks 0, 2, 4, ... of each stage",
        "none": "no block",
        None: "its keys do not say which blocks",
    }
    lines = {
        "file": f"{path} ({path.stat().st_size / 1e6:.1f} MB, SHA-256 {file_digest(path)})",
        "format": checkpoint.source,
        "network": KIND_NAMES[checkpoint.kind],
        "depth": f"{architecture.get('depth')} (width {architecture.get('width')}, stem {architecture.get('stem')})",
        "frame counts": counts,
        "classes": str(architecture.get("classes", "no classifier")),
        "shift": shifts[architecture.get("shift", shift)] if checkpoint.kind != "image" else "no block",
        "digest": f"{tensors_digest(checkpoint.tensors)} (of the tensors)",
    }
    if names:
        lines["classes"] += f": {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
    if checkpoint.dataset:
        lines["trained on"] = checkpoint.dataset
    if checkpoint.sizes:
        lines["clips"] = "short side of {} pixels, crop of {}".format(*checkpoint.sizes)
    if checkpoint.kind == "image":
        return lines | {"use": "a training can start from it (network.weights)"}, None
    try:
        network = build_network(path, checkpoint, shift=shift or architecture.get("shift", "all"))
    except UserError as error:
        return lines, str(error)
    count = sum(parameter.numel() for parameter in network.parameters())
    return lines | {"parameters": f"{count:,}", "weights": "complete: none missing, none left over"}, None


def convert(path: Path, target: Path, *, to: Format, shift: Shift | None = None) -> str:
    """Write the network of a checkpoint in another format, and read it again to compare every tensor.

    Args:
        path: Checkpoint of a TSM or of a Frame Flexible Network.
        target: The file to write; it is written atomically.
        to: The format.
        shift: The blocks that shift, for a file whose keys do not say.

    Returns:
        A line that says what was written.

    Raises:
        UserError: The file is no such checkpoint, the format cannot hold its network, or `target` exists.
    """
    if target.exists():
        raise UserError(f"{target}: exists already; give the path of a new file")
    make_folder(target.parent)
    checkpoint = read_checkpoint(path)
    network = build_network(path, checkpoint, shift=shift)
    if to != "ours":
        _check_format(path, checkpoint, network, to)
    with replacing(target) as temporary:
        if to == "ours":
            save_checkpoint(
                temporary,
                network,
                class_names=checkpoint.class_names,
                dataset=checkpoint.dataset,
                train_frames=checkpoint.train_frames,
                sizes=checkpoint.sizes,
            )
        else:
            torch.save({"state_dict": renamed_tensors(network, to)}, temporary)
        written = read_checkpoint(temporary)
        if tensors_digest(written.tensors) != tensors_digest(network.state_dict()):
            raise RuntimeError(f"{target}: its tensors differ from those of {path}")
    return f"{target}: {written.describe()}; all tensors are identical to those of {path}"


def _check_format(path: Path, checkpoint: Checkpoint, network: Network, to: Format) -> None:
    """Refuse a network that a foreign format cannot represent, and warn of what that format leaves out."""
    settings, shift = network.architecture, network.architecture["shift"]
    switches = ("specialized_normalization", "weight_alteration")
    kept = "ours keeps it (--to ours)"
    if to == "mit-han-lab" and checkpoint.kind != "tsm":
        raise UserError(
            f"{path}: the format of mit-han-lab can only hold a TSM, which has no weights for each frame count, but this is "
            f"{KIND_NAMES[checkpoint.kind]} with the frame counts {settings['frame_counts']}; use --to authors or ours"
        )
    if checkpoint.kind == "ffn_separate" or not all(settings.get(switch, True) for switch in switches):
        raise UserError(
            f"{path}: the format of FFN's authors holds a network that shares its convolutions and has a BatchNorm and a weight "
            f"alteration for each frame count, which this one does not; {kept}"
        )
    if to == "authors" and shift != "all":
        raise UserError(
            f"{path}: the network has shift {shift}, but the code of FFN's authors shifts every block, and their format cannot "
            f"hold anything else; {kept}{', and so does --to mit-han-lab' if shift == 'every_second' else ''}"
        )
    if to == "mit-han-lab" and shift == "none":
        raise UserError(
            f"{path}: the network has shift none, but in the format of mit-han-lab, marks in the keys say which blocks shift, so a "
            f"file without marks would be ambiguous; {kept}"
        )
    left_out = {
        "class names": checkpoint.class_names is not None,
        "the name of the data set": checkpoint.dataset is not None,
        "the frame counts of its training": checkpoint.kind == "tsm" and bool(checkpoint.train_frames),
        f"dropout {settings['dropout']}": settings["dropout"] != NetworkSettings().dropout,
    }
    if words := [word for word, is_left_out in left_out.items() if is_left_out]:
        logger.warning(
            "%s: the format of %s cannot hold %s; this affects no score", path, to, ", ".join(words)
        )
    if checkpoint.sizes and checkpoint.sizes != PAPER_SIZES:
        logger.warning(
            "%s: the format of %s cannot hold the size of the clips; ffnrepro predict needs --short-side %d --crop-size %d",
            path,
            to,
            *checkpoint.sizes,
        )


def renamed_tensors(network: Network, to: Literal["authors", "mit-han-lab"]) -> dict[str, Tensor]:
    """The tensors of a network with the names of FFN's authors or of mit-han-lab's TSM, as `DataParallel` saves them."""
    is_ffn = "frame_counts" in network.architecture
    marked: Shift = network.architecture["shift"] if to == "mit-han-lab" else "none"
    return {
        _foreign_name(name, is_ffn=is_ffn, marked=marked): tensor.view(-1, 1, 1, 1)
        if ".alteration." in name
        else tensor
        for name, tensor in network.state_dict().items()
    }


def _foreign_name(name: str, *, is_ffn: bool, marked: Shift) -> str:
    if name.startswith("fc."):
        return f"module.new_{name}"
    if is_ffn:
        for pattern, replacement in _FFN_NAMES:
            name = re.sub(pattern, replacement, name)
    elif (block := re.match(r"layer\d\.(\d+)\.conv1\.", name)) and is_shifted(marked, int(block[1])):
        name = name.replace(".conv1.", ".conv1.net.")
    return f"module.base_model.{name}"


_FFN_NAMES = (
    (r"\.conv1\.alteration\.(\d+)$", r".adaconv_\1.weight"),
    (r"\.downsample\.0\.", ".downsample_conv."),
    (r"\.downsample\.1\.(\d+)\.", r".downsample_bn_\1."),
    (r"(^|\.)bn(\d)\.(\d+)\.", r"\1bn\2_\3."),
)
"""Our names -> the names in the authors' FFN; `checkpoint_formats` has the opposite direction."""
