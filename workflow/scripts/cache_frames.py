"""Write the frames of one shard's videos into the frame cache."""

import sys
from pathlib import Path

import pandas as pd
import tyro

from ffnrepro.data.frame_cache import shard_name, write_shard
from ffnrepro.data.video_index import shard_of
from ffnrepro.files import write_json
from ffnrepro.logs import logger, run


def main(
    videos: Path,
    splits: list[Path],
    shard: int,
    shards: int,
    quality: int,
    cache_folder: Path,
    output: Path,
    log: Path | None = None,
) -> int:
    """Decode the videos of one shard and write their frames into the frame cache.

    Args:
        videos: Folder of the videos.
        splits: Files of the manifest whose videos are cached.
        shard: Number of the shard, from 0.
        shards: Number of shards.
        quality: Quality of the JPEGs.
        cache_folder: Folder of the frame cache.
        output: Record of the shard to write.
        log: File that messages are written to.
    """

    def work() -> None:
        rows = pd.concat([pd.read_parquet(split, columns=["path", "frames", "class"]) for split in splits])
        # A video without a class is neither trained nor scored.
        rows = rows[rows["class"].notna()]
        record = write_shard(
            cache_folder / shard_name(shard, shards),
            rows[rows["path"].isin(shard_of(rows["path"], shard, shards))],
            folder=videos,
            quality=quality,
            frames_of_all=int(rows["frames"].sum()),
        )
        write_json(output, {"shards": shards, **record})
        logger.info(
            "frame cache: shard %d (0 to %d): %d videos, %.2f GB",
            shard, shards - 1, record["videos"], record["bytes"] / 1e9,
        )  # fmt: skip

    return run(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
