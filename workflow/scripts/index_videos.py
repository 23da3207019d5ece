"""Decode the videos of one shard and record their frames, size and condition."""

import sys
from pathlib import Path

import tyro

from ffnrepro.data.decode import Verify
from ffnrepro.data.video_index import Layout, index_videos, list_videos, shard_of
from ffnrepro.files import replacing
from ffnrepro.logs import logger, run


def main(
    videos: Path,
    shard: int,
    shards: int,
    layout: Layout,
    verify: Verify,
    entries: Path,
    output: Path,
    log: Path | None = None,
) -> int:
    """Examine the videos of one shard and record their frames, size and condition.

    Args:
        videos: Folder of the videos.
        shard: Number of the shard, from 0.
        shards: Number of shards.
        layout: One file for each video, or one folder of frames.
        verify: How much of each video is decoded.
        entries: Folder that saves results for the next call.
        output: File to write, with one row for each video.
        log: File that messages are written to.
    """

    def work() -> None:
        names = shard_of(list_videos(videos, layout), shard, shards)
        kept = entries / f"{shard}-of-{shards}.jsonl"
        index = index_videos(videos, names, verify=verify, entries=kept)
        with replacing(output) as temporary:
            index.to_parquet(temporary, index=False)
        logger.info(
            "index: shard %d (0 to %d): %d videos, %d of them excluded",
            shard,
            shards - 1,
            len(index),
            int((index["status"] == "excluded").sum()),
        )

    return run(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
