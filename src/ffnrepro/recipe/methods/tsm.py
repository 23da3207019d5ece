"""Vanilla TSM: one network, trained at one frame count (section 3.1; Lin et al., TSM, ICCV 2019)."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import field_validator

from ffnrepro.recipe.methods.method import Method, Term
from ffnrepro.recipe.network import NetworkSettings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ffnrepro.recipe.methods.method import Network


class Tsm(Method):
    """TSM, trained at one frame count."""

    family: ClassVar[Literal["tsm", "ffn"]] = "tsm"

    method: Literal["tsm"]

    @field_validator("train_frames")
    @classmethod
    def _check_train_frames(cls, train_frames: tuple[int, ...]) -> tuple[int, ...]:
        if len(train_frames) > 1:
            raise ValueError("tsm trains at one frame count, such as [16]; ffn trains at several")
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
        generator: "torch.Generator",  # noqa: ARG002
    ) -> Iterator[Term]:
        """Yield the cross entropy (see `Method.terms`)."""
        from torch.nn import functional as F

        (clip,) = clips.values()
        logits = network(clip)
        yield Term("cross_entropy", F.cross_entropy(logits, labels), logits=logits.detach())


METHOD = Tsm
