"""Bring the ImageNet weights of a ResNet, check them, and note their digest."""

import argparse
import shutil
import sys
from pathlib import Path

from ffnrepro.decides import data_decides, write_decides
from ffnrepro.files import file_digest, replacing, write_text
from ffnrepro.logs import run
from ffnrepro.weights import PRETRAINED, check_pretrained, fetch_pretrained


def main() -> int:
    """Parse the arguments and fetch."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", required=True, type=int, help="of the ResNet")
    parser.add_argument("--source", default="", help="a file of your own in place of torchvision's download")
    parser.add_argument("--sha256", default="", help="digest of that file, or its beginning")
    parser.add_argument("--output", required=True, type=Path, help="written")
    parser.add_argument("--digest", required=True, type=Path, help="written: sha256 of the output")
    parser.add_argument("--made", required=True, type=Path, help="written: what decided it")
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()
    return run(lambda: work(arguments), arguments.log)


def work(arguments: argparse.Namespace) -> None:
    """Copy the user's file, or download torchvision's."""
    decides = data_decides(Path(__file__), source=arguments.source, sha256=arguments.sha256)
    if arguments.source:
        source = Path(arguments.source)
        check_pretrained(source, arguments.sha256 or PRETRAINED[arguments.depth].sha256_prefix)
        with replacing(arguments.output) as temporary:
            shutil.copyfile(source, temporary)
    else:
        fetch_pretrained(arguments.depth, arguments.output)
    write_text(arguments.digest, file_digest(arguments.output) + "\n")
    write_decides(arguments.made, decides)


if __name__ == "__main__":
    sys.exit(main())
