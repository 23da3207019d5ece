"""STUB of the branch `config`: TSM."""

from typing import ClassVar, Literal

from pydantic import field_validator

from ffnrepro.recipe.methods.method import Method


class Tsm(Method):
    """TSM, trained at one frame count (section 3.1)."""

    family: ClassVar[str] = "tsm"

    method: Literal["tsm"] = "tsm"
    """What is trained."""

    @field_validator("train_frames")
    @classmethod
    def _check_train_frames(cls, frame_counts: tuple[int, ...]) -> tuple[int, ...]:
        if len(frame_counts) != 1:
            raise ValueError("tsm trains at one frame count, ffn at several")
        return frame_counts


METHOD = Tsm
