"""FFN against TSMs that are put together from its sub-networks."""

import re

import pytest
import torch

from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork, SeparateNetworks, nearest
from ffnrepro.recipe.models.temporal_shift import temporal_shift
from ffnrepro.recipe.models.tsm import TSM

SMALL = {"classes": 5, "depth": 10, "width": 8, "stem": 3}


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = FrameFlexibleNetwork(**SMALL, dropout=0.0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if "alteration" in name or name.endswith(("running_mean", "bias")):
                tensor.normal_(0, 0.3)
            elif name.endswith("running_var") or (re.search("bn|downsample.1", name) and "weight" in name):
                tensor.uniform_(0.5, 1.5)
        model.fc.weight.normal_()
    return model.eval()


def subnetwork_as_tsm(model, count):
    """One sub-network as a TSM: its normalisations, and its alterations multiplied into the weights."""
    state = {}
    for name, tensor in model.state_dict().items():
        if ".alteration." in name:
            continue
        private = re.fullmatch(r"(.*(?:bn\d|downsample\.1))\.(\d+)\.(\w+)", name)
        if private is None:
            alteration = model.state_dict().get(name.replace("conv1.weight", f"conv1.alteration.{count}"))
            if alteration is None or not name.endswith("conv1.weight"):
                state[name] = tensor
            else:
                state[name] = tensor * (1 + alteration.view(1, -1, 1, 1))
        elif private[2] == str(count):
            state[f"{private[1]}.{private[3]}"] = tensor
    tsm = TSM(**SMALL, dropout=0.0).eval()
    tsm.load_state_dict(state)
    return tsm


@pytest.mark.parametrize("make", [FrameFlexibleNetwork, SeparateNetworks])
def test_shapes_at_full_size(make):
    # Shapes without the arithmetic.
    with torch.device("meta"):
        model = make(classes=174)
        for frames in (3, 4, 6, 16):
            assert model(torch.empty(2, 3, frames, 224, 224)).shape == (2, 174)


# --- Sub-networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "count"),
    [(1, 4), (3, 4), (4, 4), (5, 4), (6, 8), (7, 8), (8, 8), (11, 8), (12, 16), (16, 16), (24, 16), (64, 16)],
)
def test_nearest_frame_count_and_ties_to_the_larger(frames, count):
    assert nearest((4, 8, 16), frames) == nearest((16, 4, 8), frames) == count


@pytest.mark.parametrize(("frames", "count"), [(3, 4), (4, 4), (6, 8), (8, 8), (12, 16), (16, 16)])
def test_nearest_subnetwork_shifts_over_the_true_number_of_frames(network, frames, count):
    clip = torch.randn(2, 3, frames, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(
            network(clip), subnetwork_as_tsm(network, count)(clip), atol=1e-5, rtol=1e-4
        )
        other = {4: 8, 8: 16, 16: 4}[count]
        assert not torch.allclose(network(clip), subnetwork_as_tsm(network, other)(clip), atol=1e-2)


@pytest.mark.parametrize(("frames", "count"), [(4, 4), (8, 8), (6, 8), (16, 16)])
def test_training_updates_the_statistics_of_one_frame_count_everywhere(network, frames, count):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()(torch.randn(2, 3, frames, 24, 24)).sum().backward()
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if re.search(rf"\.{count}\.(running|num_batches)", name)}
    assert f"bn1.{count}.running_mean" in changed
    assert f"layer2.0.downsample.1.{count}.running_var" in changed
    with_gradient = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    private = {name for name in with_gradient if re.search(r"\.(4|8|16)(\.|$)", name)}
    assert private == {name for name, _ in network.named_parameters() if re.search(rf"\.{count}(\.|$)", name)}


@pytest.mark.parametrize("stage", [1, 2, 3, 4])
def test_alteration_of_a_frame_count_changes_that_frame_count_only(network, stage):
    clips = {frames: torch.randn(2, 3, frames, 24, 24) for frames in (4, 8, 16)}
    with torch.no_grad():
        before = {frames: network(clip) for frames, clip in clips.items()}
        getattr(network, f"layer{stage}")[0].conv1.alteration["4"].add_(0.5)
        after = {frames: network(clip) for frames, clip in clips.items()}
    assert not torch.allclose(after[4], before[4], atol=1e-3)
    assert torch.equal(after[8], before[8])
    assert torch.equal(after[16], before[16])


def test_without_specialised_normalisation_all_frame_counts_share_the_statistics():
    model = FrameFlexibleNetwork(**SMALL, frame_counts=(2, 4), specialized_normalization=False).train()
    for frames in (2, 4, 4):
        model(torch.randn(2, 3, frames, 24, 24))
    assert model.bn1.num_batches_tracked == model.layer2[0].downsample[1].num_batches_tracked == 3


