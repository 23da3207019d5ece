"""Fetch torchvision's ImageNet weights of a ResNet and check them."""

import sys
from pathlib import Path

import tyro

from ffnrepro.logs import run
from ffnrepro.weights import fetch_pretrained


def main(depth: int, output: Path, log: Path | None = None) -> int:
    """Fetch torchvision's ImageNet weights and check them.

    Args:
        depth: Depth of the ResNet.
        output: File to write the weights to.
        log: File that messages are written to.
    """
    return run(lambda: fetch_pretrained(depth, output), log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
