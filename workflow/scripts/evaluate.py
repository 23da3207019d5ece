"""Evaluate one trained network at one frame count: a row a video, and a summary."""

import argparse
import sys
from pathlib import Path

import pandas as pd
import torch

from ffnrepro.devices import choose_device, place
from ffnrepro.evaluation import accuracy, predict
from ffnrepro.files import replacing, write_json
from ffnrepro.logs import logger, run
from ffnrepro.models.weights import load_checkpoint, tensors_digest
from ffnrepro.provenance import provenance


def main() -> int:
    """Parse the arguments, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="of the experiment")
    parser.add_argument("--model", required=True, type=Path, help="a checkpoint")
    parser.add_argument("--frames", required=True, type=int, help="frame count of the clips")
    parser.add_argument("--manifest", required=True, type=Path, help="folder of the manifest")
    parser.add_argument("--split", required=True)
    parser.add_argument(
        "--videos", required=True, type=Path, help="folder that the manifest's paths start from"
    )
    parser.add_argument("--short-side", required=True, type=int)
    parser.add_argument("--crop-size", required=True, type=int)
    parser.add_argument("--batch-size", required=True, type=int)
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--predictions", required=True, type=Path, help="written: a row a video")
    parser.add_argument("--summary", required=True, type=Path, help="written: accuracy and provenance")
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()
    return run(lambda: work(arguments), arguments.log)


def work(arguments: argparse.Namespace) -> None:
    """Evaluate and write."""
    torch.set_num_threads(arguments.threads)
    device = choose_device(arguments.device)
    model = place(load_checkpoint(arguments.model), device)
    predictions = predict(
        model,
        pd.read_parquet(arguments.manifest / f"{arguments.split}.parquet"),
        videos=arguments.videos,
        frames=arguments.frames,
        short_side=arguments.short_side,
        crop_size=arguments.crop_size,
        batch_size=arguments.batch_size,
        workers=arguments.workers,
        device=device,
    )
    with replacing(arguments.predictions) as temporary:
        predictions.to_parquet(temporary, index=False)
    scores = accuracy(predictions)
    write_json(
        arguments.summary,
        {
            "experiment": arguments.name,
            "frames": arguments.frames,
            "split": arguments.split,
            "videos": len(predictions),
            **scores,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "model": tensors_digest(model.state_dict()),
            "data": (arguments.manifest / "manifest.sha256").read_text().strip(),
            "short_side": arguments.short_side,
            "crop_size": arguments.crop_size,
            **provenance(device),
        },
    )
    logger.info(
        "%s at %d frames: top-1 %.2f, top-5 %.2f, %d videos",
        arguments.name,
        arguments.frames,
        scores["top1"],
        scores["top5"],
        len(predictions),
    )


if __name__ == "__main__":
    sys.exit(main())
