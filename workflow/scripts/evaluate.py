"""Evaluate the network of a run at one frame count: predictions of each video, and a record beside them."""

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Literal

import torch
import tyro

from ffnrepro.data.frame_cache import opener
from ffnrepro.evaluation import accuracy, predict, read_labelled_split, write_predictions
from ffnrepro.files import write_json
from ffnrepro.logs import logger
from ffnrepro.logs import run as run_logged
from ffnrepro.provenance import provenance
from ffnrepro.recipe.clips import ClipDataset, evaluation_batches
from ffnrepro.runs import check_key, read_run, scoring_code
from ffnrepro.tables import evaluation_inputs
from ffnrepro.training.devices import choose_device, place
from ffnrepro.training.loader import VideoBatches
from ffnrepro.weights import load_checkpoint, tensors_digest


def main(
    run: Path,
    seed: int,
    split: Literal["train", "validation", "test"],
    frames: int,
    videos: Path,
    manifest: Path = Path("results/manifest"),
    cache_folder: Path = Path("cache"),
    cache_records: Path = Path("results/frame_cache"),
    batch_size: int = 32,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int = 1,
    workers: int = 0,
    log: Path | None = None,
) -> int:
    """Evaluate the network of a run at one frame count; the files go into the folder of the seed.

    Args:
        run: Folder of the run.
        seed: Seed of the training.
        split: Split that is evaluated.
        frames: Frame count of the clips.
        videos: Folder of the videos; the paths in the manifest are relative to it.
        manifest: Folder of the manifest.
        cache_folder: Folder of the frame cache.
        cache_records: Folder of the records of the frame cache.
        batch_size: Clips per step; it changes results by rounding only.
        device: Device of the network.
        threads: Number of CPU cores that compute.
        workers: Number of processes that decode.
        log: File that messages are written to.
    """

    def work() -> None:
        torch.set_num_threads(threads)
        started = time.perf_counter()
        settings, _ = read_run(run)
        # Else a network could be scored by edited code of its model, and the record would not say so.
        check_key(run, settings)
        inputs = evaluation_inputs(
            split=split,
            short_side=settings.short_side,
            crop_size=settings.crop_size,
            manifest_digest=manifest / "manifest.sha256",
            code=scoring_code(),
        )
        folder = run / f"seed{seed}"
        network = load_checkpoint(folder / "model.pt")
        digest = tensors_digest(network.state_dict())
        chosen_device = choose_device(device)
        # Read this before the work, because the checkout may change during it.
        made_with = provenance(chosen_device)
        rows = read_labelled_split(manifest / f"{split}.parquet")
        dataset = ClipDataset(
            manifest=rows,
            videos=videos,
            frame_counts=(frames,),
            size=settings.crop_size,
            short_side=settings.short_side,
            crop="centre",
            open_video=opener(
                settings.cache,
                quality=settings.jpeg_quality,
                folder=cache_folder,
                records=cache_records,
                paths=rows["path"],
            ),
        )
        loader = VideoBatches(dataset, workers=workers, pin_memory=chosen_device.type == "cuda")
        with closing(loader):
            predictions = predict(
                place(network, chosen_device),
                loader.batches(evaluation_batches(len(rows), batch_size=batch_size)),
                ids=rows["id"].tolist(),
                frames=frames,
                device=chosen_device,
            )
        write_predictions(predictions, folder / f"{split}_{frames}f.parquet")
        scores = accuracy(predictions)
        record = {
            "run": run.name,
            "experiment": run.name.rpartition("-")[0],
            "seed": seed,
            "frames": frames,
            **inputs,
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
            run.name, seed, frames, scores["top1"], scores["top5"], len(predictions),
        )  # fmt: skip

    return run_logged(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
