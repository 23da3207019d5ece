"""A training method: the clips that it trains on, its network, and the terms of its loss.

A new method needs one module in this folder, which defines `METHOD`, a subclass of `Method`; and its name in
`ffnrepro.methods.NAMES`. These modules import torch inside their functions, because each process of the workflow
reads the settings of all methods and most processes do not need torch.
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
        loss: Scalar tensor with its graph. It is recorded without the weight, and differentiated with it.
        weight: Factor of the term in the loss.
        logits: Detached logits (N, classes), from which training accuracy is computed; only one term per step has them.
    """

    name: str
    loss: "Tensor"
    weight: float = 1.0
    logits: "Tensor | None" = None


class Method(Settings):
    """Settings of a method, and how they determine the clips, the network and the loss."""

    family: ClassVar[Literal["tsm", "ffn", "checkpoint"]]
    """Kind of the network, which determines the rule that makes it: `train_tsm`, `train_ffn` or `import_checkpoint`."""

    method: str
    train_frames: FrameCounts
    """Frame counts to train at, in ascending order: one for `tsm`, several for `ffn` (Tables 2 and 3), two for `mixed`
    and `proportional` (Table 1)."""

    @property
    def frame_counts(self) -> tuple[int, ...]:
        """Frame counts of the clips in a training sample and in validation, in ascending order."""
        return self.train_frames

    def effective(self) -> Self:
        """A copy in which each value that has no effect is the default."""
        return self

    def build(self, classes: int, network: NetworkSettings) -> "nn.Module":
        """Make the network, with weights drawn from torch's global generator.

        Args:
            classes: Number of classes.
            network: Settings of the ResNet.
        """
        raise NotImplementedError

    def build_seeded(self, classes: int, network: NetworkSettings, seed: int) -> "nn.Module":
        """Make the network of a training: its initial weights are drawn from the seed of the training.

        Args:
            classes: Number of classes.
            network: Settings of the ResNet.
            seed: Of the training.
        """
        import torch

        torch.manual_seed(seed)
        return self.build(classes, network)

    def terms(
        self,
        network: "Network",
        clips: "Mapping[int, Tensor]",
        labels: "Tensor",
        generator: "torch.Generator",
    ) -> Iterator[Term]:
        """Compute the terms of a step's loss, one after the other.

        Each term is differentiated before the next one is computed. So terms share no graph, and only the activations
        of one term are in memory at a time.

        Args:
            network: The network in training mode: normalised clips (N, 3, T, H, W) -> logits (N, classes).
            clips: Normalised clips (N, 3, T, H, W) by frame count T.
            labels: Class indices (N,).
            generator: Generator for the random choices of the method; the same in all processes.
        """
        raise NotImplementedError
