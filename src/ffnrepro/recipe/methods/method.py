"""What a method of training is: the clips that it trains on, its network, and the terms of its loss.

A new method is one module in this folder that defines `METHOD`, a subclass of `Method`, and its name in
`ffnrepro.methods.NAMES`. Modules of methods import torch inside their functions: the workflow reads the settings of
methods in each of its processes, and computes nothing there.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from ffnrepro.recipe.network import NetworkSettings
from ffnrepro.settings import FrameCounts, Settings

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Term:
    """One term of the loss of a step.

    Attributes:
        name: Column of the history, such as `cross_entropy` or `kl_4f`.
        loss: Scalar tensor with its graph, without the weight. It is recorded so, and differentiated with the weight.
        weight: Factor of the term in the loss.
        logits: Detached logits (N, classes) that training accuracy is read from; of one term of a step.
    """

    name: str
    loss: "Tensor"
    weight: float = 1.0
    logits: "Tensor | None" = None


class Method(Settings):
    """Settings of a method, and what they mean for the clips, the network and the loss."""

    family: ClassVar[Literal["tsm", "ffn"]]
    """Kind of the network, and so the rule that trains it: `train_tsm` or `train_ffn`."""

    method: str
    train_frames: FrameCounts
    """Frame counts that are trained, in rising order: one for `tsm`, several for `ffn` (Tables 2 and 3)."""

    @property
    def frame_counts(self) -> tuple[int, ...]:
        """Frame counts of the clips of a training sample and of validation, rising."""
        return self.train_frames

    def effective(self) -> Self:
        """The same settings, with the default in place of each value that has no effect."""
        return self

    def build(self, classes: int, network: NetworkSettings) -> "nn.Module":
        """Make the network, its weights drawn from torch's global generator.

        Args:
            classes: Number of classes.
            network: Settings of the ResNet.
        """
        raise NotImplementedError

    def terms(
        self,
        network: "Network",
        clips: "Mapping[int, Tensor]",
        labels: "Tensor",
        generator: "torch.Generator",
    ) -> Iterator[Term]:
        """Compute the terms of a step's loss, one after the other.

        Each term is differentiated before the next one is computed, so terms share no graph, and the activations of
        one term at a time are in memory.

        Args:
            network: The network in training: normalised clips (N, 3, T, H, W) -> logits (N, classes).
            clips: Normalised clips (N, 3, T, H, W) by frame count T.
            labels: Class indices (N,).
            generator: For whatever the method draws; the same in all processes.
        """
        raise NotImplementedError
