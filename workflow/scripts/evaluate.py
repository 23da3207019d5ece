"""Evaluate the network of a run at one frame count: predictions of each video, and a record beside them."""

import argparse
import sys
import time
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import torch

from ffnrepro.data.decode import open_video
from ffnrepro.evaluation import accuracy, predict, read_labelled_split, write_predictions
from ffnrepro.files import write_json
from ffnrepro.logs import logger, run
from ffnrepro.provenance import provenance
from ffnrepro.recipe.clips import ClipDataset, evaluation_batches
from ffnrepro.runs import read_run, scoring_code
from ffnrepro.tables import EvaluationInputs
from ffnrepro.training.devices import choose_device, place
from ffnrepro.training.loader import VideoBatches
from ffnrepro.weights import load_checkpoint, tensors_digest


def main() -> int:
    """Parse the arguments and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--run", required=True, type=Path, dest="run_folder", help="folder of the run; the files go there"
    )
    parser.add_argument("--seed", required=True, type=int, help="of the training")
    parser.add_argument("--split", required=True, help="that is evaluated")
    parser.add_argument("--frames", required=True, type=int, help="frame count of the clips")
    parser.add_argument("--manifest", type=Path, default=Path("results/manifest"), help="its folder")
    parser.add_argument(
        "--videos", required=True, type=Path, help="folder that the manifest's paths start from"
    )
    parser.add_argument("--batch-size", required=True, type=int, help="changes no prediction")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"])
    parser.add_argument("--threads", type=int, default=1, help="CPU cores of the computation")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode")
    parser.add_argument("--log", type=Path)
    options = vars(parser.parse_args())
    log = options.pop("log")
    return run(lambda: evaluate(**options), log)


def evaluate(
    *,
    run_folder: Path,
    seed: int,
    split: str,
    frames: int,
    manifest: Path,
    videos: Path,
    batch_size: int,
    device: str,
    threads: int,
    workers: int,
) -> None:
    """Evaluate, and write `{split}_{frames}f.parquet` and `.json` into the folder of the seed."""
    torch.set_num_threads(threads)
    started = time.perf_counter()
    settings, _ = read_run(run_folder)
    inputs = EvaluationInputs(
        split=split,
        short_side=settings.short_side,
        crop_size=settings.crop_size,
        data=(manifest / "manifest.sha256").read_text(encoding="utf-8").strip(),
        code=scoring_code(),
    )
    folder = run_folder / f"seed{seed}"
    network = load_checkpoint(folder / "model.pt")
    digest = tensors_digest(network.state_dict())
    computes = choose_device(device)
    # Before the work: the checkout may change meanwhile.
    made_with = provenance(computes)
    rows = read_labelled_split(manifest / f"{split}.parquet")
    dataset = ClipDataset(
        manifest=rows,
        videos=videos,
        frame_counts=(frames,),
        size=inputs.crop_size,
        short_side=inputs.short_side,
        crop="centre",
        open_video=open_video,
    )
    loader = VideoBatches(dataset, workers=workers, pin_memory=computes.type == "cuda")
    with closing(loader):
        predictions = predict(
            place(network, computes),
            loader.batches(evaluation_batches(len(rows), batch_size=batch_size)),
            ids=rows["id"].tolist(),
            frames=frames,
            device=computes,
        )
    write_predictions(predictions, folder / f"{split}_{frames}f.parquet")
    scores = accuracy(predictions)
    record = {
        "run": run_folder.name,
        "experiment": run_folder.name.rpartition("-")[0],
        "seed": seed,
        "frames": frames,
        **asdict(inputs),
        "model": digest,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "videos": len(predictions),
        **scores,
        "wall_seconds": time.perf_counter() - started,
        **made_with,
    }
    write_json(folder / f"{split}_{frames}f.json", record)
    logger.info(
        "%s, seed %d, %d frames: top-1 %.2f, top-5 %.2f, %d videos",
        run_folder.name, seed, frames, scores["top1"], scores["top5"], len(predictions),
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
