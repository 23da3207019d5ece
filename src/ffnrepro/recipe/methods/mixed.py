"""Mixed Sampling: a TSM trained on clips of a high frame count, and on their mixtures with clips of a low one (Table 1)."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

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
    """For `mixed`: probability that a step trains on mixed clips of the low frame count."""
    unmixed: Literal["high", "both"] = "high"
    """For `mixed`: what the other steps train on. `high`: clips of the high frame count; `both`: clips of both frame
    counts, with the mean of the two losses."""

    @field_validator("train_frames")
    @classmethod
    def _check_train_frames(cls, train_frames: tuple[int, ...]) -> tuple[int, ...]:
        if len(train_frames) != 2:
            raise ValueError("mixed trains at two frame counts, such as [4, 16]")
        return train_frames

    def effective(self) -> Self:
        """A copy in which each value that has no effect is the default."""
        return self.model_copy(update={"unmixed": "high"}) if self.rho == 1 else self

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

        logits = [network(clip) for clip in self._draw(clips, generator)]
        losses = [F.cross_entropy(each, labels) for each in logits]
        yield Term("cross_entropy", sum(losses[1:], losses[0]) / len(losses), logits=logits[0].detach())

    def _draw(self, clips: "Mapping[int, Tensor]", generator: "torch.Generator") -> "list[Tensor]":
        """Draw the clips of a step: with probability `rho`, mixed clips of the low frame count; else those of `unmixed`.

        All clips of a step share the window of frames and the weight. Both clips of a mixture show the same video, so the
        label is not mixed.
        """
        import torch

        low, high = self.train_frames
        if float(torch.rand((), generator=generator)) >= self.rho:
            return [clips[high]] if self.unmixed == "high" else [clips[high], clips[low]]
        first = int(torch.randint(high - low + 1, (), generator=generator))
        weight = float(torch.rand((), generator=generator))
        return [torch.lerp(clips[low], clips[high][:, :, first : first + low], weight)]


METHOD = Mixed
