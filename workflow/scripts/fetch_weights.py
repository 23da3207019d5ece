"""Fetch torchvision's ImageNet weights of a ResNet and check them."""

import argparse
import sys
from pathlib import Path

from ffnrepro.logs import run
from ffnrepro.weights import fetch_pretrained


def main() -> int:
    """Parse the arguments and fetch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", required=True, type=int, help="of the ResNet")
    parser.add_argument("--output", required=True, type=Path, help="written")
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()
    return run(lambda: fetch_pretrained(arguments.depth, arguments.output), arguments.log)


if __name__ == "__main__":
    sys.exit(main())
