"""Proportional Sampling: a TSM that is trained at one of two frame counts, drawn in each step (Table 1)."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from ffnrepro.recipe.methods.method import Method, Term
from ffnrepro.recipe.network import NetworkSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ffnrepro.recipe.methods.method import Network


class Proportional(Method):
    """TSM with Proportional Sampling."""

    family: ClassVar[Literal["tsm", "ffn"]] = "tsm"

    method: Literal["proportional"]
    varrho: Annotated[float, Field(ge=0, le=1)]
    """For `proportional`: probability that a step trains at the high frame count; the other steps train at the low one."""

    @field_validator("train_frames")
    @classmethod
    def _check_train_frames(cls, train_frames: tuple[int, ...]) -> tuple[int, ...]:
        if len(train_frames) != 2:
            raise ValueError("proportional trains at two frame counts, such as [4, 16]")
        return train_frames

    def build(self, classes: int, network: NetworkSettings) -> "nn.Module":
        """Make the network (see `Method.build`)."""
        from ffnrepro.recipe.models.tsm import TSM

        return TSM(classes=classes, **network.model_dump())

    def terms(
        self,
        network: "Network",
        clips: "Mapping[int, Tensor]",
        labels: "Tensor",
        generator: "torch.Generator",
    ) -> Iterator[Term]:
        """Yield the cross entropy of this step's clips (see `Method.terms`)."""
        import torch
        from torch.nn import functional as F

        low, high = self.train_frames
        drawn = high if float(torch.rand((), generator=generator)) < self.varrho else low
        logits = network(clips[drawn])
        yield Term("cross_entropy", F.cross_entropy(logits, labels), logits=logits.detach())


METHOD = Proportional
