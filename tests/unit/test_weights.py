import hashlib
import re
import struct
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from ffnrepro import weights
from ffnrepro.config import IMAGENET
from ffnrepro.errors import UserError
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork, SeparateNetworks
from ffnrepro.recipe.models.pretrained import load_pretrained
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.weights import (
    PRETRAINED,
    check_pretrained,
    fetch_pretrained,
    load_checkpoint,
    save_checkpoint,
    start_from,
    tensors_digest,
)

from ..golden import formula_clips, formula_weights, golden_figures

SMALL = {"classes": 5, "depth": 10, "width": 8, "stem": 3}


def to_mmaction2(name, net=".net"):
    """The name in mmaction2's TSM of a tensor that mit-han-lab's names `name`."""
    name = name.replace("module.base_model.", "backbone.").replace("module.new_fc.", "cls_head.fc_cls.")
    name = name.replace(".downsample.0.", ".downsample.conv.").replace(".downsample.1.", ".downsample.bn.")
    name = re.sub(r"\.bn(\d)\.", r".conv\1.bn.", name)
    name = re.sub(r"\.conv(\d)\.(weight|net\.weight)$", r".conv\1.conv.\2", name)
    return name.replace(".conv.net.", f".conv{net}.")


def to_authors(name):
    """The name in the authors' code of a tensor of our FrameFlexibleNetwork, or of our TSM."""
    name = re.sub(r"\.alteration\.(\d+)$", r".adaconv_\1.weight", name).replace(".conv1.adaconv", ".adaconv")
    name = re.sub(r"bn(\d)\.(\d+)\.", r"bn\1_\2.", name)
    if re.search(r"downsample\.1\.\d+\.", name):
        name = re.sub(r"downsample\.1\.(\d+)\.", r"downsample_bn_\1.", name)
    return "module.base_model." + name if not name.startswith("fc.") else "module.new_" + name


def authors_state(model):
    private = hasattr(model, "frame_counts")
    state = {}
    for name, tensor in model.state_dict().items():
        theirs = to_authors(name)
        if private:
            theirs = theirs.replace("downsample.0.", "downsample_conv.")
        state[theirs] = tensor.view(-1, 1, 1, 1) if "adaconv" in theirs else tensor
    return state


@pytest.fixture
def small_ffn():
    torch.manual_seed(1)
    model = FrameFlexibleNetwork(**SMALL, frame_counts=(4, 8))
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 0.9)
    return model.eval()


def equal_states(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- The original networks' logits -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_networks(tmp_path_factory):
    """Networks loaded from files that the originals' code would have written, by the name of their figures."""
    folder = tmp_path_factory.mktemp("golden")
    authors = golden_figures("authors_figures")
    files = {
        "authors/tsm": {
            "epoch": 50,
            "arch": "resnet50",
            "state_dict": formula_weights(authors["keys"]["tsm"]),
            "best_prec1": torch.tensor(61.0),
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.01, "params": [0, 1]}]},
        },
        "authors/tsm_ffn": {
            "epoch": 50,
            "state_dict": formula_weights(authors["keys"]["tsm_ffn"]),
            "best_prec1": np.float64(63.6),
        },
        "mit/tsm": {
            "epoch": 50,
            "state_dict": formula_weights(golden_figures("tsm_figures")["keys"]),
            "best_prec1": np.float32(61.0),
        },
        "mit/tsm_resnet101": formula_weights(golden_figures("tsm_resnet101_figures")["keys"]),
    }
    networks = {}
    for name, content in files.items():
        path = folder / (name.replace("/", "_") + ".pth.tar")
        torch.save(content, path)
        networks[name] = load_checkpoint(path)
        path.unlink()
    return networks


FIGURES = [
    ("authors/tsm", "authors", "tsm", 8),
    *(("authors/tsm_ffn", "authors", "tsm_ffn", frames) for frames in (4, 8, 16)),
    ("mit/tsm", "tsm", "tsm", 16),
    ("mit/tsm_resnet101", "tsm_resnet101", "tsm_resnet101", 8),
]


@pytest.mark.parametrize(("source", "file", "network", "frames"), FIGURES)
def test_logits_are_the_original_networks(golden_networks, source, file, network, frames):
    expected = torch.tensor(golden_figures(f"{file}_figures")["logits"][f"{network}@{frames}"])
    with torch.no_grad():
        logits = golden_networks[source](formula_clips(frames).float())
    assert (logits - expected).abs().max() < 1e-3


