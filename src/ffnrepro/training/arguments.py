"""The command line that the scripts of the training rules share."""

import argparse
from pathlib import Path

from ffnrepro.config import RuntimeSettings
from ffnrepro.training.job import Job


def training_parser(description: str | None) -> argparse.ArgumentParser:
    """The parser of a script that trains, or checks whether a training would run."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--run", required=True, type=Path, help="folder of the run, with its settings.json")
    parser.add_argument(
        "--start", type=Path, help="pretrained weights or a trained network; without it weights are random"
    )
    parser.add_argument("--classes", type=Path, default=Path("results/labels/classes.csv"))
    parser.add_argument("--manifest", type=Path, default=Path("results/manifest"), help="its folder")
    parser.add_argument(
        "--videos", required=True, type=Path, help="folder that the manifest's paths start from"
    )
    parser.add_argument("--state", type=Path, default=Path("state"), help="folder of resumable states")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--threads", type=int, default=1, help="CPU cores of the computation")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode")
    parser.add_argument(
        "--max-bad-fraction", type=float, default=0.01, help="of an epoch, that may be unreadable"
    )
    parser.add_argument("--cache-decoded", action="store_true", help="keep decoded clips in memory")
    parser.add_argument("--save-minutes", type=float, default=10.0, help="between two saves within an epoch")
    parser.add_argument("--time-budget", type=float, help="minutes after which to save and stop, unfinished")
    parser.add_argument("--log", type=Path)
    return parser


def job_of(arguments: argparse.Namespace, seed: int) -> Job:
    """The job that a command line of `training_parser` describes."""
    return Job(
        run=arguments.run,
        seed=seed,
        classes=arguments.classes,
        manifest=arguments.manifest,
        videos=arguments.videos,
        start=arguments.start,
        state=arguments.state,
        runtime=RuntimeSettings(
            device=arguments.device,
            threads=arguments.threads,
            workers=arguments.workers,
            cache_decoded=arguments.cache_decoded,
            save_minutes=arguments.save_minutes,
            time_budget=arguments.time_budget,
        ),
        max_bad_fraction=arguments.max_bad_fraction,
    )
