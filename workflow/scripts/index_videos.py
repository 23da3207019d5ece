"""Decode one shard of the videos and note what each holds."""

import argparse
import sys
from pathlib import Path

from ffnrepro.data.video_index import index_videos, list_videos, shard_of, watch_digest
from ffnrepro.decides import data_decides, write_decides
from ffnrepro.files import replacing
from ffnrepro.logs import logger, run


def main() -> int:
    """Parse the arguments, index, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--videos", required=True, type=Path, help="folder of the videos")
    parser.add_argument("--shard", required=True, type=int, help="counted from 0")
    parser.add_argument("--shards", required=True, type=int, help="in all")
    parser.add_argument("--layout", default="videos", choices=["videos", "frames"])
    parser.add_argument("--verify", default="decode", choices=["decode", "packets"])
    parser.add_argument("--watch", default="names", choices=["names", "stat", "none"])
    parser.add_argument("--entries", type=Path, help="folder that keeps what was found, for the next call")
    parser.add_argument("--output", required=True, type=Path, help="written: a row a video")
    parser.add_argument("--made", required=True, type=Path, help="written: what decided it")
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()

    def work() -> None:
        names = shard_of(list_videos(arguments.videos, arguments.layout), arguments.shard, arguments.shards)
        decides = data_decides(
            Path(__file__),
            videos=str(arguments.videos),
            names=watch_digest(arguments.videos, names, arguments.watch),
            shards=arguments.shards,
            layout=arguments.layout,
            verify=arguments.verify,
        )
        kept = f"{arguments.shard}-of-{arguments.shards}.jsonl"
        index = index_videos(
            arguments.videos,
            names,
            verify=arguments.verify,
            entries=None if arguments.entries is None else arguments.entries / kept,
        )
        with replacing(arguments.output) as temporary:
            index.to_parquet(temporary, index=False)
        write_decides(arguments.made, decides)
        usable = int((index["status"] == "ok").sum())
        logger.info(
            "index: shard %d of %d (counted from 0), %d videos, %d of them excluded",
            arguments.shard,
            arguments.shards,
            len(index),
            len(index) - usable,
        )

    return run(work, arguments.log)


if __name__ == "__main__":
    sys.exit(main())
