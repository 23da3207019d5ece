"""Write the frames of a split's videos that belong to one shard into the frame cache."""

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
    manifest: Path,
    shard: int,
    shards: int,
    quality: int,
    cache_folder: Path,
    output: Path,
    log: Path | None = None,
) -> int:
    """Decode the videos of one shard of a split and write their frames into the frame cache.

    Args:
        videos: Folder of the videos.
        manifest: File of the split in the manifest.
        shard: Number of the shard, from 0.
        shards: Number of shards.
        quality: Quality of the JPEGs.
        cache_folder: Folder of the split in the frame cache.
        output: Record of the shard to write.
        log: File that messages are written to.
    """

    def work() -> None:
        # A training needs both splits, so both must fit on the disk.
        together = ("train", "validation") if manifest.stem == "train" else (manifest.stem,)
        splits = {name: _used_videos(manifest.with_stem(name)) for name in together}
        rows = splits[manifest.stem]
        record = write_shard(
            cache_folder / shard_name(shard, shards),
            rows[rows["path"].isin(shard_of(rows["path"], shard, shards))],
            folder=videos,
            quality=quality,
            frames_of_all=sum(int(split["frames"].sum()) for split in splits.values()),
            folders=[cache_folder.with_name(name) for name in splits],
        )
        write_json(output, {"shards": shards, **record})
        logger.info(
            "frame cache: %s: shard %d (0 to %d): %d videos, %.2f GB",
            manifest.stem, shard, shards - 1, record["videos"], record["bytes"] / 1e9,
        )  # fmt: skip

    return run(work, log)


def _used_videos(manifest: Path) -> pd.DataFrame:
    """The videos of a split that are used for training or scoring: those that have a class."""
    rows = pd.read_parquet(manifest, columns=["path", "frames", "class"])
    return rows[rows["class"].notna()]


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
