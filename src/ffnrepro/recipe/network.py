"""Settings of the ResNet that the networks are built on."""

from typing import Annotated, Literal

from pydantic import Field

from ffnrepro.settings import Settings


class NetworkSettings(Settings):
    """The ResNet and its dropout (section 4.1)."""

    depth: Literal[10, 18, 50, 101] = 50
    """depth of the ResNet: 18, 50 or 101 (Table 5); 10 is the demo's"""

    width: Annotated[int, Field(ge=8, multiple_of=8)] = 64
    """channels of the first stage, a multiple of 8 (the shift takes eighths)"""

    stem: Annotated[int, Field(ge=1)] = 7
    """kernel size of the first convolution, an odd number"""

    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """probability with which a feature is dropped before the classifier"""
