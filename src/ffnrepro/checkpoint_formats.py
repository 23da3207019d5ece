"""Checkpoint files: recognises the file type, the code that wrote the file, and the network in it.

`read_checkpoint` reads our own files and those of FFN's authors, mit-han-lab's TSM, mmaction2's TSM, torchvision and
timm (ResNets), and mmpretrain. It recognises the format by the keys, renames the keys to ours (torchvision's), and reads
the architecture from keys and shapes. Any other file is refused in one line that says what it is.
"""

import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.serialization import MAGIC_NUMBER

from ffnrepro.errors import UserError
from ffnrepro.recipe.models.tsm import BLOCKS, BasicBlock, Bottleneck, is_shifted
from ffnrepro.recipe.network import Shift

FORMAT = "ffnrepro checkpoint 1"
"""Marks our own files; the number is raised when older files can no longer be read."""

PAPER_SIZES = (256, 224)
"""Short side of the frames and size of the clips in the paper, in pixels (section 4.1)."""

Kind = Literal["tsm", "ffn", "ffn_separate", "image"]
KIND_NAMES: dict[Kind, str] = {
    "tsm": "a TSM checkpoint",
    "ffn": "a checkpoint of a Frame Flexible Network",
    "ffn_separate": "a checkpoint of separate networks for each frame count",
    "image": "an image network",
}


