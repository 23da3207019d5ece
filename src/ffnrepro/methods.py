"""STUB of the branch `config`: the list of methods."""

from typing import Annotated

from pydantic import Field

from ffnrepro.recipe.methods.ffn import Ffn
from ffnrepro.recipe.methods.method import Method
from ffnrepro.recipe.methods.tsm import Tsm

NAMES = ("tsm", "ffn")
CLASSES: dict[str, type[Method]] = {"tsm": Tsm, "ffn": Ffn}
AnyMethod = Annotated[Tsm | Ffn, Field(discriminator="method")]
