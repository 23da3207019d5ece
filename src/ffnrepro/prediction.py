"""Predicts the most likely classes of any videos with a trained network, at one or several frame counts.

Frames, crop and network are the same as in an evaluation. The videos need not be in a manifest: their frames are counted here
as in the index.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tabulate import tabulate
from torch import Tensor

from ffnrepro.checkpoint_formats import PAPER_SIZES, read_checkpoint
from ffnrepro.cost import gflops
from ffnrepro.data.decode import DecodeError, open_video
from ffnrepro.data.isolation import Refusal, examine_in_child
from ffnrepro.data.labels import read_classes
from ffnrepro.data.video_index import printable
from ffnrepro.errors import UserError
from ffnrepro.logs import logger
from ffnrepro.recipe.clips import ClipDataset, collate_clips
from ffnrepro.recipe.scoring import best_classes, clip_logits
from ffnrepro.runs import read_run
from ffnrepro.settings import MAX_FRAMES
from ffnrepro.training.devices import move, place
from ffnrepro.weights import Network, build_network, settings_beside

# --- Network, frame counts and classes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictor:
    """A network with its class names and the size of its clips.

    Attributes:
        network: the network, on the CPU.
        train_frames: frame counts that it was trained at; empty if its file does not say.
        class_names: names of its classes; None if its file has none.
        short_side: short side of the resized frames in pixels.
        crop_size: height and width of the clips in pixels.
    """

    network: Network
    train_frames: tuple[int, ...]
    class_names: tuple[str, ...] | None
    short_side: int
    crop_size: int

    def resized(self, short_side: int | None, crop_size: int | None) -> "Predictor":
        """A copy for clips of another size; None keeps a value.

        Raises:
            UserError: the crop does not fit into the frames.
        """
        new = replace(
            self,
            short_side=self.short_side if short_side is None else short_side,
            crop_size=self.crop_size if crop_size is None else crop_size,
        )
        if not 1 <= new.crop_size <= new.short_side:
            raise UserError(
                f"a crop of {new.crop_size} pixels does not fit into a short side of {new.short_side}; give other values of "
                "--short-side and --crop-size"
            )
        return new


def predictor_of_run(run: Path, seed: int) -> Predictor:
    """The network of a run.

    Raises:
        UserError: its settings or its network cannot be read, or there is none for this seed.
    """
    path = run / f"seed{seed}/model.pt"
    if not path.exists():
        others = sorted(other.parent.name for other in run.glob("seed*/model.pt"))
        raise UserError(
            f"{path}: no such file; {run.name} has a network for {', '.join(others) or 'no seed'}; run snakemake, or change --seed"
        )
    settings, _ = read_run(run)
    predictor = predictor_of_file(path)
    # Files of earlier versions do not contain them for a TSM. For an imported network, only the file may.
    train_frames = predictor.train_frames or settings.method.train_frames
    return replace(
        predictor, train_frames=train_frames, short_side=settings.short_side, crop_size=settings.crop_size
    )


def predictor_of_file(path: Path) -> Predictor:
    """The network of any file that `load_checkpoint` reads.

    Clips have the size that the file says, or else the `run.json` next to a file of an earlier version, or else that of the paper.

    Raises:
        UserError: it cannot be read.
    """
    checkpoint = read_checkpoint(path)
    network = build_network(path, checkpoint)
    beside = {"short_side": PAPER_SIZES[0], "crop_size": PAPER_SIZES[1], **settings_beside(path)}
    short_side, crop_size = checkpoint.sizes or (beside["short_side"], beside["crop_size"])
    return Predictor(network, checkpoint.train_frames, checkpoint.class_names, short_side, crop_size)


def read_frame_counts(text: str) -> tuple[int, ...]:
    """Read frame counts such as `8` or `4,8,16`.

    Raises:
        UserError: the text is something else.
    """
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = ()
    if not counts or min(counts) < 1 or max(counts) > MAX_FRAMES:
        raise UserError(
            f"--frames {text}: give whole numbers from 1 to {MAX_FRAMES} with commas between them, such as 8 or 4,8,16"
        )
    return tuple(sorted(set(counts)))


def within_budget(predictor: Predictor, frame_counts: Sequence[int], budget: float) -> int:
    """The largest frame count whose clip takes no more than a number of GFLOPs.

    Args:
        predictor: the network and the size of its clips.
        frame_counts: the frame counts to choose from.
        budget: GFLOPs of a clip, as the paper counts them: 10^9 multiply-adds.

    Raises:
        UserError: none is small enough.
    """
    # Each frame of a clip costs the same.
    of_frame = gflops(predictor.network, frames=1, size=predictor.crop_size)
    costs = {frames: frames * of_frame for frames in frame_counts}
    listed = ", ".join(f"{cost:.4g} at {frames} frames" for frames, cost in costs.items())
    fitting = [frames for frames, cost in costs.items() if cost <= budget]
    if not fitting:
        raise UserError(
            f"--budget {budget:g}: every frame count takes more GFLOPs ({listed}); give a larger budget"
        )
    logger.info("%d frames: GFLOPs per video are %s", max(fitting), listed)
    return max(fitting)


def names_of_classes(predictor: Predictor, labels: Path | None, default: Path | None = None) -> list[str]:
    """The names of a network's classes, in the order of its logits.

    Args:
        predictor: the network.
        labels: file of names given by the user: `classes.csv` of the workflow, or a text file with a name in each
            line (`labels.txt` of an export).
        default: file that is read if there are no `labels` and the network's own file has no names.

    Returns:
        The names; the numbers of the classes, from 0, if they have no names.

    Raises:
        UserError: the file cannot be read, or holds another number of names.
    """
    classes = predictor.network.architecture["classes"]
    path = labels or (None if predictor.class_names else default)
    if path is None:
        return list(predictor.class_names or map(str, range(classes)))
    try:
        names = (
            read_classes(path)
            if path.suffix == ".csv"
            else path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        )
    except KeyError:
        raise UserError(
            f"{path}: has no column `class`; give the workflow's results/labels/classes.csv"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: the names of the classes cannot be read ({error}); give a classes.csv, or a text file with a name in each line, "
            "as --labels"
        ) from error
    if len(names) != classes:
        raise UserError(
            f"{path}: has {len(names)} classes, but the network has {classes}; give the class list of its training as --labels"
        )
    return names


# --- Prediction -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """The prediction of a network for a video.

    Attributes:
        video: the file, or the folder of frames.
        probabilities: class probabilities (classes,), float64, by frame count; empty if the video cannot be read.
        error: why the video cannot be read; empty if it can.
    """

    video: Path
    probabilities: Mapping[int, Tensor] = field(default_factory=dict)
    error: str = ""


def predict_videos(
    predictor: Predictor, videos: Iterable[Path], frame_counts: Sequence[int]
) -> Iterator[Prediction]:
    """Predict the classes of videos, on the GPU if there is one.

    Args:
        predictor: the network, which is moved to the device, and the size of its clips.
        videos: video files, or folders of frames.
        frame_counts: frame counts T of the clips, which are made from one decoding.

    Yields:
        The prediction of each video, in the given order.
    """
    device = torch.device("cpu")
    if torch.accelerator.is_available():
        device = torch.accelerator.current_accelerator() or device
    network = place(predictor.network, device)
    for video, outcome in examine_in_child(videos):
        if isinstance(outcome, Refusal):
            yield Prediction(video, error=_error(*outcome))
            continue
        dataset = ClipDataset(
            # The class is unknown and not used.
            manifest=pd.DataFrame({"path": [str(video)], "frames": [outcome[1]], "class": [0]}),
            videos=Path(),
            open_video=open_video,
            frame_counts=frame_counts,
            size=predictor.crop_size,
            short_side=predictor.short_side,
            crop="centre",
        )
        try:
            clips, _ = collate_clips([dataset[0]])
        except DecodeError as error:
            yield Prediction(video, error=_error(error.reason, error.detail))
            continue
        logits = clip_logits(network, {frames: move(clip, device) for frames, clip in clips.items()})
        yield Prediction(video, {n: torch.softmax(of_n[0].cpu().double(), 0) for n, of_n in logits.items()})


def _error(reason: str, detail: str) -> str:
    return f"{reason} ({detail})" if detail else reason


# --- Output ----------------------------------------------------------------------------------------------------------


def rows_of(predictions: Iterable[Prediction], names: Sequence[str]) -> list[dict[str, Any]]:
    """The five most likely classes at each frame count as rows, for JSON and CSV.

    Args:
        predictions: from `predict_videos`.
        names: names of the classes.

    Returns:
        `video`, `frames`, `rank` (1: the most likely), `class`, `index` (of the class, from 0), `probability` and `error`.
        A video that cannot be read has one row, with only `video` and `error`.
    """
    rows: list[dict[str, Any]] = []
    for prediction in predictions:
        empty = dict.fromkeys(("frames", "rank", "class", "index", "probability"))
        start = {"video": printable(str(prediction.video)), **empty, "error": prediction.error}
        if prediction.error:
            rows.append(start)
        for frames, probabilities in prediction.probabilities.items():
            for rank, index in enumerate(best_classes(probabilities[None])[0].tolist(), start=1):
                probability = round(float(probabilities[index]), 6)
                found = {"class": names[index], "index": index, "probability": probability}
                rows.append(start | {"frames": frames, "rank": rank, **found})
    return rows


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `rows_of` as CSV, without the last line break."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().removesuffix("\n")


def table_of(predictions: Iterable[Prediction], names: Sequence[str], frame_counts: Sequence[int]) -> str:
    """The most likely classes as a readable table: probabilities at the frame counts side by side.

    Args:
        predictions: from `predict_videos`.
        names: names of the classes.
        frame_counts: frame counts of the columns.

    Returns:
        A line for each class that is among the five most likely at any of the frame counts, sorted by the probability at
        the last one.
    """
    lines: list[list[str]] = []
    for prediction in predictions:
        video = printable(str(prediction.video))
        if prediction.error:
            lines.append([video, f"cannot be read: {prediction.error}"])
            continue
        by_count = [prediction.probabilities[frames] for frames in frame_counts]
        best = {index for scores in by_count for index in best_classes(scores[None])[0].tolist()}
        for index in sorted(best, key=lambda index: -float(by_count[-1][index])):
            lines.append([video, names[index], *(f"{float(scores[index]):.3f}" for scores in by_count)])
            video = ""
    header = ["video", "class", *(f"{frames} frames" for frames in frame_counts)]
    return tabulate(
        lines, header, disable_numparse=True, colalign=["left", "left", *["right"] * len(frame_counts)]
    )
