"""Files that users of TSM, mmaction2 and image networks bring: each is read, or one line says what it is."""

import argparse
import gzip
import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn

from ffnrepro.checkpoint_formats import read_checkpoint
from ffnrepro.errors import UserError
from ffnrepro.files import file_digest
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork, SeparateNetworks
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.recipe.network import NetworkSettings
from ffnrepro.weights import check_start, load_checkpoint, save_checkpoint, start_from

from .test_weights import SMALL, to_authors, to_mmaction2

State = dict[str, Tensor]


def random_tensors(model: nn.Module) -> State:
    torch.manual_seed(2)
    return {
        name: torch.rand(tensor.shape) if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }


@pytest.fixture(scope="module")
def plain() -> State:
    """A TSM on a ResNet-18, by torchvision's names."""
    return random_tensors(TSM(classes=6, depth=18, width=8))


def to_mit(state: State, shifted: str = r".*") -> State:
    """mit-han-lab's names; `.net.` where the name of the block matches."""
    return {
        re.sub(rf"({shifted})\.conv1\.weight$", r"\1.conv1.net.weight", to_authors(name))
        if ".conv1." in name and re.search(rf"(?:{shifted})\.conv1\.", name)
        else to_authors(name): tensor
        for name, tensor in state.items()
    }


