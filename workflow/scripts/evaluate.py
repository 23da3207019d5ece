"""Evaluate one trained network at one frame count: a row a video, and a summary.

What was evaluated before is written out again: it is kept by what decides it.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import pandas as pd
import torch

from ffnrepro.decides import evaluation_decides, key_of
from ffnrepro.evaluation import accuracy, predict
from ffnrepro.files import replacing, write_json
from ffnrepro.logs import logger, run
from ffnrepro.provenance import provenance
from ffnrepro.training.devices import choose_device, place
from ffnrepro.weights import load_checkpoint, tensors_digest


def main() -> int:
    """Parse the arguments, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", required=True, help="of the experiment")
    parser.add_argument("--seed", required=True, type=int, help="of its training")
    parser.add_argument("--model", required=True, type=Path, help="a checkpoint")
    parser.add_argument("--settings", required=True, type=json.loads, help="what decides the result, as JSON")
    parser.add_argument("--manifest", required=True, type=Path, help="folder of the manifest")
    parser.add_argument(
        "--videos", required=True, type=Path, help="folder that the manifest's paths start from"
    )
    parser.add_argument("--state", required=True, type=Path, help="folder that keeps what was evaluated")
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
    settings = arguments.settings
    model = load_checkpoint(arguments.model)
    digest = tensors_digest(model.state_dict())
    decides = evaluation_decides(Path(__file__), settings, manifest=arguments.manifest, model=digest)
    kept = arguments.state / key_of(decides)
    if (kept / "about.json").exists() and (kept / "predictions.parquet").exists():
        logger.info("%s at %d frames: was evaluated before", arguments.name, settings["frames"])
    else:
        started = time.perf_counter()
        device = choose_device(arguments.device)
        made_here = provenance(device)
        predictions = predict(
            place(model, device),
            pd.read_parquet(arguments.manifest / f"{settings['split']}.parquet"),
            videos=arguments.videos,
            frames=settings["frames"],
            short_side=settings["short_side"],
            crop_size=settings["crop_size"],
            batch_size=arguments.batch_size,
            workers=arguments.workers,
            device=device,
        )
        with replacing(kept / "predictions.parquet") as temporary:
            predictions.to_parquet(temporary, index=False)
        summary = {
            "videos": len(predictions),
            **accuracy(predictions),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            **decides,
            "wall_seconds": time.perf_counter() - started,
            **made_here,
        }
        write_json(
            kept / "about.json", {"experiment": arguments.name, "seed": arguments.seed, "summary": summary}
        )

    summary = json.loads((kept / "about.json").read_text(encoding="utf-8"))["summary"]
    with replacing(arguments.predictions) as temporary:
        shutil.copyfile(kept / "predictions.parquet", temporary)
    write_json(
        arguments.summary,
        {"experiment": arguments.name, "seed": arguments.seed, "state": kept.name, **summary},
    )
    logger.info(
        "%s at %d frames: top-1 %.2f, top-5 %.2f, %d videos",
        arguments.name,
        settings["frames"],
        summary["top1"],
        summary["top5"],
        summary["videos"],
    )


if __name__ == "__main__":
    sys.exit(main())
