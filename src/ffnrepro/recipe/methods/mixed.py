"""Mixed Sampling: a TSM that is trained at a high frame count and on mixtures of a high and a low one (Table 1)."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from ffnrepro.recipe.methods.method import Method, Term
from ffnrepro.recipe.network import NetworkSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ffnrepro.recipe.methods.method import Network


class Mixed(Method):
    """TSM with Mixed Sampling."""

    family: ClassVar[Literal["tsm", "ffn"]] = "tsm"

    method: Literal["mixed"]
    rho: Annotated[float, Field(ge=0, le=1)]
    """For `mixed`: probability that a step trains on mixed clips of the low frame count; the other steps train at the
    high one."""

    @field_validator("train_frames")
    @classmethod
    def _check_train_frames(cls, train_frames: tuple[int, ...]) -> tuple[int, ...]:
        if len(train_frames) != 2:
            raise ValueError("mixed trains at two frame counts, such as [4, 16]")
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
        from torch.nn import functional as F

        logits = network(self._draw(clips, generator))
        yield Term("cross_entropy", F.cross_entropy(logits, labels), logits=logits.detach())

    def _draw(self, clips: "Mapping[int, Tensor]", generator: "torch.Generator") -> "Tensor":
        """The clips of the high frame count or, with probability `rho`, mixed clips of the low one.

        All clips of a step have the same window of frames and the same weight. Both clips of a pair show one video, so
        the label is not mixed.
        """
        import torch

        low, high = self.train_frames
        if float(torch.rand((), generator=generator)) >= self.rho:
            return clips[high]
        first = int(torch.randint(high - low + 1, (), generator=generator))
        weight = float(torch.rand((), generator=generator))
        return torch.lerp(clips[low], clips[high][:, :, first : first + low], weight)


METHOD = Mixed