def save(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


# --- Which blocks shift ----------------------------------------------------------------------------------------

MARKS = {
    "all": r"layer\d\.\d",
    "every_second": r"layer\d\.0",
}


@pytest.mark.parametrize("to_theirs", [dict, lambda state: {to_mmaction2(k): x for k, x in state.items()}])
@pytest.mark.parametrize("shift", MARKS)
def test_the_keys_tell_which_blocks_shift(
    plain: State, tmp_path: Path, shift: Any, to_theirs: Any, caplog: Any
) -> None:
    path = save(tmp_path / "x.pth", to_theirs(to_mit(plain, MARKS[shift])))
    network = load_checkpoint(path)
    assert network.architecture == TSM(classes=6, depth=18, width=8, shift=shift).architecture
    assert all(torch.equal(tensor, plain[name]) for name, tensor in network.state_dict().items())
    assert load_checkpoint(path, shift=shift).architecture == network.architecture
    with pytest.raises(UserError, match=f"has shift {shift}, not none; leave --shift out"):
        load_checkpoint(path, shift="none")
    assert not caplog.records


def test_another_pattern_of_shifted_blocks_is_refused(plain: State, tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", to_mit(plain, r"layer[12]\.\d|layer3\.0"))
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert str(error.value) == (
        f"{path}: its keys mark the shift (.net.) in layer1.0, layer1.1, layer2.0, layer2.1, layer3.0, but not in layer3.1, "
        "layer4.0, layer4.1; a network shifts all blocks, or blocks 0, 2, 4, ... of each stage"
    )


def test_keys_that_do_not_tell_which_blocks_shift(plain: State, tmp_path: Path, caplog: Any) -> None:
    path = save(tmp_path / "x.pth", to_mit(plain, "nowhere"))
    assert load_checkpoint(path).architecture["shift"] == "all"
    (warning,) = caplog.messages
    assert warning == (
        f"{path}: its keys do not say which blocks shift, so every block does, as in the TSM of FFN's authors; if that is wrong, "
        f"ffnrepro checkpoint convert {path} NEW --to ours --shift every_second (or none) writes a file that says so"
    )
    caplog.clear()
    clips = torch.randn(1, 3, 4, 32, 32)
    frames = load_checkpoint(path, shift="none")
    with torch.no_grad():  # without a shift the order of the frames does not matter
        torch.testing.assert_close(frames(clips), frames(clips.flip(2)))
    assert not caplog.messages


def test_the_authors_ffn_and_older_files_of_ours_shift_every_block(tmp_path: Path, caplog: Any) -> None:
    model = FrameFlexibleNetwork(classes=6, depth=18, width=8, frame_counts=(2, 4))
    theirs = {to_authors(name).replace("downsample.0", "downsample_conv"): x for name, x in model.state_dict().items()}  # fmt: skip
    theirs = {name: x.view(-1, 1, 1, 1) if "adaconv" in name else x for name, x in theirs.items()}
    assert load_checkpoint(save(tmp_path / "x.pth", theirs)).architecture["shift"] == "all"
    save_checkpoint(tmp_path / "x.pth", model)
    content = torch.load(tmp_path / "x.pth", weights_only=True)
    del content["architecture"]["shift"]
    assert load_checkpoint(save(tmp_path / "x.pth", content)).architecture == model.architecture
    assert not caplog.records


# --- Files that are no checkpoint ------------------------------------------------------------------------------


def zip_of(**files: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def saved_bytes(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def script() -> bytes:
    # As in an archive that torch.jit.save writes.
    return zip_of(**{"archive/data.pkl": b"", "archive/constants.pkl": b"", "archive/code/x.py": b""})


def safetensors() -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


LARGE = {"state_dict": {"x": torch.zeros(10_000)}}
NO_CHECKPOINT: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", r"is empty \(0 bytes\); download it again"),
    "page": (lambda: b"\n<!DOCTYPE html>\n<html>Sign in</html>", "is a web page, not a checkpoint"),
    "other page": (lambda: b"<html><body>404 not found</body></html>\n", "is a web page, not a checkpoint"),
    "pointer": (
        lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n",
        "is a Git LFS pointer, .* git lfs pull",
    ),
    "text": (lambda: b"Not Found\n", r"is text, not a checkpoint \(it begins with 'Not Found'\); download it again"),
    "namespace": (
        lambda: saved_bytes({"args": argparse.Namespace(lr=1), "state_dict": {}}),
        r"holds an object of argparse\.Namespace, but only tensors .* torch\.save its state_dict alone$",
    ),
    "old namespace": (
        lambda: saved_bytes({"args": argparse.Namespace()}, _use_new_zipfile_serialization=False),
        r"holds an object of argparse\.Namespace, but",
    ),
    "module": (lambda: saved_bytes(TSM(**SMALL)), r"holds an object of ffnrepro\.recipe\.models\.tsm\.TSM, but"),
    "arrays": (lambda: saved_bytes({"x": np.zeros(2)}), r"holds an object of numpy.*\._reconstruct, but"),
    "pickle": (lambda: pickle.dumps({"blobs": np.zeros(2)}), "is a pickle that torch.save did not write"),
    "cut": (lambda: saved_bytes(LARGE)[:20_000], "is incomplete: its end is missing after 20000 bytes; download it"),
    "old and cut": (
        lambda: saved_bytes(LARGE, _use_new_zipfile_serialization=False)[:20_000],
        r"torch\.load cannot read it \(unexpected EOF, .*\), so it is incomplete, damaged or not written by torch\.save",
    ),
    "noise": (lambda: bytes(range(1, 256)) * 9, r"torch\.load cannot read it \(.*; download it again"),
    "zip": (lambda: zip_of(**{"r50.pth": b"x"}), r"is a zip archive of r50\.pth, not of torch\.save; unpack it"),
    "gzip": (lambda: gzip.compress(b"x" * 600), r"is an archive \(gzip or tar\); unpack it"),
    "script": (script, r"is a TorchScript archive, .* load it with torch\.jit\.load"),
    "safetensors": (safetensors, r"is a safetensors file, .* safetensors\.torch\.load_file"),
    "onnx": (lambda: b"\x08\x07\x12\x07pytorch\x1a\x052.0.0:" + bytes(200), "is an ONNX file"),
}  # fmt: skip


@pytest.mark.parametrize("case", NO_CHECKPOINT)
def test_a_file_that_is_no_checkpoint_is_named_in_one_line(tmp_path: Path, case: str) -> None:
    make, message = NO_CHECKPOINT[case]
    path = tmp_path / "x.pth"
    path.write_bytes(make())
    for read in (load_checkpoint, lambda path: start_from(TSM(**SMALL), path, digest=file_digest(path))):
        with pytest.raises(UserError, match=message) as error:
            read(path)
        assert str(error.value).startswith(f"{path}: ")
        assert len(str(error.value)) < len(str(path)) + 300
        assert not re.search(r"\n|\x1b|weights_only|PyTorch", str(error.value))


def test_a_class_of_another_package_is_named(tmp_path: Path) -> None:
    """As mmengine's training states have it; the package need not be installed."""
    content = saved_bytes({"message_hub": {"x": argparse.Namespace()}, "state_dict": {}}, _use_new_zipfile_serialization=False)  # fmt: skip
    theirs = b"cmmengine.logging.history_buffer\nHistoryBuffer\n"
    assert content.count(b"cargparse\nNamespace\n") == 1
    path = tmp_path / "x.pth"
    path.write_bytes(content.replace(b"cargparse\nNamespace\n", theirs))
    with pytest.raises(
        UserError, match=r"holds an object of mmengine\.logging\.history_buffer\.HistoryBuffer, but"
    ):
        load_checkpoint(path)


# --- Starting from a file --------------------------------------------------------------------------------------


def mmpretrain(state: State) -> State:
    return {"head." + k if k.startswith("fc.") else "backbone." + k: x for k, x in state.items()}


def mmaction2(state: State) -> dict[str, Any]:
    theirs = {to_mmaction2(name): tensor for name, tensor in to_mit(state, MARKS["all"]).items()}
    optimizer = {
        "state": {0: {"momentum_buffer": torch.zeros(2)}},
        "param_groups": [{"lr": 0.1, "params": [0]}],
    }
    return {"meta": {"epoch": 50, "config": "model = dict()"}, "state_dict": theirs, "optimizer": optimizer}


KNOWN: dict[str, tuple[Callable[[State], Any], str]] = {
    "torchvision": (lambda state: state, "an image network in the format of torchvision: depth 18, 6 classes"),
    "DataParallel": (
        lambda state: {"state_dict": {f"module.{k}": x for k, x in state.items()}},
        "an image network in the format of torchvision: depth 18, 6 classes",
    ),
    "torchvision's references": (
        lambda state: {"model": state, "epoch": 1, "args": None},
        "an image network in the format of torchvision: depth 18, 6 classes",
    ),
    "Lightning": (
        lambda state: {"epoch": 1, "state_dict": {f"model._orig_mod.{k}": x for k, x in state.items()}},
        "an image network in the format of torchvision: depth 18, 6 classes",
    ),
    "PySlowFast": (
        lambda state: {"model_state": to_mit(state, MARKS["all"]), "cfg": "x"},
        "a TSM checkpoint in the format of mit-han-lab: depth 18, 6 classes",
    ),
    "mmpretrain": (mmpretrain, "an image network in the format of mmpretrain: depth 18, 6 classes"),
    "mmaction2": (mmaction2, "a TSM checkpoint in the format of mmaction2: depth 18, 6 classes"),
    "backbone alone": (
        lambda state: {k: x for k, x in mmaction2(state)["state_dict"].items() if "cls_head" not in k},
        "a TSM checkpoint in the format of mmaction2: depth 18",
    ),
    "mit-han-lab": (
        lambda state: {"state_dict": to_mit(state, MARKS["all"]), "best_prec1": np.float64(1)},
        "a TSM checkpoint in the format of mit-han-lab: depth 18, 6 classes",
    ),
    "authors": (
        lambda state: to_mit(state, "nowhere"),
        "a TSM checkpoint in the format of mit-han-lab or FFN's authors: depth 18, 6 classes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
def test_the_backbone_of_every_known_format_is_taken(plain: State, tmp_path: Path, case: str) -> None:
    make, described = KNOWN[case]
    path = save(tmp_path / "x.pth", make(plain))
    assert read_checkpoint(path).describe() == described
    model = TSM(classes=3, depth=18, width=8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    line = start_from(model, path, digest=file_digest(path))
    assert line == f"starts from the backbone of {described}; the classifier is new ({path})"
    for name, tensor in model.state_dict().items():
        new = name.startswith("fc.") or name.endswith("num_batches_tracked")
        assert torch.equal(tensor, before[name] if new else plain[name]), name


@pytest.mark.parametrize("make", [FrameFlexibleNetwork, SeparateNetworks])
def test_ffn_starts_from_a_tsm_of_ours(tmp_path: Path, make: Any) -> None:
    """Each private BatchNorm starts as the one of the TSM."""
    tsm = TSM(**SMALL)
    tsm.load_state_dict(random_tensors(tsm))
    save_checkpoint(tmp_path / "x.pth", tsm)
    model = make(**SMALL | {"classes": 9}, frame_counts=(2, 4))
    line = start_from(model, tmp_path / "x.pth", digest=file_digest(tmp_path / "x.pth"))
    assert line.startswith(
        "starts from the backbone of a TSM checkpoint in the format of ffnrepro: depth 10, 5 classes"
    )
    for name, tensor in model.state_dict().items():
        theirs = re.sub(r"^subnetworks\.\d\.|(?<=bn\d)\.\d(?=\.)|(?<=sample\.1)\.\d(?=\.)", "", name)
        if not re.search(r"(^|\.)(fc|alteration|num_batches_tracked)(\.|$)", theirs):
            assert torch.equal(tensor, tsm.state_dict()[theirs]), name


def test_a_start_whose_shift_differs_is_warned_of(plain: State, tmp_path: Path, caplog: Any) -> None:
    path = save(tmp_path / "x.pth", to_mit(plain, MARKS["every_second"]))
    digest = file_digest(path)
    check_start(path, NetworkSettings(depth=18, width=8, shift="every_second"), digest=digest)
    assert not caplog.records
    check_start(path, NetworkSettings(depth=18, width=8), digest=digest)
    path = save(path, to_mit(plain, "nowhere"))
    check_start(path, NetworkSettings(depth=18, width=8, shift="none"), digest=file_digest(path))
    differs, unknown = caplog.messages
    assert differs == (
        f"{path}: its network has shift every_second, but network.shift is all; set network.shift: every_second to keep the shift "
        "that its weights were trained with"
    )
    assert unknown == (
        f"{path}: its keys do not say which blocks shift; this training uses network.shift: none (all, every_second or "
        "none)"
    )


def moco(state: State) -> State:
    return {f"module.encoder_{part}.{name}": tensor for part in "qk" for name, tensor in state.items()}


def own_ffn(_state: State) -> Any:
    model = FrameFlexibleNetwork(classes=6, depth=18, width=8, frame_counts=(2, 4))
    return {
        "format": "ffnrepro checkpoint 1",
        "architecture": {"method": "ffn", **model.architecture},
        "state_dict": model.state_dict(),
    }


REFUSED: dict[str, tuple[Callable[[State], Any], str]] = {
    "depth": (
        lambda _: TSM(classes=6, depth=10, width=8).state_dict(),
        r"its ResNet has depth 10, but the one to train has depth 18; set network\.depth, or another file as network\.weights",
    ),
    "width and stem": (
        lambda _: TSM(classes=6, depth=18, width=16, stem=3).state_dict(),
        r"its ResNet has width 16, stem 3, but the one to train has width 8, stem 7; set network\.width, network\.stem, or",
    ),
    "ffn": (own_ffn, r"is a checkpoint of a Frame Flexible Network .*: depth 18, 6 classes, frame counts \[2, 4\], which has separate weights"),
    "moco": (moco, r"its ResNet is under encoder_q\., encoder_k\.; save only the tensors of one such network, without the prefix"),
    "resnet34": (
        lambda _: torchvision.models.resnet34(weights=None, num_classes=2).state_dict(),
        r"a ResNet with \(3, 4, 6, 3\) blocks of 2 convolutions; the known depths are 10, 18, 50, 101",
    ),
    "3-D": (
        lambda state: {k: x[:, :, None] if x.dim() == 4 else x for k, x in mmaction2(state)["state_dict"].items()},
        r"holds no 2D ResNet .* conv1\.weight: \(8, 3, 1, 7, 7\)",
    ),
    "mobilenet": (
        lambda _: {"module.base_model.features.0.0.weight": torch.zeros(1), "module.new_fc.weight": torch.zeros(2, 1)},
        r"holds no 2D ResNet \(its keys: features\.0\.0\.weight, fc\.weight;",
    ),
    "non-local blocks": (
        lambda state: {name.replace("layer2.0.", "layer2.0.block."): x for name, x in to_mit(state).items()},
        r"is a TSM with non-local blocks, such as base_model\.layer2\.0\.block\..*; give a TSM that shifts inside plain",
    ),
    "shift before whole blocks": (
        lambda state: {re.sub(r"(layer\d\.\d)\.", r"\1.net.", name): x for name, x in mmaction2(state)["state_dict"].items()},
        r"is a TSM that shifts before whole blocks \(shift_place=block\), such as backbone\.layer1\.0\.net\.",
    ),
    "temporal pooling": (
        lambda state: {name.replace("layer2.", "layer2.net."): x for name, x in to_mit(state).items()},
        r"is a TSM with temporal pooling, such as base_model\.layer2\.net\.0",
    ),
    "slowfast": (
        lambda _: {"model_state": {"s1.pathway0_stem.conv.weight": torch.zeros(1)}},
        r"its keys \(s1\.pathway0_stem\.conv\.weight\) are of an unknown format; the known formats are",
    ),
    "training state": (
        lambda _: {"epoch": 1, "optimizer": {}},
        r"holds no state_dict of tensors \(its entries: epoch, optimizer\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_no_training_can_start_from(plain: State, tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    path = save(tmp_path / "x.pth", make(plain))
    with pytest.raises(UserError, match=message) as error:
        check_start(path, NetworkSettings(depth=18, width=8), digest=file_digest(path))
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)


def test_an_image_network_is_no_video_network(plain: State, tmp_path: Path) -> None:
    path = save(tmp_path / "x.pth", plain)
    with pytest.raises(
        UserError, match=r"not a video network; a training can start from it \(network\.weights\)"
    ):
        load_checkpoint(path)
