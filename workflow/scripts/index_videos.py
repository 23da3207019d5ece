"""Decode the videos of one shard and record what each holds."""

import argparse
import sys
from pathlib import Path

from ffnrepro.data.video_index import index_videos, list_videos, shard_of
from ffnrepro.files import replacing
from ffnrepro.logs import logger, run


def main() -> int:
    """Parse the arguments, examine the videos, write the index."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", required=True, type=Path, help="folder of the videos")
    parser.add_argument("--shard", required=True, type=int, help="number of the shard, from 0")
    parser.add_argument("--shards", required=True, type=int, help="number of shards")
    parser.add_argument("--layout", required=True, choices=["videos", "frames"])
    parser.add_argument("--verify", required=True, choices=["decode", "packets"])
    parser.add_argument(
        "--entries", required=True, type=Path, help="folder that keeps results for the next call"
    )
    parser.add_argument("--output", required=True, type=Path, help="output: one row for each video")
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()

    def work() -> None:
        names = shard_of(list_videos(arguments.videos, arguments.layout), arguments.shard, arguments.shards)
        entries = arguments.entries / f"{arguments.shard}-of-{arguments.shards}.jsonl"
        index = index_videos(arguments.videos, names, verify=arguments.verify, entries=entries)
        with replacing(arguments.output) as temporary:
            index.to_parquet(temporary, index=False)
        logger.info(
            "index: shard %d (0 to %d): %d videos, %d of them excluded",
            arguments.shard,
            arguments.shards - 1,
            len(index),
            int((index["status"] == "excluded").sum()),
        )

    return run(work, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
