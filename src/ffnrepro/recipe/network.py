"""Settings of the ResNet that the networks are built on (section 4.1)."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from ffnrepro.settings import Settings

Depth = Literal[10, 18, 50, 101]

Shift = Literal["all", "every_second", "none"]


class NetworkSettings(Settings):
    """The ResNet."""

    depth: Depth = 50
    """ResNet-18, -50 or -101 (Table 5), or 10 (one block per stage, for the demo)."""
    width: Annotated[int, Field(gt=0, multiple_of=8)] = 64
    """Channels of the first stage; a multiple of 8, because each direction of the shift takes one eighth. At 8 and crops
    of 192 pixels or more, PyTorch 2.14 crashes on CPUs with AVX-512."""
    stem: Annotated[int, Field(gt=0)] = 7
    """Kernel size of the first convolution; odd."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Dropout before the classifier."""
    shift: Shift = "all"
    """Residual blocks that shift in time: `all`, as in the authors' networks; `every_second`: blocks 0, 2, 4, ... of
    each stage, as mit-han-lab's and mmaction2's TSM shift a ResNet-101; `none`: a network over single frames."""

    @field_validator("stem")
    @classmethod
    def _check_stem(cls, stem: int) -> int:
        if stem % 2 == 0:
            raise ValueError("a kernel size is odd, such as 7")
        return stem
