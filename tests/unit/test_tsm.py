import pytest
import torch
import torchvision

import ffnrepro.recipe.models.tsm
from ffnrepro.recipe.models.tsm import TSM

SMALL = {"classes": 5, "depth": 10, "width": 8, "stem": 3}


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("depth", "channels", "known"), [(18, 512, 11_176_512), (50, 2048, 23_508_032), (101, 2048, 42_500_160)]
)
def test_parameters(depth, channels, known):
    with torch.device("meta"):
        assert parameters(TSM(classes=174, depth=depth)) == known + 174 * (channels + 1)


def test_shapes_at_full_size():
    # Shapes without the arithmetic.
    with torch.device("meta"):
        model = TSM(classes=174)
        for frames in (3, 8, 16):
            assert model(torch.empty(2, 3, frames, 224, 224)).shape == (2, 174)


@pytest.mark.parametrize("depth", [18, 50])
def test_is_torchvisions_network_except_for_the_shift(depth, monkeypatch):
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None, num_classes=7).eval()
    ours = TSM(classes=7, depth=depth).eval()
    ours.load_state_dict(theirs.state_dict())
    clip = torch.randn(2, 3, 2, 64, 64)
    monkeypatch.setattr(ffnrepro.recipe.models.tsm, "temporal_shift", lambda x, frames: x)  # noqa: ARG005
    with torch.no_grad():
        frames = [theirs(clip[:, :, t]) for t in range(2)]
        torch.testing.assert_close(ours(clip), (frames[0] + frames[1]) / 2)


def test_shift_reaches_the_branch_and_not_the_shortcut(monkeypatch):
    model = TSM(**SMALL).eval()
    clip = torch.randn(1, 3, 2, 32, 32)
    seen = []

    def record(x, frames):
        seen.append((tuple(x.shape), frames))
        return torch.zeros_like(x)

    monkeypatch.setattr(ffnrepro.recipe.models.tsm, "temporal_shift", record)
    with torch.no_grad():
        x = torch.randn(2, 8, 6, 6)
        # Nothing enters the branch, whose normalisations have bias 0: the block is its shortcut.
        torch.testing.assert_close(model.layer1[0](x, 2, 0), x.relu())
        shortcut = model.layer2[0].downsample
        torch.testing.assert_close(model.layer2[0](x, 2, 0), shortcut[1](shortcut[0](x)).relu())
        seen.clear()
        model(clip)
    assert seen == [((2, 8, 8, 8), 2), ((2, 8, 8, 8), 2), ((2, 16, 4, 4), 2), ((2, 32, 2, 2), 2)]


@pytest.mark.parametrize(
    ("shift", "shifted"),
    [("all", range(16)), ("every_second", [0, 2, 3, 5, 7, 9, 11, 13, 15]), ("none", [])],
)
def test_which_blocks_shift(shift, shifted, monkeypatch):
    """ResNet-50 has 3, 4, 6 and 3 blocks; they are counted anew in each stage."""
    model = TSM(classes=5, depth=50, width=8, stem=3, shift=shift).eval()
    blocks = [block for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage]
    calls, seen = [], []
    monkeypatch.setattr(
        ffnrepro.recipe.models.tsm, "temporal_shift", lambda x, frames: calls.append(frames) or x
    )
    for number, block in enumerate(blocks):
        with torch.no_grad():
            block(torch.randn(2, block.conv1.in_channels, 4, 4), 2, 0)
        seen += [number] * len(calls)
        calls.clear()
    assert seen == list(shifted)
    assert model.architecture["shift"] == shift


@pytest.mark.parametrize("frames", [1, 4])
def test_order_of_frames_matters_only_with_several(frames):
    model = TSM(**SMALL).eval()
    clip = torch.randn(2, 3, frames, 24, 24)
    with torch.no_grad():
        same = torch.allclose(model(clip), model(clip.flip(2)), atol=1e-7)
    assert same == (frames == 1)


def test_clips_of_a_batch_do_not_touch():
    model = TSM(**SMALL).eval()
    clips = torch.randn(3, 3, 4, 24, 24)
    with torch.no_grad():
        torch.testing.assert_close(model(clips)[1:2], model(clips[1:2]))


def test_memory_format_does_not_matter():
    model = TSM(**SMALL).eval()
    clips = torch.randn(2, 3, 4, 24, 24)
    with torch.no_grad():
        expected = model(clips)
        stored_by_frame = clips.permute(0, 2, 3, 4, 1).contiguous().permute(0, 4, 1, 2, 3)
        model.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(stored_by_frame), expected)


def test_initial_weights():
    model = TSM(classes=174, depth=18)
    assert 0.95e-3 < model.fc.weight.std() < 1.05e-3
    assert not model.fc.bias.any()
    expected = (2 / (256 * 9)) ** 0.5  # Kaiming, by the 256 outputs
    assert abs(model.layer3[0].conv1.weight.std() / expected - 1) < 0.02
    assert bool((model.bn1.weight == 1).all())
    assert not model.bn1.bias.any()


def test_dropout_is_the_last_thing_before_the_classifier():
    torch.manual_seed(0)
    model = TSM(**SMALL, dropout=0.4).train()
    torch.nn.init.ones_(model.fc.weight)
    seen = {}
    model.dropout.register_forward_hook(lambda _m, inputs, out: seen.update(pooled=inputs[0], dropped=out))
    model.fc.register_forward_hook(lambda _m, inputs, _out: seen.update(scored=inputs[0]))
    model(torch.randn(8, 3, 4, 24, 24))
    assert seen["pooled"].shape == (8 * 4, 64)
    assert torch.equal(seen["scored"], seen["dropped"])
    positive = seen["pooled"] > 0
    pooled, dropped = seen["pooled"][positive], seen["dropped"][positive]
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], pooled[kept] / 0.6)
    assert kept.float().mean().item() == pytest.approx(0.6, abs=0.06)


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (torch.zeros(3, 4, 32, 32), r"the shape \(N, 3, T, H, W\), not torch.float32 \(3, 4, 32, 32\)"),
        (torch.zeros(2, 4, 3, 32, 32), r"the shape \(N, 3, T, H, W\), not torch.float32 \(2, 4, 3, 32, 32\)"),
        (torch.zeros(2, 3, 4, 32, 32, dtype=torch.uint8), "not torch.uint8"),
    ],
)
def test_refuses_other_clips(clip, message):
    with pytest.raises(ValueError, match=message):
        TSM(**SMALL)(clip)
