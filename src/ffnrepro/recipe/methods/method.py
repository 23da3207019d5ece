"""STUB of the branch `config`: what all methods have in common."""

from typing import ClassVar, Self

from ffnrepro.settings import FrameCounts, Settings


class Method(Settings):
    """Settings of a method."""

    family: ClassVar[str]

    method: str
    train_frames: FrameCounts
    """Frame counts of training, a list in rising order: one for `tsm`, two or more for `ffn` (Tables 2 and 3)."""

    def effective(self) -> Self:
        """A copy in which settings that have no effect have their defaults."""
        return self
