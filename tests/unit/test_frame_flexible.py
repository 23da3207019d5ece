"""Networks of torchvision as frame flexible networks, against our own FFN and against the plain networks."""

import copy
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import densenet121, mobilenet_v2, resnet50, resnext50_32x4d
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.video import r3d_18

from ffnrepro import make_frame_flexible
from ffnrepro.data.decode import open_video
from ffnrepro.errors import UserError
from ffnrepro.recipe.clips import ClipDataset, collate_clips
from ffnrepro.recipe.methods.ffn import Ffn
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.models.temporal_shift import temporal_shift
from ffnrepro.recipe.transforms import normalise
from ffnrepro.residual_branches import branch_entries

FRAMES = (4, 8, 16)
ALTERATION = ".parametrizations.weight.0.alteration."


def clips(*frame_counts: int, size: int = 8, dtype: torch.dtype = torch.float32) -> dict[int, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        frames: torch.randn(2, 3, frames, size, size, generator=generator, dtype=dtype)
        for frames in frame_counts
    }


def draw(model: nn.Module) -> None:
    """Draw whatever starts at zero or one, or is private, so that no two tensors are equal."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() == 1:
                tensor.normal_(0, 0.3)


def small_resnet() -> ResNet:
    return ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5)


@pytest.fixture(scope="module", params=["r3d_18", "resnet50"])
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module]:
    """A plain network of torchvision, and the frame flexible one of it."""
    torch.manual_seed(0)
    three_d = request.param == "r3d_18"
    plain = (r3d_18 if three_d else resnet50)(num_classes=5)
    draw(plain)
    return plain.eval(), make_frame_flexible(plain, FRAMES, shift=not three_d).eval()


# --- The converted network ---------------------------------------------------------------------------------------


def plain_logits(plain: nn.Module, clip: Tensor) -> Tensor:
    """The logits of a plain network; a 2D network has hooks that shift the input of each block's first convolution."""
    if not isinstance(plain, ResNet):
        return plain(clip)
    frames = clip.shape[2]
    hooks = [
        block.conv1.register_forward_pre_hook(lambda _, inputs: temporal_shift(inputs[0], frames))
        for block in plain.modules()
        if isinstance(block, Bottleneck)
    ]
    scores = [plain(one.transpose(0, 1)).mean(0) for one in clip]
    for hook in hooks:
        hook.remove()
    return torch.stack(scores)


def test_without_alterations_each_subnetwork_is_the_plain_network(pair: tuple[nn.Module, nn.Module]) -> None:
    plain, flexible = pair
    start = copy.deepcopy(flexible)
    for name, parameter in start.named_parameters():
        if ALTERATION in name:
            assert 0 < parameter.abs().max() < 0.01
            nn.init.zeros_(parameter)
    with torch.no_grad():
        for frames, clip in clips(*FRAMES, 6).items():
            expected = plain_logits(plain, clip)
            torch.testing.assert_close(start(clip), expected, atol=1e-4, rtol=1e-4, msg=f"{frames} frames")


def test_private_where_it_should_be_and_shared_elsewhere(pair: tuple[nn.Module, nn.Module]) -> None:
    plain, flexible = copy.deepcopy(pair)
    inputs = clips(*FRAMES)
    with torch.no_grad():
        before = flexible(inputs)
        for part in (f"{ALTERATION}8", ".8.bias"):
            names = [name for name, _ in flexible.named_parameters() if name.endswith(part)]
            flexible.get_parameter(names[-1]).add_(0.5)
            after = flexible(inputs)
            assert {n for n in FRAMES if not torch.equal(after[n], before[n])} == {8}, part
            before = after
        flexible.network.fc.weight.mul_(2)
        after = flexible(inputs)
    assert not any(torch.allclose(after[n], before[n]) for n in FRAMES)
    # Training changes the statistics of one frame count, and reaches its parameters and the shared ones.
    state = copy.deepcopy(flexible.state_dict())
    flexible.train()(inputs[4]).sum().backward()
    changed = {name for name, tensor in flexible.state_dict().items() if not torch.equal(tensor, state[name])}
    assert changed == {name for name in state if re.search(r"\.4\.(running|num_batches)", name)}
    reached = {name for name, parameter in flexible.named_parameters() if parameter.grad is not None}
    assert reached == {
        name for name, _ in flexible.named_parameters() if not re.search(r"\.(8|16)(\.(weight|bias))?$", name)
    }
    norms = sum(isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d) for module in plain.modules())
    assert len(changed) == 3 * norms