def test_golden_networks_are_what_their_files_say(golden_networks):
    assert all(isinstance(model, TSM) == ("ffn" not in name) for name, model in golden_networks.items())
    shifts = {name: model.architecture["shift"] for name, model in golden_networks.items()}
    assert shifts.pop("mit/tsm_resnet101") == "every_second"
    assert set(shifts.values()) == {"all"}
    assert golden_networks["authors/tsm_ffn"].architecture == {
        "classes": 174,
        "depth": 50,
        "width": 64,
        "stem": 7,
        "dropout": 0.5,
        "shift": "all",
        "frame_counts": [4, 8, 16],
        "specialized_normalization": True,
        "weight_alteration": True,
    }


def test_mmaction2_files_make_the_network_of_mit_han_lab(tmp_path):
    """With their names, and an eighth of the channels."""
    shapes = {
        name: [n if n < 64 or n == 174 else n // 8 for n in shape]
        for name, shape in golden_figures("tsm_figures")["keys"].items()
    }
    theirs = formula_weights(shapes)
    contents = [
        theirs,
        {
            "meta": {"epoch": 50},
            "state_dict": {to_mmaction2(name): tensor for name, tensor in theirs.items()},
        },
        {to_mmaction2(name, net=""): tensor for name, tensor in theirs.items()},
    ]
    networks = []
    for content in contents:
        torch.save(content, tmp_path / "x.pth")
        networks.append(load_checkpoint(tmp_path / "x.pth"))
    assert networks[0].architecture == TSM(classes=174, width=8).architecture
    for network in networks[1:]:
        assert network.architecture == networks[0].architecture
        assert equal_states(network.state_dict(), networks[0].state_dict())


# --- Our own files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        TSM(**SMALL, dropout=0.2),
        FrameFlexibleNetwork(**SMALL, frame_counts=(16, 2), dropout=0.1),
        FrameFlexibleNetwork(classes=3, depth=50, width=8).to(memory_format=torch.channels_last),
        FrameFlexibleNetwork(**SMALL, frame_counts=(2, 4), specialized_normalization=False),
        FrameFlexibleNetwork(**SMALL, frame_counts=(2, 4), weight_alteration=False),
        SeparateNetworks(**SMALL, frame_counts=(4, 2), weight_alteration=False, dropout=0.1, shift="none"),
        TSM(classes=3, depth=18, width=8, shift="every_second"),
    ],
    ids=["tsm", "ffn", "ffn 50", "one normalisation", "no alteration", "separate", "every second"],
)
def test_own_checkpoint_comes_back_as_it_was(model, tmp_path):
    clip = torch.randn(1, 3, 3, 32, 32)
    model.train()(torch.randn(2, 3, 2, 32, 32))  # statistics that are not those of a new network
    path = tmp_path / "new folder" / "model.pt"
    save_checkpoint(path, model)
    random = torch.get_rng_state()
    loaded = load_checkpoint(path)
    assert torch.equal(random, torch.get_rng_state())  # reading a file draws no random numbers
    assert type(loaded) is type(model)
    assert loaded.architecture == model.architecture
    assert not loaded.training
    assert equal_states(loaded.state_dict(), model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(loaded(clip), model.eval()(clip))
    loaded.train()(torch.randn(2, 3, 2, 32, 32)).sum().backward()
    assert [file.name for file in path.parent.iterdir()] == ["model.pt"]


def test_a_file_of_version_1_is_read(small_ffn, tmp_path):
    content = {
        "format": "ffnrepro checkpoint 1",
        "architecture": {"method": "ffn", **SMALL, "dropout": 0.25, "frame_counts": [4, 8]},
        "state_dict": small_ffn.state_dict(),
        "epoch": 3,
        "settings": {"training": {"epochs": 50}},
    }
    torch.save(content, tmp_path / "model.pt")
    loaded = load_checkpoint(tmp_path / "model.pt")
    assert equal_states(loaded.state_dict(), small_ffn.state_dict())
    assert loaded.architecture == {**small_ffn.architecture, "dropout": 0.25}


def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    path.write_text("old")

    def fail(_content, file):
        Path(file).write_text("half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(path, TSM(**SMALL))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


# --- Other people's files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", ""])
@pytest.mark.parametrize("wrapped", [True, False])
def test_with_and_without_wrappers(small_ffn, tmp_path, prefix, wrapped):
    state = {name.replace("module.", prefix): tensor for name, tensor in authors_state(small_ffn).items()}
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "x.pth")
    loaded = load_checkpoint(tmp_path / "x.pth")
    assert equal_states(loaded.state_dict(), small_ffn.state_dict())
    assert loaded.architecture == small_ffn.architecture
    assert not loaded.training


def test_files_of_numpy_1_and_without_counted_batches(small_ffn, tmp_path):
    state = {name: tensor for name, tensor in authors_state(small_ffn).items() if "num_batches" not in name}
    path = tmp_path / "x.pth.tar"
    content = {"best_prec1": np.float64(1), "arch": np.int64(1), "state_dict": state}
    torch.save(content, path, _use_new_zipfile_serialization=False)
    old = path.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in old
    path.write_bytes(old)
    loaded = load_checkpoint(path).state_dict()
    assert loaded["bn1.4.num_batches_tracked"] == 0
    assert torch.equal(
        loaded["layer4.0.bn2.8.running_var"], small_ffn.state_dict()["layer4.0.bn2.8.running_var"]
    )


def _without(state, pattern):
    return {name: tensor for name, tensor in state.items() if not re.search(pattern, name)}


BROKEN = {
    "one missing": (
        lambda state: _without(state, r"layer3\.0\.conv2"),
        r"missing: layer3\.0\.conv2\.weight\)",
    ),
    "many missing": (
        lambda state: _without(state, r"layer4\.0\.bn\d_8"),
        r"missing: layer4\.0\.bn1\.8\.weight, .* and 5 more\)",
    ),
    "stem missing": (
        lambda state: _without(state, r"base_model\.conv1"),
        "holds no 2D ResNet .* the shape of conv1.weight: None",
    ),
    "classifier missing": (lambda state: _without(state, "new_fc"), r"depth 10, .*, without a classifier"),
    "adapter missing": (
        lambda state: _without(state, "layer2.*adaconv_4"),
        r"missing: layer2\.0\.conv1\.alteration\.4",
    ),
    "left over": (
        lambda state: state | {"module.base_model.layer1.0.extra": torch.zeros(1)},
        r"left over: layer1\.0\.extra\)",
    ),
    "shift around the block": (
        lambda state: {name.replace("layer1.0.", "layer1.0.net."): tensor for name, tensor in state.items()},
        r"that shifts before whole blocks .*, such as base_model\.layer1\.0\.net\.",
    ),
    "another shape": (
        lambda state: state | {"module.base_model.layer2.0.conv2.weight": torch.zeros(16, 16, 1, 1)},
        r"of another shape: layer2\.0\.conv2\.weight \(16, 16, 1, 1\) instead of \(16, 16, 3, 3\)",
    ),
    "stage missing": (
        lambda state: _without(state, "layer4"),
        r"a ResNet with \(1, 1, 1, 0\) blocks of 2 convolutions; the known depths are 10, 18, 50, 101",
    ),
    "scalar": (
        lambda state: state | {"module.new_fc.weight": torch.zeros(())},
        r"holds no 2D ResNet .* of fc.weight: \(\)\)",
    ),
    "not tensors": (
        lambda state: {"epoch": 1, "net": state},
        r"no state_dict of tensors \(its entries: epoch, net\)",
    ),
    "list": (lambda state: list(state.values()), "holds a list, not a state_dict of tensors"),
    "empty": (lambda state: {"state_dict": {}}, r"no state_dict of tensors \(its entries: state_dict\)"),  # noqa: ARG005
    "unknown": (
        lambda state: {
            name.replace("layer", "stage"): x for name, x in _without(state, "base_model").items()
        },
        "of an unknown format",
    ),
    "future": (
        lambda state: {"format": "ffnrepro checkpoint 9", "state_dict": state},
        "does not describe a network that this version knows",
    ),
    "own, half": (lambda state: {"format": weights.FORMAT, "state_dict": state}, "architecture None"),
    "own, method": (
        lambda state: {"format": weights.FORMAT, "architecture": {"method": "x"}, "state_dict": state},
        "does not describe a network that this version knows",
    ),
    "own, arguments": (
        lambda state: {
            "format": weights.FORMAT,
            "architecture": {"method": "tsm", "classes": 5, "depth": 34},
            "state_dict": state,
        },
        "does not describe a network that this version knows",
    ),
    "own, weights": (
        lambda state: {
            "format": weights.FORMAT,
            "architecture": {"method": "tsm", **SMALL},
            "state_dict": state,
        },
        "do not fit the network.*missing.*left over",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_all_problems_of_the_weights_are_listed_in_one_line(small_ffn, tmp_path, case):
    change, message = BROKEN[case]
    path = tmp_path / "x.pth"
    torch.save(change(authors_state(small_ffn)), path)
    with pytest.raises(UserError, match=message) as error:
        load_checkpoint(path)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 500


def test_missing_file(tmp_path):
    for path, message in ((tmp_path / "x.pth", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=message):
            load_checkpoint(path)


# --- Digest ----------------------------------------------------------------------------------------------------


def test_digest_is_sha256_over_name_type_shape_and_bytes():
    digest = hashlib.sha256(b"a torch.int64 ()\n" + struct.pack("<q", 7))
    digest.update(b"b torch.float32 (1, 2)\n" + struct.pack("<2f", 1.5, -2))
    state = {"b": torch.tensor([[1.5, -2]]), "a": torch.tensor(7)}
    assert tensors_digest(state) == digest.hexdigest()


def test_digest_is_of_the_values_and_not_of_their_layout_or_order():
    x = torch.randn(4, 3, 2, 2)
    known = tensors_digest({"x": x, "y": x[0]})
    assert tensors_digest({"y": x[0].clone(), "x": x.to(memory_format=torch.channels_last)}) == known
    others = [
        {"x": x, "z": x[0]},
        {"x": x, "y": x[1]},
        {"x": x, "y": x[0].double()},
        {"x": x, "y": x[0].flatten()},
    ]
    assert len({known, *map(tensors_digest, others)}) == 5
    assert tensors_digest({"x": x.bfloat16(), "e": torch.empty(0)})


# --- Pretrained ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image_weights():
    model = torchvision.models.resnet18(weights=None)
    for name, tensor in model.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            tensor.copy_(torch.rand(tensor.shape) * 10)
    return model.state_dict()


def saved(path, state):
    """The digest of a file that holds `state`."""
    torch.save(state, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("make", [FrameFlexibleNetwork, SeparateNetworks])
def test_pretrained_weights_are_cloned_into_every_private_layer(image_weights, make):
    model = make(classes=7, depth=18)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_pretrained(model, image_weights)
    after = model.state_dict()
    for name, tensor in image_weights.items():
        if name.startswith("fc.") or name.endswith("num_batches_tracked"):
            continue
        for count in (4, 8, 16):
            ours = re.sub(r"(bn\d|downsample\.1)\.(\w+)$", rf"\1.{count}.\2", name)
            if make is SeparateNetworks:
                ours = f"subnetworks.{count}.{ours}"
            assert torch.equal(after[ours], tensor)
            before.pop(ours, None)
    rest = _without(before, "num_batches_tracked")
    assert len(rest) == 8 * 3 + (2 if make is FrameFlexibleNetwork else 6)
    for name, tensor in rest.items():
        assert re.search(r"(^|\.)(fc|alteration)\.", name)
        assert torch.equal(tensor, after[name])
    # Copies, not one tensor.
    parameters = list(model.parameters())
    assert len({parameter.data_ptr() for parameter in parameters}) == len(parameters)


@pytest.mark.parametrize("counted", [True, False])
def test_start_from_pretrained_weights(image_weights, tmp_path, counted):
    path = tmp_path / "resnet18.pth"
    digest = saved(path, image_weights if counted else _without(image_weights, "num_batches_tracked"))
    model = TSM(classes=7, depth=18)
    classifier = model.fc.weight.clone()
    with pytest.raises(UserError, match="SHA-256"):
        start_from(model, path, digest="01234567")
    start_from(model, path, digest=digest[:8])
    state = model.state_dict()
    assert all(
        torch.equal(state[name], x) for name, x in image_weights.items() if not re.search("fc|num_b", name)
    )
    assert torch.equal(state["fc.weight"], classifier)
    assert state["bn1.num_batches_tracked"] == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: _without(state, r"layer1\.0\.bn1\.weight"), r"missing: layer1\.0\.bn1\.weight\)"),
        (
            lambda state: state | {"layer3.1.conv4.weight": torch.zeros(1)},
            r"left over: layer3\.1\.conv4\.weight",
        ),
        (
            lambda state: state | {"conv1.weight": torch.zeros(64, 3, 5, 5)},
            r"its ResNet has stem 5, but the one to train has stem 7; set network\.stem, or another file",
        ),
        (
            lambda state: state | {"layer2.1.bn2.bias": torch.zeros(3)},
            r"layer2\.1\.bn2\.bias \(3,\) instead of \(128,\)\); the file is incomplete, or of another network",
        ),
        (lambda state: {"net": state}, "no state_dict of tensors"),
    ],
)
def test_pretrained_weights_that_do_not_fit(image_weights, tmp_path, change, message):
    path = tmp_path / "weights.pth"
    digest = saved(path, change(image_weights))
    model = FrameFlexibleNetwork(classes=7, depth=18)
    before = tensors_digest(model.state_dict())
    with pytest.raises(UserError, match=message) as error:
        start_from(model, path, digest=digest)
    assert str(error.value).startswith(f"{path}: ")
    assert "\n" not in str(error.value)
    assert tensors_digest(model.state_dict()) == before


def test_start_from_a_trained_network(small_ffn, tmp_path):
    path = tmp_path / "model.pt"
    save_checkpoint(path, small_ffn)
    model = FrameFlexibleNetwork(**SMALL, frame_counts=(4, 8))
    start_from(model, path)
    assert equal_states(model.state_dict(), small_ffn.state_dict())
    assert model.training
    with pytest.raises(
        UserError, match=r"is a checkpoint of a Frame .*, but this training has to start from a TSM"
    ):
        start_from(TSM(**SMALL), path)
    for changes, says in (
        (
            {"classes": 6},
            r"has classes 5, but the one to train has classes 6; both must be the same: set `start`",
        ),
        (
            {"frame_counts": (4, 16)},
            r"has frame_counts \[4, 8\], but the one to train has frame_counts \[4, 16\]",
        ),
        (
            {"weight_alteration": False},
            "has weight_alteration True, but the one to train has weight_alteration F",
        ),
    ):
        with pytest.raises(UserError, match=says):
            start_from(FrameFlexibleNetwork(**{**SMALL, "frame_counts": (4, 8), **changes}), path)


def test_pretrained_files_are_named_by_their_hash():
    assert PRETRAINED.keys() == IMAGENET.keys() == {18, 50, 101}
    for depth, url in PRETRAINED.items():
        assert url.endswith(f"/resnet{depth}-{IMAGENET[depth]}.pth")


def test_check_pretrained(tmp_path):
    path = tmp_path / "x.pth"
    path.write_bytes(b"weights")
    found = hashlib.sha256(b"weights").hexdigest()
    check_pretrained(path, found[:8])
    with pytest.raises(UserError, match=f"SHA-256 {found[:8]}... instead of 01234567"):
        check_pretrained(path, "01234567")


@pytest.fixture
def served(tmp_path, monkeypatch):
    """Weights of ResNet-50 to be fetched from a file."""
    (tmp_path / "served.pth").write_bytes(b"weights")
    monkeypatch.setitem(PRETRAINED, 50, (tmp_path / "served.pth").as_uri())
    monkeypatch.setitem(IMAGENET, 50, hashlib.sha256(b"weights").hexdigest()[:8])


@pytest.mark.usefixtures("served")
def test_fetch_pretrained_once(tmp_path):
    path = tmp_path / "new folder" / "resnet50.pth"
    fetch_pretrained(50, path)
    assert path.read_bytes() == b"weights"
    assert list(path.parent.iterdir()) == [path]
    (tmp_path / "served.pth").unlink()
    fetch_pretrained(50, path)  # there already


@pytest.mark.usefixtures("served")
def test_fetch_pretrained_of_another_hash(tmp_path):
    (tmp_path / "served.pth").write_bytes(b"an error page")
    path = tmp_path / "new folder" / "resnet50.pth"
    with pytest.raises(UserError, match=r"cannot be downloaded.*hash.*and set network.weights"):
        fetch_pretrained(50, path)
    assert not list(path.parent.iterdir())
    path.write_bytes(b"an error page")
    with pytest.raises(UserError, match="delete it and download it again"):
        fetch_pretrained(50, path)


def test_fetch_pretrained_without_network(tmp_path, monkeypatch):
    def fail(*_arguments, **_keywords):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    path = tmp_path / "resnet50.pth"
    with pytest.raises(UserError) as error:
        fetch_pretrained(50, path)
    assert str(error.value) == (
        f"{path}: cannot be downloaded (<urlopen error Name or service not known>); fetch {PRETRAINED[50]} "
        "on a machine with internet access and set network.weights to the file"
    )
