"""Evaluate the network of a run, at one frame count or at any: predictions of each video, and a record in the same folder."""

import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
import tyro

from ffnrepro.checks import check_disk, check_folder_of_videos, check_shared_memory, run_checks
from ffnrepro.cost import gflops, record_speeds
from ffnrepro.data.decode import find_decord
from ffnrepro.data.frame_cache import opener
from ffnrepro.errors import UserError
from ffnrepro.evaluation import (
    accuracy,
    predict,
    read_labelled_split,
    training_time,
    write_best_classes,
    write_predictions,
)
from ffnrepro.files import write_json
from ffnrepro.logs import logger
from ffnrepro.logs import run as run_logged
from ffnrepro.provenance import provenance
from ffnrepro.recipe.clips import ClipDataset, evaluation_batches
from ffnrepro.runs import check_key, evaluation_inputs, read_run
from ffnrepro.training.devices import choose_device, place
from ffnrepro.training.loader import UnreadableVideo, VideoBatches
from ffnrepro.weights import load_checkpoint, tensors_digest


def main(
    run: Path,
    seed: int,
    split: Literal["train", "validation", "test"],
    frames: tuple[int, ...],
    videos: Path,
    manifest: Path = Path("results/manifest"),
    cache_folder: Path = Path("cache"),
    cache_records: Path = Path("results/frame_cache"),
    batch_size: int = 32,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    threads: int = 1,
    workers: int = 0,
    any_frame: bool = False,
    log: Path | None = None,
) -> int:
    """Evaluate the network of a run; the files go into the folder of the seed.

    Args:
        run: Folder of the run.
        seed: Seed of the training.
        split: Split that is evaluated.
        frames: Frame count of the clips; with `any_frame` a list, and each video is decoded once for all of it.
        videos: Folder of the videos; the paths in the manifest are relative to it.
        manifest: Folder of the manifest.
        cache_folder: Folder of the frame cache.
        cache_records: Folder of the records of the frame cache.
        batch_size: Clips per step; it changes results by rounding only.
        device: Device of the network.
        threads: Number of CPU cores that compute.
        workers: Number of processes that decode.
        any_frame: Write `{split}_any_frame`, with the best class at each frame count, instead of `{split}_8f`.
        log: File that messages are written to.
    """

    def work() -> None:
        torch.set_num_threads(threads)
        started = time.perf_counter()
        settings, _ = read_run(run)
        # Otherwise, edited code of the model could score a network without the record saying so.
        check_key(run, settings)
        inputs = evaluation_inputs(
            split=split,
            short_side=settings.short_side,
            crop_size=settings.crop_size,
            manifest_digest=manifest / "manifest.sha256",
        )
        folder = run / f"seed{seed}"
        rows = read_labelled_split(manifest / f"{split}.parquet")
        chosen_device = choose_device(device)
        # A batch holds the clips of all frame counts: with 2 to 20 frames, 13 times as many frames as at 16 alone.
        videos_of_batch = max(1, batch_size // 4) if any_frame else batch_size
        run_checks(
            "this evaluation",
            {
                "videos": partial(check_folder_of_videos, videos),
                # The log-probabilities of a thousand classes, in two bytes each.
                "disk": partial(check_disk, folder, 2000 * len(rows)),
                "shared memory": partial(
                    check_shared_memory,
                    frames=videos_of_batch * sum(frames),
                    size=settings.crop_size,
                    workers=workers,
                ),
            },
        )
        try:
            network = load_checkpoint(folder / "model.pt")
        except UserError as error:
            raise UserError(
                f"{folder / 'model.pt'} is damaged; delete it and run snakemake again: it is imported again, or written by the "
                "training, in seconds if its state is still in state/"
            ) from error
        digest = tensors_digest(network.state_dict())
        # Each frame of a clip costs the same, so one count is enough for all frame counts.
        of_frame = gflops(network, frames=1, size=settings.crop_size)
        cost = {count: round(count * of_frame, 6) for count in frames}
        speeds = record_speeds(network)
        # Read this before the work, because the checkout may change during it.
        made_with = provenance(chosen_device)
        # Here, so that a broken decord gives a single warning, and not one in each worker.
        find_decord()
        dataset = ClipDataset(
            manifest=rows,
            videos=videos,
            frame_counts=frames,
            size=settings.crop_size,
            short_side=settings.short_side,
            crop="centre",
            open_video=opener(
                settings.cache,
                quality=settings.jpeg_quality,
                folder=cache_folder / split,
                records=cache_records / split,
                paths=rows["path"],
            ),
        )
        loader = VideoBatches(dataset, workers=workers, pin_memory=chosen_device.type == "cuda")
        with closing(loader):
            try:
                predictions = predict(
                    place(network, chosen_device),
                    loader.batches(evaluation_batches(len(rows), batch_size=videos_of_batch)),
                    ids=rows["id"].tolist(),
                    frame_counts=frames,
                    device=chosen_device,
                )
            except UnreadableVideo as error:
                raise UserError(f"{error} ({training_time(folder)})") from error
            except torch.OutOfMemoryError as error:
                raise UserError(
                    f"{run.name}: {videos_of_batch} videos at a time do not fit into the memory of the GPU; lower "
                    f"evaluation.batch_size, now {batch_size}"
                ) from error
        scores = {count: accuracy(of_count) for count, of_count in predictions.items()}
        results: dict[str, Any]
        if any_frame:
            name = f"{split}_any_frame"
            write_best_classes(predictions, folder / f"{name}.parquet")
            results = {
                key: {count: score[key] for count, score in scores.items()} for key in ("top1", "top5")
            }
            results["gflops"] = cost
        else:
            name = f"{split}_{frames[0]}f"
            write_predictions(predictions[frames[0]], folder / f"{name}.parquet")
            results = {
                **scores[frames[0]],
                "gflops": cost[frames[0]],
                "clips_per_second": median(speeds),
            }
        record = {
            "run": run.name,
            "experiment": run.name.rpartition("-")[0],
            "seed": seed,
            "frames": list(frames) if any_frame else frames[0],
            **inputs,
            "model": digest,
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "videos": len(rows),
            **results,
            "wall_seconds": time.perf_counter() - started,
            **made_with,
        }
        write_json(folder / f"{name}.json", record)
        for count, score in scores.items():
            logger.info(
                "%s, seed %d, %d frames: top-1 %.2f, top-5 %.2f, %d videos",
                run.name, seed, count, score["top1"], score["top5"], len(rows),
            )  # fmt: skip

    return run_logged(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
