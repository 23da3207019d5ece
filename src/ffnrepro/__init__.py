"""Frame Flexible Network (CVPR 2023) on Something-Something V2, reproduced as a library and a workflow."""

__version__ = "0.2.0"
