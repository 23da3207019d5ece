"""Frame Flexible Network (CVPR 2023) on Something-Something V2, reproduced as a library and a workflow."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ffnrepro.frame_flexible import make_frame_flexible

__all__ = ["make_frame_flexible"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    # Torch is imported where it computes: `import ffnrepro` stays light.
    if name == "make_frame_flexible":
        from ffnrepro.frame_flexible import make_frame_flexible  # noqa: PLC0415

        return make_frame_flexible
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
