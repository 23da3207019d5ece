"""Training samples from videos and from the frame cache: milliseconds a sample on one core, and with several workers.

Goals, on one core: a sample of 16 frames from the cache takes at most 0.40 of the time that it takes from the video, one
of 4 frames at most 0.20. Each number is the median of several rounds, in which all variants take turns.
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median

import pandas as pd
import torch
from clips import FRAMES, make_clips
from results import write_section

from ffnrepro.data.decode import VideoReader
from ffnrepro.data.frame_cache import opener, shard_name, write_shard
from ffnrepro.files import write_json
from ffnrepro.recipe.clips import ClipDataset
from ffnrepro.training.loader import VideoBatches

WORK = Path(__file__).parent / "work/loader"
VARIANTS = {"TSM 16": (16,), "TSM 8": (8,), "TSM 4": (4,), "FFN 4+8+16": (4, 8, 16)}
GOALS = {"TSM 16": 0.40, "TSM 4": 0.20}


def main() -> int:
    """Measure, print a table, write it to RESULTS.md and compare with the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=48, help="videos of the data set (default 48)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (default 5)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers (default 1 2)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    make_clips(WORK / "videos", arguments.clips)
    table = pd.DataFrame(
        {"path": [f"{n}.webm" for n in range(arguments.clips)], "frames": FRAMES, "class": 0}
    )
    table["id"] = table["path"]
    file = WORK / "cache" / shard_name(0, 1)
    total = FRAMES * arguments.clips
    record = write_shard(file, table, folder=WORK / "videos", quality=90, frames_of_all=total)
    write_json(WORK / "records/part-0.json", {"shards": 1, **record})
    sources = {
        kind: opener(kind, quality=90, folder=file.parent, records=WORK / "records", paths=table["path"])
        for kind in ("none", "jpeg")
    }

    lines, missed = [], False
    for workers in [0, *arguments.workers]:
        for name, counts in VARIANTS.items():
            video, cache = (
                1000 * seconds / arguments.clips
                for seconds in measure(table, sources, counts, workers, arguments.rounds)
            )
            goal = GOALS.get(name) if workers == 0 else None
            missed |= goal is not None and cache / video > goal
            verdict = "" if goal is None else f"at most {goal:.2f}"
            where = f"{workers} worker{'s' * (workers > 1)}" if workers else "no worker, one core"
            lines.append(
                f"| {name} | {where} | {video:.1f} ms | {cache:.1f} ms | {cache / video:.2f} | {verdict} |"
            )
            print(lines[-1], flush=True)
    write_section(
        "loader.py",
        f"`python benchmarks/loader.py --clips {arguments.clips} --rounds {arguments.rounds} --workers "
        f"{' '.join(map(str, arguments.workers))}`: milliseconds for a training sample (decoding, crop, resizing), clips of "
        f"{FRAMES} frames of 427x240, quality 90 ({record['bytes'] / total / 1000:.0f} kB a frame).\n\n"
        "| sample | | from the video | from the cache | ratio | goal |\n|---|---|---|---|---|---|\n"
        + "\n".join(lines),
    )
    return int(missed)


def measure(
    table: pd.DataFrame,
    sources: dict[str, Callable[[Path], VideoReader]],
    counts: tuple[int, ...],
    workers: int,
    rounds: int,
) -> list[float]:
    """Median seconds of an epoch for each source."""
    loaders = {
        kind: VideoBatches(
            ClipDataset(
                manifest=table,
                videos=WORK / "videos",
                open_video=source,
                frame_counts=counts,
                crop="multi_scale",
            ),
            workers=workers,
        )
        for kind, source in sources.items()
    }
    seconds: dict[str, list[float]] = {kind: [] for kind in loaders}
    # The first round starts the workers.
    for epoch in range(rounds + 1):
        for kind, loader in loaders.items():
            keys = [(epoch, index) for index in range(len(table))]
            batches = [keys[first : first + 8] for first in range(0, len(keys), 8)]
            started = time.perf_counter()
            for _ in loader.batches(batches):
                pass
            seconds[kind].append(time.perf_counter() - started)
    for loader in loaders.values():
        with closing(loader):
            pass
    return [median(values[1:]) for values in seconds.values()]


if __name__ == "__main__":
    sys.exit(main())