@pytest.mark.parametrize("saved_as", ["plain", "own"])
def test_weights_load(pair: tuple[nn.Module, nn.Module], saved_as: str) -> None:
    plain, flexible = pair
    torch.manual_seed(1)
    two_d = isinstance(plain, ResNet)
    loaded = make_frame_flexible((resnet50 if two_d else r3d_18)(num_classes=5), FRAMES, shift=two_d)
    alterations = {name: a.clone() for name, a in loaded.named_parameters() if ALTERATION in name}
    if saved_as == "own":
        loaded.load_state_dict(flexible.state_dict())
        expected = flexible.state_dict()
    else:
        loaded.network.load_state_dict(plain.state_dict())
        expected = flexible.state_dict() | alterations
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_state_that_does_not_fit_is_refused() -> None:
    plain = small_resnet()
    flexible = make_frame_flexible(plain, (2, 4))
    state = plain.state_dict()
    del state["layer1.0.bn1.bias"], state["layer2.0.conv1.weight"]
    with pytest.raises(RuntimeError, match=r"(?s)Missing.*layer1\.0\.bn1\.2\.bias.*layer2\.0\.conv1\.param"):
        flexible.network.load_state_dict(state)


# --- Our own FFN as the truth ------------------------------------------------------------------------------------


def test_resnet50_with_our_shift_is_our_ffn() -> None:
    torch.manual_seed(0)
    ours = FrameFlexibleNetwork(classes=5, frame_counts=FRAMES, dropout=0.0).double()
    plain = resnet50(num_classes=5).double()
    flexible = make_frame_flexible(plain, FRAMES, shift=True)
    added = {name: parameter.numel() for name, parameter in flexible.named_parameters()}
    assert sum(count for name, count in added.items() if ALTERATION in name) == 39_360
    assert sum(added.values()) - sum(p.numel() for p in plain.parameters()) == 39_360 + 106_240
    draw(ours)
    nn.init.normal_(ours.fc.weight)
    names = [
        name.replace(".alteration.", ALTERATION) if ".alteration." in name
        # The first convolution of a block, and not of the stem.
        else re.sub(r"(layer.*conv1)\.weight$", r"\1.parametrizations.weight.original", name)
        for name in ours.state_dict()
    ]  # fmt: skip
    flexible.network.load_state_dict(dict(zip(names, ours.state_dict().values(), strict=True)))
    # Temporal distillation: the same terms, gradients and running statistics.
    inputs, labels = clips(4, 8, dtype=torch.float64), torch.tensor([1, 3])
    method = Ffn(method="ffn", train_frames=(4, 8))
    for network in (ours, flexible):
        for term in method.terms(network.train(), inputs, labels, torch.Generator()):
            term.loss.backward()
    for own, name in zip(
        dict(ours.named_parameters()), (n for n in names if not re.search("running|batches", n)), strict=True
    ):
        torch.testing.assert_close(
            flexible.network.get_parameter(name).grad, ours.get_parameter(own).grad, msg=own
        )
    with torch.no_grad():
        for clip in clips(*FRAMES, 6, dtype=torch.float64).values():
            torch.testing.assert_close(flexible.eval()(clip), ours.eval()(clip))


@pytest.mark.parametrize("three_d", [True, False], ids=["r3d_18", "resnet50"])
def test_learns_the_demo_by_temporal_distillation(three_d: bool, data: Path) -> None:
    """In a few steps on the same clips."""
    torch.manual_seed(0)
    plain = (r3d_18 if three_d else resnet50)(num_classes=12)
    network = make_frame_flexible(plain, (2, 4), shift=not three_d).train()
    manifest = pd.read_parquet(data / "results/manifest/train.parquet")
    dataset = ClipDataset(
        manifest=manifest, videos=data / "data/videos", open_video=open_video, frame_counts=(2, 4),
        size=16, short_side=40, crop="centre",
    )  # fmt: skip
    batch, labels = collate_clips([dataset[index] for index in range(4)])
    assert len(set(labels.tolist())) > 1
    inputs = {frames: normalise(clip) for frames, clip in batch.items()}
    optimizer = torch.optim.SGD(network.parameters(), lr=0.005, momentum=0.9)
    method = Ffn(method="ffn", train_frames=(2, 4))
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        terms = list(method.terms(network, inputs, labels, torch.Generator()))
        sum(term.loss for term in terms).backward()
        optimizer.step()
        losses.append([term.loss.item() for term in terms])
    assert sum(losses[-1]) < 0.5 * sum(losses[0]), losses


# --- The selection of the sub-network ----------------------------------------------------------------------------