def test_separate_networks_are_tsms_of_their_own():
    torch.manual_seed(0)
    model = SeparateNetworks(**SMALL, frame_counts=(2, 4), weight_alteration=False, dropout=0.0)
    networks = {}
    for count, own in model.subnetworks.items():
        torch.nn.init.normal_(own.fc.weight)
        networks[int(count)] = TSM(**SMALL, dropout=0.0)
        networks[int(count)].load_state_dict(
            {
                re.sub(rf"(bn\d|downsample\.1)\.{count}\.", r"\1.", name): tensor
                for name, tensor in own.state_dict().items()
            }
        )
    for frames, count in ((2, 2), (3, 4), (4, 4), (1, 2), (9, 4)):
        clip = torch.randn(2, 3, frames, 24, 24)
        torch.testing.assert_close(model.train()(clip), networks[count].train()(clip))
    model.zero_grad()
    model(torch.randn(2, 3, 2, 24, 24)).sum().backward()
    assert {name.split(".")[1] for name, p in model.named_parameters() if p.grad is not None} == {"2"}


def test_forward_leaves_no_state(network):
    clip = torch.randn(1, 3, 4, 24, 24)
    with torch.no_grad():
        first = network(clip)
        network(torch.randn(1, 3, 16, 24, 24))
        assert torch.equal(network(clip), first)


@pytest.mark.parametrize("make", [FrameFlexibleNetwork, SeparateNetworks])
@pytest.mark.parametrize("shape", [(3, 4, 24, 24), (2, 4, 3, 24, 24)])
def test_refuses_other_clips(make, shape):
    with pytest.raises(ValueError, match=r"the shape \(N, 3, T, H, W\)"):
        make(**SMALL)(torch.zeros(shape))


# --- What the authors' code does otherwise ---------------------------------------------------------------------


@pytest.mark.parametrize(("frames", "leaking"), [(4, 3), (8, 1), (16, 0)])
def test_authors_training_shift_leaks_between_the_clips_of_a_batch(network, frames, leaking, monkeypatch):
    """Of 16 rows, 3 take a frame of another clip at T=4 (19 %), 1 at T=8 (6 %), none at T=16."""
    network.training_shift = "authors"
    rows = 4 * frames
    clip_of_row = (
        torch.arange(rows).div(frames, rounding_mode="floor").float() + 1
    )  # 0 stands for the padding
    seen = []

    def count(x, length):
        numbers = clip_of_row.view(-1, 1, 1, 1).expand(rows, 8, 1, 1)
        shifted = temporal_shift(numbers, length)
        for channel in (0, 1):  # from the next frame; from the previous one
            own = shifted[:, channel].flatten()
            seen.append(int(((own != clip_of_row) & (own != 0)).sum()))
        return temporal_shift(x, length)

    monkeypatch.setattr("ffnrepro.recipe.models.tsm.temporal_shift", count)
    network.train()(torch.randn(4, 3, frames, 24, 24))
    assert set(seen) == {leaking * rows // 16}
    seen.clear()
    network.eval()(torch.randn(4, 3, frames, 24, 24))
    assert set(seen) == {0}


def test_authors_training_shift_takes_four_short_clips_for_one_long_one(network):
    network.training_shift = "authors"
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # so that clips meet in the shift only
    clips = torch.randn(4, 3, 4, 24, 24)
    long = clips.transpose(0, 1).reshape(1, 3, 16, 24, 24)
    with torch.no_grad():
        # The mean of the scores over 16 frames, once taken by fours.
        torch.testing.assert_close(
            network(clips).mean(0, keepdim=True), network.score(long, 4), atol=1e-5, rtol=1e-4
        )
        network(
            clips[:3]
        )  # a batch with a video left out does not fill whole chunks; it does not stop the training
        per_clip = network.eval()(clips).mean(0, keepdim=True)
        assert not torch.allclose(per_clip, network.score(long, 4), atol=1e-3)


@pytest.mark.parametrize(
    ("init", "deviation"), [("near_zero", lambda _: 1e-3), ("authors", lambda c: (2 / c) ** 0.5)]
)
def test_start_of_the_adapters(init, deviation):
    torch.manual_seed(0)
    model = FrameFlexibleNetwork(classes=3, depth=18, adapter_init=init)
    for block in (model.layer1[0], model.layer4[0]):
        drawn = torch.stack(list(block.conv1.alteration.values()))
        assert drawn.std().item() == pytest.approx(deviation(drawn.shape[1]), rel=0.2)
        assert drawn.mean().abs() < drawn.std() / 3
