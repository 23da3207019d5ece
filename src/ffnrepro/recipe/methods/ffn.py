"""Frame Flexible Network: one network, trained at several frame counts at once (section 3.2, eq. 4).

The highest frame count learns from the label, the others learn from its prediction (temporal distillation):
`CE(p_H, y) + weight * sum over the others of KL(p_H || p_n)`. Each of the paper's four components is a switch
(Table 4).
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from ffnrepro.recipe.methods.method import Method, Term
from ffnrepro.recipe.network import NetworkSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ffnrepro.recipe.methods.method import Network


class Ffn(Method):
    """Frame Flexible Network and its ablations."""

    family: ClassVar[Literal["tsm", "ffn"]] = "ffn"

    method: Literal["ffn"]
    weight_sharing: bool = True
    """For `ffn`: one set of convolutions and one classifier for all frame counts; `false`: a separate network for each (Table 4)."""
    specialized_normalization: bool = True
    """For `ffn`: a private BatchNorm for each frame count; `false`: one for all (Table 4)."""
    weight_alteration: bool = True
    """For `ffn`: a private depthwise convolution for each frame count and residual block; `false`: none (Table 4)."""
    temporal_distillation: bool = True
    """For `ffn`: the lower frame counts learn from the highest; `false`: each learns from the label (Table 4)."""
    distillation_weight: Annotated[float, Field(ge=0)] = 1.0
    """For `ffn`: lambda of eq. 4, the weight of temporal distillation."""
    training_shift: Literal["per_clip", "authors"] = "per_clip"
    """For `ffn`: `per_clip`: each clip is shifted on its own; `authors`: in training, frames leak between the clips of
    a batch, as in the authors' code, so the number of clips that go through the network at a time must be a multiple
    of 4 (at 4, 8 and 16 frames)."""
    adapter_init: Literal["near_zero", "authors"] = "near_zero"
    """For `ffn`: initial standard deviation of the weight alteration. `near_zero`: 0.001, as in the paper; `authors`:
    sqrt(2 / C) for C channels, as in the authors' code."""

    @field_validator("train_frames")
    @classmethod
    def _check_train_frames(cls, train_frames: tuple[int, ...]) -> tuple[int, ...]:
        if len(train_frames) < 2:
            raise ValueError("ffn trains at two frame counts or more, such as [4, 8, 16]")
        return train_frames

    def effective(self) -> Self:
        """A copy in which each value that has no effect is the default."""
        unused: dict[str, Any] = {} if self.temporal_distillation else {"distillation_weight": 1.0}
        if not self.weight_alteration:
            unused["adapter_init"] = "near_zero"
        if not self.weight_sharing:
            # Each separate network has its own normalisation, and clips of one frame count.
            unused |= {"specialized_normalization": True, "training_shift": "per_clip"}
        return self.model_copy(update=unused)

    def build(self, classes: int, network: NetworkSettings) -> "nn.Module":
        """Make the network (see `Method.build`)."""
        from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork, SeparateNetworks

        make = FrameFlexibleNetwork if self.weight_sharing else SeparateNetworks
        return make(
            classes=classes,
            frame_counts=self.train_frames,
            specialized_normalization=self.specialized_normalization,
            weight_alteration=self.weight_alteration,
            training_shift=self.training_shift,
            adapter_init=self.adapter_init,
            **network.model_dump(),
        )

    def terms(
        self,
        network: "Network",
        clips: "Mapping[int, Tensor]",
        labels: "Tensor",
        generator: "torch.Generator",  # noqa: ARG002
    ) -> Iterator[Term]:
        """Yield the cross entropy at the highest frame count, then one term for each other frame count."""
        from torch.nn import functional as F

        *lower, highest = sorted(clips)
        logits = network(clips[highest])
        yield Term("cross_entropy", F.cross_entropy(logits, labels), logits=logits.detach())
        log_teacher = F.log_softmax(logits.detach(), dim=1)
        for frames in lower:
            logits = network(clips[frames])
            if self.temporal_distillation:
                log_student = F.log_softmax(logits, dim=1)
                divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
                yield Term(f"kl_{frames}f", divergence, self.distillation_weight)
            else:
                yield Term(f"cross_entropy_{frames}f", F.cross_entropy(logits, labels))


METHOD = Ffn
