"""Import the network of a run from a file."""

import sys
from pathlib import Path

import tyro

from ffnrepro.data.labels import read_classes
from ffnrepro.imports import import_network
from ffnrepro.logs import run as run_logged


def main(run: Path, seed: int, path: Path, classes: Path, data: Path, log: Path | None = None) -> int:
    """Import the network of a run from a file, instead of training it.

    Args:
        run: Folder of the run.
        seed: Seed whose folder the files go to.
        path: File of the network.
        classes: The file `classes.csv`.
        data: File with the digest of the manifest.
        log: File that messages are written to.
    """
    return run_logged(
        lambda: import_network(
            run,
            seed,
            path=path,
            classes=read_classes(classes),
            data=data.read_text(encoding="utf-8").strip(),
        ),
        log,
    )


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
