"""Terms of the methods against sums written out by hand, the paths of their gradients, and the switches of FFN."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ffnrepro.recipe.methods.ffn import Ffn
from ffnrepro.recipe.methods.method import Method, Term
from ffnrepro.recipe.methods.mixed import Mixed
from ffnrepro.recipe.methods.proportional import Proportional
from ffnrepro.recipe.methods.tsm import Tsm
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork, SeparateNetworks
from ffnrepro.recipe.models.tsm import TSM
from ffnrepro.recipe.models.weight_alteration import Alterations
from ffnrepro.recipe.network import NetworkSettings
from ffnrepro.recipe.step import _method_generator

LOGITS = {
    4: [[0.2, -0.4, 1.0], [0.5, 0.1, -0.7]],
    8: [[1.2, 0.3, -0.1], [0.0, 0.9, 0.4]],
    16: [[2.0, -1.0, 0.5], [-0.3, 0.8, 1.5]],
}
LABELS = [0, 2]
SMALL = NetworkSettings(depth=10, width=8, stem=3, dropout=0.0)


def tsm(**settings: Any) -> Tsm:
    return Tsm(**{"method": "tsm", "train_frames": (16,), **settings})


def ffn(**settings: Any) -> Ffn:
    return Ffn(**{"method": "ffn", "train_frames": (4, 8, 16), **settings})


# --- Terms -----------------------------------------------------------------------------------------------------


def softmax(row: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in row)
    return [math.exp(value) / total for value in row]


def kl(teacher: int, student: int) -> float:
    """KL(p_teacher || p_student), the mean over the rows."""
    total = 0.0
    for teacher_row, student_row in zip(LOGITS[teacher], LOGITS[student], strict=True):
        for p, q in zip(softmax(teacher_row), softmax(student_row), strict=True):
            total += p * math.log(p / q)
    return total / len(LABELS)


def cross_entropy(frames: int) -> float:
    rows = zip(LOGITS[frames], LABELS, strict=True)
    return -sum(math.log(softmax(row)[label]) for row, label in rows) / len(LABELS)


def terms_and_leaves(method: Method) -> tuple[list[Term], dict[int, Tensor]]:
    """The terms of `method` where the network gives LOGITS, and the leaves of their graphs."""
    leaves = {frames: torch.tensor(LOGITS[frames], requires_grad=True) for frames in method.frame_counts}

    def network(clip: Tensor) -> Tensor:
        return leaves[clip.shape[2]]

    # In another order than rising, since a mapping has none.
    clips = {frames: torch.zeros(2, 3, frames, 1, 1) for frames in reversed(method.frame_counts)}
    return list(method.terms(network, clips, torch.tensor(LABELS), torch.Generator())), leaves


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (tsm(), {"cross_entropy": (1, cross_entropy(16))}),
        (
            ffn(),
            {"cross_entropy": (1, cross_entropy(16)), "kl_4f": (1, kl(16, 4)), "kl_8f": (1, kl(16, 8))},
        ),
        (
            ffn(train_frames=(4, 16), distillation_weight=2.5),
            {"cross_entropy": (1, cross_entropy(16)), "kl_4f": (2.5, kl(16, 4))},
        ),
        (
            ffn(temporal_distillation=False, distillation_weight=2.5),
            {
                "cross_entropy": (1, cross_entropy(16)),
                "cross_entropy_4f": (1, cross_entropy(4)),
                "cross_entropy_8f": (1, cross_entropy(8)),
            },
        ),
    ],
)
def test_terms_by_hand(method: Method, expected: dict[str, tuple[float, float]]) -> None:
    terms, _ = terms_and_leaves(method)
    found = {term.name: (term.weight, term.loss.item()) for term in terms}
    assert list(found) == list(expected)
    for name, (weight, loss) in expected.items():
        assert found[name] == (weight, pytest.approx(loss, rel=1e-5)), name
    # Training accuracy is measured at the highest frame count.
    (logits,) = [term.logits for term in terms if term.logits is not None]
    assert logits.tolist() == torch.tensor(LOGITS[16]).tolist()
    assert not logits.requires_grad


def test_the_teacher_learns_from_the_label_alone() -> None:
    terms, leaves = terms_and_leaves(ffn())
    for term in terms:
        term.loss.backward()
    one_hot = torch.eye(3)[LABELS]
    probabilities = {frames: torch.tensor([softmax(row) for row in rows]) for frames, rows in LOGITS.items()}
    # d CE / d logits = (p - y) / rows, and d KL(p_H || p_n) / d logits_n = (p_n - p_H) / rows.
    torch.testing.assert_close(leaves[16].grad, (probabilities[16] - one_hot) / 2)
    for student in (4, 8):
        torch.testing.assert_close(leaves[student].grad, (probabilities[student] - probabilities[16]) / 2)


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"distillation_weight": 0.3},
        {"temporal_distillation": False},
        {"specialized_normalization": False},
        {"weight_sharing": False},
    ],
)
def test_gradients_term_by_term_are_those_of_the_sum(switches: dict[str, Any]) -> None:
    method = ffn(train_frames=(2, 3, 4), **switches)
    network = small_network(method)
    clips, labels = small_batch(method)
    for term in method.terms(network, clips, labels, torch.Generator()):
        (term.weight * term.loss).backward()
    found = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()
    logs = {frames: network(clip).log_softmax(1) for frames, clip in clips.items()}
    teacher = logs[4].detach()
    rows = torch.arange(len(labels))
    loss = -logs[4][rows, labels].mean()
    for frames in (2, 3):
        if method.temporal_distillation:
            divergence = (teacher.exp() * (teacher - logs[frames])).sum(1).mean()
            loss = loss + method.distillation_weight * divergence
        else:
            loss = loss - logs[frames][rows, labels].mean()
    loss.backward()
    for gradient, (name, parameter) in zip(found, network.named_parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-10, atol=1e-13, msg=name)


def small_network(method: Method) -> nn.Module:
    torch.manual_seed(0)
    network = method.build(5, SMALL).double().train()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            # The initial classifier hardly distinguishes classes, so gradients would be tiny.
            if "fc.weight" in name:
                parameter.mul_(300)
    return network


def small_batch(method: Method) -> tuple[dict[int, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(1)
    clips = {
        frames: torch.randn(4, 3, frames, 24, 24, dtype=torch.float64, generator=generator)
        for frames in method.frame_counts
    }
    return clips, torch.tensor([0, 3, 1, 4])


# --- Mixed and Proportional Sampling -----------------------------------------------------------------------------


def mixed(rho: float) -> Mixed:
    return Mixed(method="mixed", train_frames=(4, 16), rho=rho)


def proportional(varrho: float) -> Proportional:
    return Proportional(method="proportional", train_frames=(4, 16), varrho=varrho)


def numbered_clips() -> dict[int, Tensor]:
    """Two clips (2, 3, T, 1, 1): frame t is 1000 + t at 4 frames and 100 t at 16 frames; the second clip has 1 more."""
    values = {4: 1000 + torch.arange(4.0), 16: 100 * torch.arange(16.0)}
    return {
        n: torch.stack([row, row + 1])[:, None, :, None, None].repeat(1, 3, 1, 1, 1)
        for n, row in values.items()
    }


def clip_of_step(method: Method, step: int) -> Tensor:
    """The clips (2, 3, T, 1, 1) that the network sees in a step."""
    seen: list[Tensor] = []

    def network(clip: Tensor) -> Tensor:
        seen.append(clip)
        return torch.tensor(LOGITS[16])

    (term,) = method.terms(network, numbered_clips(), torch.tensor(LABELS), _method_generator(5, 0, step))
    assert (term.name, term.weight, term.loss.item()) == (
        "cross_entropy",
        1,
        pytest.approx(cross_entropy(16)),
    )
    assert term.logits is not None
    (clip,) = seen
    return clip


def test_a_mixed_clip_is_a_window_of_the_long_clip_mixed_with_the_short_clip() -> None:
    windows, weights = [], []
    for step in range(400):
        clip = clip_of_step(mixed(1.0), step)
        assert clip.shape == (2, 3, 4, 1, 1)
        # Frame t is (1 - w) (1000 + t) + w 100 (first + t): the slope gives w, and then the mean gives `first`.
        first_clip, second_clip = clip[:, 0, :, 0, 0].double()
        slope = (first_clip[3] - first_clip[0]) / 3
        weight = (slope - 1) / 99
        first = (first_clip[0] - (1 - weight) * 1000) / (100 * weight)
        assert torch.equal(clip, clip[:, :1].expand_as(clip))
        torch.testing.assert_close(second_clip - first_clip, torch.ones(4).double(), rtol=0, atol=1e-3)
        assert 0 <= weight <= 1
        weights.append(float(weight))
        if weight > 0.01:
            assert first == pytest.approx(round(float(first)), abs=0.05)
            windows.append(round(float(first)))
    # Each of the 13 windows; and weights that are uniform: mean and variance 1/2 and 1/12, within four deviations.
    assert set(windows) == set(range(13))
    assert max(windows.count(first) for first in range(13)) < 60
    assert sum(weights) / 400 == pytest.approx(1 / 2, abs=4 * math.sqrt(1 / 12 / 400))
    assert sum((w - 0.5) ** 2 for w in weights) / 400 == pytest.approx(
        1 / 12, abs=4 * math.sqrt(1 / 180 / 400)
    )


@pytest.mark.parametrize(
    ("make", "trained_at_16"), [(mixed, lambda rho: 1 - rho), (proportional, lambda varrho: varrho)]
)
@pytest.mark.parametrize("probability", [0.0, 0.5, 0.75, 1.0])
def test_frame_counts_of_steps_have_their_probability(
    make: Callable[[float], Method], trained_at_16: Callable[[float], float], probability: float
) -> None:
    method, clips = make(probability), numbered_clips()
    drawn = [clip_of_step(method, step) for step in range(400)]
    long = [clip for clip in drawn if clip.shape[2] == 16]
    expected = trained_at_16(probability)
    deviation = math.sqrt(expected * (1 - expected) / 400)
    assert len(long) / 400 == pytest.approx(expected, abs=4 * deviation)
    assert all(torch.equal(clip, clips[16]) for clip in long)
    if method.method == "proportional":
        assert all(torch.equal(clip, clips[4]) for clip in drawn if clip.shape[2] == 4)
    # Processes, and parts of a batch, make the same choice, because they have the same generator.
    assert all(torch.equal(clip_of_step(method, step), drawn[step]) for step in range(20))


def test_the_steps_that_do_not_mix_may_train_on_both_clips() -> None:
    method = Mixed(method="mixed", train_frames=(4, 16), rho=0.5, unmixed="both")
    seen: list[Tensor] = []

    def network(clip: Tensor) -> Tensor:
        seen.append(clip)
        return torch.tensor(LOGITS[clip.shape[2]])

    clips = numbered_clips()
    for step in range(40):
        seen.clear()
        (term,) = method.terms(network, clips, torch.tensor(LABELS), _method_generator(5, 0, step))
        assert term.logits is not None
        mixes = clip_of_step(mixed(0.5), step).shape[2] == 4
        if mixes:
            assert [clip.shape[2] for clip in seen] == [4]
            assert term.loss.item() == pytest.approx(cross_entropy(4))
        else:
            assert torch.equal(seen[0], clips[16])
            assert torch.equal(seen[1], clips[4])
            assert term.loss.item() == pytest.approx((cross_entropy(16) + cross_entropy(4)) / 2)
            assert term.logits.tolist() == torch.tensor(LOGITS[16]).tolist()
    # If all steps mix, it has no effect, and is no part of the run's key.
    assert method.model_copy(update={"rho": 1.0}).effective() == mixed(1.0)
    assert method.effective() == method


def test_mixed_and_proportional_sampling_train_a_tsm() -> None:
    for method in (mixed(0.5), proportional(0.5)):
        assert type(method.build(5, SMALL)) is TSM
        assert (method.family, method.frame_counts) == ("tsm", (4, 16))


def test_mixed_clips_keep_the_channels_last_in_memory() -> None:
    """Else folding the frames into the batch would copy them."""
    clips = {n: torch.rand(2, n, 6, 6, 3).permute(0, 4, 1, 2, 3) for n in (4, 16)}
    (mix,) = mixed(1.0)._draw(clips, torch.Generator())
    folded = mix.transpose(1, 2).reshape(8, 3, 6, 6)
    assert folded.data_ptr() == mix.data_ptr()
    assert folded.is_contiguous(memory_format=torch.channels_last)


# --- Networks --------------------------------------------------------------------------------------------------

TSM_PARAMETERS = 23_864_558
ALTERATIONS = 39_360
NORMALISATIONS = 106_240


@pytest.mark.parametrize(
    ("method", "network", "parameters"),
    [
        (tsm(), TSM, TSM_PARAMETERS),
        (ffn(), FrameFlexibleNetwork, TSM_PARAMETERS + ALTERATIONS + NORMALISATIONS),
        (ffn(temporal_distillation=False), FrameFlexibleNetwork, 24_010_158),
        (ffn(specialized_normalization=False), FrameFlexibleNetwork, TSM_PARAMETERS + ALTERATIONS),
        (ffn(weight_alteration=False), FrameFlexibleNetwork, TSM_PARAMETERS + NORMALISATIONS),
        (ffn(weight_sharing=False), SeparateNetworks, 3 * TSM_PARAMETERS + ALTERATIONS),
        (ffn(weight_sharing=False, weight_alteration=False), SeparateNetworks, 3 * TSM_PARAMETERS),
    ],
)
def test_parameters(method: Method, network: type[nn.Module], parameters: int) -> None:
    with torch.device("meta"):
        built = method.build(174, NetworkSettings())
    assert type(built) is network
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters


@pytest.mark.parametrize("method", [tsm(), ffn(train_frames=(2, 5)), ffn(weight_sharing=False)])
def test_networks_have_the_settings(method: Method) -> None:
    settings = NetworkSettings(depth=18, width=16, stem=5, dropout=0.25)
    with torch.device("meta"):
        architecture = method.build(9, settings).architecture
    assert architecture.items() >= {"classes": 9, **settings.model_dump()}.items()
    assert architecture.get("frame_counts", [16]) == list(method.train_frames)


def test_ffn_passes_the_authors_switches_to_its_network() -> None:
    ours, theirs = (
        ffn(adapter_init=value, training_shift=shift).build(5, SMALL)
        for value, shift in (("near_zero", "per_clip"), ("authors", "authors"))
    )
    assert (ours.training_shift, theirs.training_shift) == ("per_clip", "authors")

    def largest(network: nn.Module) -> float:
        groups = [module for module in network.modules() if isinstance(module, Alterations)]
        return max(alteration.abs().max().item() for group in groups for alteration in group.values())

    assert largest(ours) < 0.01
    assert largest(theirs) > 0.1


# --- Settings without an effect --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "effective"),
    [
        (tsm(), tsm()),
        (ffn(distillation_weight=0.5), ffn(distillation_weight=0.5)),
        (
            ffn(temporal_distillation=False, distillation_weight=0.5, adapter_init="authors"),
            ffn(temporal_distillation=False, adapter_init="authors"),
        ),
        (
            ffn(weight_alteration=False, adapter_init="authors", training_shift="authors"),
            ffn(weight_alteration=False, training_shift="authors"),
        ),
        (
            ffn(weight_sharing=False, specialized_normalization=False, training_shift="authors"),
            ffn(weight_sharing=False),
        ),
    ],
)
def test_a_setting_without_effect_counts_as_its_default(given: Method, effective: Method) -> None:
    assert given.effective() == effective
    assert effective.effective() == effective
    # Indeed it has none: the same start, losses and gradients.
    results = []
    for settings in (given, effective):
        train_frames = (2, 4) if settings.method == "ffn" else (4,)
        method = settings.model_copy(update={"train_frames": train_frames})
        network = small_network(method)
        losses = []
        for term in method.terms(network, *small_batch(method), torch.Generator()):
            (term.weight * term.loss).backward()
            losses.append((term.name, term.weight * term.loss.item()))
        results.append((losses, [parameter.grad for parameter in network.parameters()]))
    (losses, gradients), (others, other_gradients) = results
    assert losses == others
    assert all(torch.equal(a, b) for a, b in zip(gradients, other_gradients, strict=True))
