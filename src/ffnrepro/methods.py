"""The methods that an experiment may name. It stands outside `recipe/`: a new method changes no run's key."""

from functools import reduce
from importlib import import_module
from operator import or_
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ffnrepro.recipe.methods.method import Method

NAMES = ("tsm", "ffn", "mixed", "proportional")

CLASSES: dict[str, type[Method]] = {
    name: import_module(f"ffnrepro.recipe.methods.{name}").METHOD for name in NAMES
}

if TYPE_CHECKING:
    AnyMethod = Method
else:
    AnyMethod = Annotated[reduce(or_, CLASSES.values()), Field(discriminator="method")]
