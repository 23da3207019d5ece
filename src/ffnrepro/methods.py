"""The methods that an experiment may name. The list is outside `recipe/`, so that a new method changes no run's key."""

from functools import reduce
from importlib import import_module
from operator import or_
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ffnrepro.recipe.methods.method import Method

NAMES = ("tsm", "ffn", "mixed", "proportional")
"""The methods of training; `checkpoint` trains nothing."""


class Imported(Method):
    """A network that is read from a file instead of trained."""

    family: ClassVar[Literal["tsm", "ffn", "checkpoint"]] = "checkpoint"
    # No setting here: the file has its frame counts.
    train_frames: ClassVar[tuple[int, ...]] = ()  # type: ignore[misc]

    method: Literal["checkpoint"]
    path: str
    """For `checkpoint`: the network's file, in the format of ffnrepro, FFN's authors, mit-han-lab's TSM or mmaction2's TSM."""


CLASSES: dict[str, type[Method]] = {
    **{name: import_module(f"ffnrepro.recipe.methods.{name}").METHOD for name in NAMES},
    "checkpoint": Imported,
}

if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = Annotated[reduce(or_, CLASSES.values()), Field(discriminator="method")]