class Recomputed(nn.Module):
    """A network whose stages are computed again in backward, as users do to save memory."""

    def __init__(self, network: ResNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        net = self.network
        x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            x = checkpoint(stage, x, use_reentrant=False)
        return net.fc(torch.flatten(net.avgpool(x), 1))


@pytest.mark.parametrize("order", [(2, 4), (4, 2)])
def test_recomputation_in_backward_uses_the_frame_count_of_its_forward_pass(order: tuple[int, int]) -> None:
    torch.manual_seed(0)
    plain = small_resnet()
    flexible = make_frame_flexible(plain, (2, 4), shift=True)
    draw(flexible)
    recomputed = make_frame_flexible(Recomputed(plain), (2, 4), shift=True)
    recomputed.network.network.load_state_dict(flexible.network.state_dict())
    inputs = clips(*order)
    for network in (flexible, recomputed):
        # All forward passes come before the first backward pass.
        logits = network.eval()(inputs)
        (logits[order[0]].square().sum() + logits[order[1]].sum()).backward()
    for name, parameter in flexible.network.named_parameters():
        found = recomputed.network.network.get_parameter(name).grad
        torch.testing.assert_close(found, parameter.grad, msg=name)


def test_a_copy_selects_for_itself() -> None:
    torch.manual_seed(0)
    flexible = make_frame_flexible(small_resnet(), (2, 4), shift=True).eval()
    draw(flexible)
    twin = copy.deepcopy(flexible)
    inputs = clips(2, 4)
    expected = flexible(inputs)
    seen = []
    # In the middle of the copy's forward pass, the original is used at another frame count.
    twin.network.layer2.register_forward_pre_hook(lambda *_: seen.append(flexible(inputs[4])))
    assert torch.equal(twin(inputs[2]), expected[2])
    assert torch.equal(seen[0], expected[4])


# --- Finding the residual branches -------------------------------------------------------------------------------


class PreActivation(nn.Module):
    """Blocks with BatchNorm first, an added table of weights, and two streams that are added at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.table = nn.Parameter(torch.zeros(8, 1, 1))
        self.norm = nn.BatchNorm2d(8)
        self.inner = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.left = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 5, 3))
        self.right = nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 5, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) + self.table
        x = torch.add(x, self.inner[1](self.inner[0](self.norm(x).relu())))
        return (self.left(x) + self.right(x)).mean((2, 3))


def resnet_blocks(first: str) -> list[str]:
    return [
        f"layer{stage}.{block}.{first}"
        for stage, blocks in ((1, 3), (2, 4), (3, 6), (4, 3))
        for block in range(blocks)
    ]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (resnext50_32x4d, resnet_blocks("conv1")),
        (lambda: ResNet(BasicBlock, [3, 4, 6, 3]), resnet_blocks("conv1")),
        (mobilenet_v2, [f"features.{block}.conv.0.0" for block in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)]),
        (PreActivation, ["inner.0"]),
    ],
)  # fmt: skip
def test_first_convolutions_of_the_residual_branches(make: Any, expected: list[str]) -> None:
    assert branch_entries(make(), None) == expected


def test_alter_chooses_the_convolutions() -> None:
    def alter(name: str, layer: nn.Module) -> bool:
        return isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3) and name != "layer1.0.conv2"

    flexible = make_frame_flexible(small_resnet(), (2, 4), alter=alter)
    altered = [name for name, _ in flexible.network.named_parameters() if name.endswith(f"{ALTERATION}4")]
    assert altered == [f"layer{stage}.0.conv2{ALTERATION}4" for stage in (2, 3, 4)]


def test_alteration_of_a_grouped_convolution_weights_its_input_channels() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(6, 9, 3, groups=3, bias=True), nn.BatchNorm2d(9)).eval()
    flexible = make_frame_flexible(plain, (4,), alter=lambda *_: True).network.eval()
    a = nn.init.normal_(flexible[0].parametrizations.weight[0].alteration["4"])
    x = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(flexible(x), plain(x + a.view(1, -1, 1, 1) * x))


def only_32_pixels() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 30 * 30, 5))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            lambda: nn.Sequential(nn.Conv2d(3, 8, 3)),
            {"alter": lambda *_: True},
            "Sequential has no BatchNorm",
        ),
        (densenet121, {}, "DenseNet has no residual branch; choose the convolutions to alter with `alter`"),
        (
            only_32_pixels,
            {},
            r"Sequential are not found: on an input of the shape \(1, 3, 224, 224\) it fails",
        ),
        (r3d_18, {"shift": True}, "VideoResNet has 3D convolutions; the shift is for 2D networks"),
    ],
)
def test_networks_that_do_not_fit_are_refused(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_frame_flexible(make(), (4, 8), **options)


def test_refuses_other_clips() -> None:
    with pytest.raises(ValueError, match=r"the shape \(N, 3, T, H, W\), not \(8, 3, 32, 32\)"):
        make_frame_flexible(small_resnet(), (4, 8))(torch.zeros(8, 3, 32, 32))