@dataclass(frozen=True)
class Checkpoint:
    """The network of a file.

    Attributes:
        kind: TSM, FFN, FFN without weight sharing, or a ResNet for images.
        source: The code whose format the file has.
        architecture: Arguments of the network. In a file that is not ours, `classes` is missing if there is no classifier,
            and `shift` if the keys do not say which blocks shift.
        tensors: The tensors by our names.
        class_names: The names of the classes, which only our own files and those of mmaction2 and mmpretrain may hold.
        dataset: The data set that the network was trained on, which only our own files hold.
        train_frames: The frame counts that the network was trained at; empty if the file does not say. All files of an FFN
            say so, and our own files of a TSM.
        sizes: Short side of the frames and size of the clips that the network was trained on, in pixels, which only our
            own files hold.
    """

    kind: Kind
    source: str
    architecture: dict[str, Any]
    tensors: dict[str, Tensor]
    class_names: tuple[str, ...] | None = None
    dataset: str | None = None
    train_frames: tuple[int, ...] = ()
    sizes: tuple[int, int] | None = None

    def describe(self) -> str:
        """Such as "a TSM checkpoint in the format of mit-han-lab: depth 50, 400 classes"."""
        details = [f"depth {self.architecture.get('depth')}"]
        if "classes" in self.architecture:
            details.append(f"{self.architecture['classes']} classes")
        if "frame_counts" in self.architecture:
            details.append(f"frame counts {self.architecture['frame_counts']}")
        return f"{KIND_NAMES[self.kind]} in the format of {self.source}: {', '.join(details)}"


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file and recognise its network.

    Raises:
        UserError: the file is missing, is not a checkpoint, holds objects that are not plain values, or has keys of an
            unknown format.
    """
    content = _load(path)
    state = _state_dict(path, content)
    if "format" in content:
        return _read_our_file(path, content, state)
    state = _without_wrappers(state)
    for pattern, what in _OTHER_TSMS.items():
        if name := next((name for name in state if re.search(pattern, name)), None):
            raise UserError(
                f"{path}: is a TSM {what}, such as {name}; give a TSM that shifts inside plain residual blocks"
            )
    rules: tuple[tuple[str, str], ...]
    if any(name.startswith("base_model.") for name in state):
        source, rules = "mit-han-lab or FFN's authors", _BASE_MODEL
    elif "backbone.layer1.0.conv1.weight" in state:
        source, rules = "mmpretrain", _MMPRETRAIN
    elif any(name.startswith("backbone.") for name in state):
        source, rules = "mmaction2", _MMACTION2
    elif "layer1.0.conv1.weight" in state:
        source, rules = "torchvision", ()
    else:
        raise UserError(f"{path}: {_unknown(state)}")
    tensors = _rename(state, rules)
    architecture = _architecture_of(path, tensors)
    shift = _shift_of(path, state, tensors)
    kind: Kind = "image" if rules in ((), _MMPRETRAIN) else "tsm"
    if "frame_counts" in architecture:
        kind = "ffn"
    if rules is _BASE_MODEL and kind == "ffn":
        # The authors' FFN has no wrapper around the convolution, and shifts every block.
        source, shift = "FFN's authors", "all"
    elif rules is _BASE_MODEL and shift:
        source = "mit-han-lab"
    if shift:
        architecture["shift"] = shift
    return Checkpoint(
        kind,
        source,
        architecture,
        tensors,
        _class_names_of(content),
        train_frames=tuple(architecture.get("frame_counts", ())),
    )


# --- The file --------------------------------------------------------------------------------------------------

_scalar: Callable[..., Any] = np.float64(0).__reduce__()[0]  # type: ignore[assignment]
_NUMPY_SCALARS: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    # Foreign checkpoints hold numpy scalars (`best_prec1`), under the module name of numpy 1 or of numpy 2.
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]


def _load(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "no such file"
        raise UserError(f"{path}: {problem}; give the path of a checkpoint")
    if other := _other_file_type(path):
        raise UserError(f"{path}: is {other}")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMPY_SCALARS):
            warnings.simplefilter("ignore")  # about pickle protocols
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise anything
        # Torch puts its own advice around the error of its unpickler.
        reason = str(error.__context__ or error).strip() or type(error).__name__
        if foreign := re.search(r"GLOBAL ([\w.]+)", reason):
            raise UserError(
                f"{path}: holds an object of {foreign[1]}, but only tensors and plain values are read, because reading any other class "
                "can run code; if you trust the file, load it where that class is installed, and torch.save its state_dict alone"
            ) from error
        raise UserError(
            f"{path}: torch.load cannot read it ({reason.splitlines()[0].split('. ')[0][:160]}), so it is incomplete, damaged or not "
            "written by torch.save; download it again"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(
            f"{path}: holds a {type(content).__name__}, not a state_dict of tensors; save the model's state_dict"
        )
    return content


def _other_file_type(path: Path) -> str | None:
    """The type of a file that `torch.save` did not write, and what to do; None if it may be one of `torch.save`."""
    with path.open("rb") as file:
        head = file.read(512)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not head:
        return "empty (0 bytes); download it again"
    if text.lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not a checkpoint; open it in a browser to see why (a login, an expired link), and fetch the checkpoint itself"
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the checkpoint that it stands for; fetch that with git lfs pull"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "a safetensors file, which cannot be read; load it with safetensors.torch.load_file, and save the result with torch.save"
    if head[:1] == b"\x80" and MAGIC_NUMBER.to_bytes(10, "little") not in head:
        return "a pickle that torch.save did not write; save the state_dict with torch.save where the file was made"
    if head[:1] == b"\x08" and head[2:3] == b"\x12":
        return "an ONNX file, which cannot be read; give the checkpoint that it was exported from"
    if head[:2] == b"\x1f\x8b" or head[257:262] == b"ustar":
        return "an archive (gzip or tar); unpack it, and give the checkpoint in it"
    if head[:2] == b"PK":
        return _archive_type(path)
    if head.isascii() and all(byte >= 32 or byte in b"\t\r\n" for byte in head):
        return f"text, not a checkpoint (it begins with {text.decode().splitlines()[0][:60]!r}); download it again"
    return None


def _archive_type(path: Path) -> str | None:
    """The same for a zip archive."""
    if not zipfile.is_zipfile(path):
        return f"incomplete: its end is missing after {path.stat().st_size} bytes; download it again"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive, which cannot be read; load it with torch.jit.load, and save its state_dict with torch.save"
    if not any(name.endswith("/data.pkl") for name in names):
        return f"a zip archive of {first_names(names)}, not of torch.save; unpack it, and give the checkpoint in it"
    return None


# --- Keys ------------------------------------------------------------------------------------------------------

_STATE_KEYS = ("state_dict", "model_state", "model_state_dict", "model")
"""Entries that may hold the tensors: in most code, in PySlowFast, in other code, and in torchvision's reference scripts."""

