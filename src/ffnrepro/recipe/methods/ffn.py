"""STUB of the branch `config`: FFN."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator

from ffnrepro.recipe.methods.method import Method


class Ffn(Method):
    """Frame Flexible Network (section 3.2)."""

    family: ClassVar[str] = "ffn"

    method: Literal["ffn"] = "ffn"
    """What is trained."""
    distillation_weight: Annotated[float, Field(ge=0)] = 1.0
    """For `ffn`: lambda of the loss (eq. 4)."""
    weight_sharing: bool = True
    """For `ffn`: one set of convolutions and one classifier for all frame counts; false: one for each (Table 4)."""
    specialized_normalization: bool = True
    """For `ffn`: a BatchNorm for each frame count; false: one for all (Table 4)."""
    weight_alteration: bool = True
    """For `ffn`: an adapter for each frame count and residual block; false: none (Table 4)."""
    temporal_distillation: bool = True
    """For `ffn`: the lower frame counts learn from the highest one; false: from the labels (Table 4)."""
    training_shift: Literal["per_clip", "authors"] = "per_clip"
    """For `ffn`: `authors`: in training, frames leak between the clips of a batch, as in the authors' code; the number of clips that go through the network together must then be a multiple of 4 (at 4, 8 and 16 frames)."""
    adapter_init: Literal["near_zero", "authors"] = "near_zero"
    """For `ffn`: standard deviation of the adapters at the start: 0.001, as the paper says, or sqrt(2 / C), as in the authors' code."""

    @field_validator("train_frames")
    @classmethod
    def _check_train_frames(cls, frame_counts: tuple[int, ...]) -> tuple[int, ...]:
        if len(frame_counts) < 2:
            raise ValueError("ffn trains at two frame counts or more, such as [4, 8, 16]")
        return frame_counts


METHOD = Ffn
