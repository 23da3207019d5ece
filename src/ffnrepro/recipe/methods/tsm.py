"""Vanilla TSM: one network, trained at one frame count (section 3.1; Lin et al., TSM, ICCV 2019)."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ffnrepro.recipe.methods.method import Method, Term
from ffnrepro.recipe.network import NetworkSettings
from ffnrepro.settings import FrameCounts

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ffnrepro.recipe.methods.method import Network


class Tsm(Method):
    """TSM, trained at one frame count."""

    family: ClassVar[Literal["tsm", "ffn"]] = "tsm"

    method: Literal["tsm"]
    train_frames: Annotated[FrameCounts, Field(max_length=1)]
    """a list of the one frame count that is trained"""

    def build(self, classes: int, network: NetworkSettings) -> "nn.Module":
        """Make the network (see `Method.build`)."""
        from ffnrepro.recipe.models.tsm import TSM

        return TSM(classes=classes, **network.model_dump())

    def terms(
        self,
        network: "Network",
        clips: "Mapping[int, Tensor]",
        labels: "Tensor",
        generator: "torch.Generator",  # noqa: ARG002
    ) -> Iterator[Term]:
        """Yield the cross entropy (see `Method.terms`)."""
        from torch.nn import functional as F

        (clip,) = clips.values()
        logits = network(clip)
        yield Term("cross_entropy", F.cross_entropy(logits, labels), logits=logits.detach())


METHOD = Tsm