_WRAPPERS = ("module.", "model.", "_orig_mod.")
"""Prefixes that DataParallel, Lightning and torch.compile put before the names."""

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
_OTHER_TSMS = {
    r"layer\d\.\d+\.(block|nl|non_local_block)\.": "with non-local blocks",
    r"layer\d\.\d+\.net\.": "that shifts before whole blocks (shift_place=block)",
    r"layer\d\.net\.": "with temporal pooling",
}
"""Networks of mit-han-lab and mmaction2 that cannot be built here, by their keys."""
_MMPRETRAIN = ((r"^backbone\.", ""), (r"^head\.fc\.", "fc."))


def _state_dict(path: Path, content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The named tensors of a file: its whole content, or one of its entries."""
    entries = [content.get(key) for key in _STATE_KEYS]
    state = next((entry for entry in entries if isinstance(entry, Mapping)), content)
    if not state or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(
            f"{path}: holds no state_dict of tensors (its entries: {first_names(content)}); save the model's state_dict"
        )
    return {str(name): tensor for name, tensor in state.items()}


def _without_wrappers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    while prefix := next((word for word in _WRAPPERS if all(name.startswith(word) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _unknown(state: Mapping[str, Tensor]) -> str:
    """The message about keys of an unknown format."""
    inner = [
        name.removesuffix("layer1.0.conv1.weight") for name in state if name.endswith("layer1.0.conv1.weight")
    ]
    if inner:
        return f"its ResNet is under {first_names(inner)}; save only the tensors of one such network, without the prefix"
    return (
        f"its keys ({first_names(state)}) are of an unknown format; the known formats are those of ffnrepro, FFN's authors, mit-han-lab's TSM, "
        "mmaction2's TSM and torchvision's ResNets"
    )


def _rename(state: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        ours = name
        for pattern, replacement in rules:
            ours = re.sub(pattern, replacement, ours)
        renamed[ours] = tensor.flatten() if ".alteration." in ours else tensor
    for name in [name for name in renamed if name.endswith(".running_var")]:
        # Files from before PyTorch 0.4.1 have no count of batches. Nothing depends on it.
        renamed.setdefault(name.removesuffix("running_var") + "num_batches_tracked", torch.tensor(0))
    return renamed


# --- Architecture ----------------------------------------------------------------------------------------------


def _read_our_file(path: Path, content: Mapping[str, Any], tensors: dict[str, Tensor]) -> Checkpoint:
    architecture = content.get("architecture")
    kind = architecture.get("method") if isinstance(architecture, Mapping) else None
    if not isinstance(architecture, Mapping) or kind not in ("tsm", "ffn", "ffn_separate"):
        raise UserError(
            f"{path}: does not describe a network that this version knows (format {content['format']!r}, architecture "
            f"{architecture!r}); use the version that wrote it"
        )
    # Files from before this setting have no `shift`; every block shifted then.
    own = {"shift": "all", **{key: value for key, value in architecture.items() if key != "method"}}
    dataset = content.get("dataset")
    # An older file has no `train_frames`, but the architecture of an FFN contains them.
    counts = content.get("train_frames") or own.get("frame_counts")
    short_side, crop_size = (content.get(key) for key in ("short_side", "crop_size"))
    return Checkpoint(
        kind,
        "ffnrepro",
        own,
        tensors,
        _class_names_of(content),
        dataset if isinstance(dataset, str) else None,
        tuple(n for n in counts if isinstance(n, int)) if isinstance(counts, list | tuple) else (),
        (short_side, crop_size) if isinstance(short_side, int) and isinstance(crop_size, int) else None,
    )


def _class_names_of(content: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The class names in our own files and in those of mmaction2 and mmpretrain; None if there are none."""
    meta = content.get("meta")
    if isinstance(meta, Mapping):
        # Versions 0 and 1 of mmaction2 and mmpretrain use different keys.
        inner = meta.get("dataset_meta")
        content = {**meta, **(inner if isinstance(inner, Mapping) else {})}
    found = (content.get(key) for key in ("classes", "CLASSES"))
    lists = [tuple(names) for names in found if isinstance(names, list | tuple) and names]
    return next((names for names in lists if all(isinstance(name, str) for name in names)), None)


def _architecture_of(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The architecture whose weights have these names and shapes; missing weights are found later."""
    stem, classifier = (
        tuple(tensors[name].shape) if name in tensors else None for name in ("conv1.weight", "fc.weight")
    )
    if stem is None or len(stem) != 4 or (classifier is not None and len(classifier) != 2):
        raise UserError(
            f"{path}: holds no 2D ResNet (its keys: {first_names(tensors)}; the shape of conv1.weight: {stem}, of "
            f"fc.weight: {classifier}); give the checkpoint of a ResNet, or of a TSM on one"
        )
    block = Bottleneck if any(".conv3." in name for name in tensors) else BasicBlock
    indices = {match.groups() for name in tensors if (match := re.match(r"layer(\d+)\.(\d+)\.", name))}
    stages = tuple(sum(found == stage for found, _ in indices) for stage in "1234")
    depths = {blocks: depth for depth, (kind, blocks) in BLOCKS.items() if kind is block}
    if stages not in depths:
        raise UserError(
            f"{path}: holds a ResNet with {stages} blocks of {3 if block is Bottleneck else 2} convolutions; the known "
            f"depths are {', '.join(map(str, BLOCKS))}"
        )
    private = (re.search(r"(?:bn\d|downsample\.1|alteration)\.(\d+)(?:\.|$)", name) for name in tensors)
    frame_counts = sorted({int(match[1]) for match in private if match})
    return {
        **({"classes": classifier[0]} if classifier else {}),
        "depth": depths[stages],
        "width": stem[0],
        "stem": stem[-1],
        # Foreign files do not store the dropout; this is that of all published networks.
        "dropout": 0.5,
        **({"frame_counts": frame_counts} if frame_counts else {}),
    }


def _shift_of(path: Path, theirs: Iterable[str], ours: Iterable[str]) -> Shift | None:
    """Which blocks shift: mit-han-lab and mmaction2 mark each of them by `.net.`. None: no block is marked."""
    marked = re.compile(r"layer(\d+)\.(\d+)\.conv1\.(?:conv\.)?net\.weight$")
    every = re.compile(r"layer(\d+)\.(\d+)\.conv1\.weight$")
    shifted = {match.groups() for name in theirs if (match := marked.search(name))}
    blocks = {match.groups() for name in ours if (match := every.match(name))}
    if not shifted:
        return None
    patterns: tuple[Shift, ...] = ("all", "every_second")
    for shift in patterns:
        if shifted == {block for block in blocks if is_shifted(shift, int(block[1]))}:
            return shift
    still = first_names([f"layer{stage}.{index}" for stage, index in sorted(blocks - shifted)])
    moved = first_names([f"layer{stage}.{index}" for stage, index in sorted(shifted)])
    raise UserError(
        f"{path}: its keys mark the shift (.net.) in {moved}, but not in {still}; a network shifts all blocks, or blocks 0, 2, "
        "4, ... of each stage"
    )


def first_names(names: Iterable[str], limit: int = 5) -> str:
    """The first few names as text, and how many more there are."""
    names = [str(name) for name in names]
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
