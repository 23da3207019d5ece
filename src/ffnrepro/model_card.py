"""The model card of an exported network: what it is, how to run it without this package, its scores and its origin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from tabulate import tabulate

from ffnrepro.recipe.transforms import IMAGENET_MEAN, IMAGENET_STD
from ffnrepro.runs import RunSettings


@dataclass(frozen=True)
class ModelCard:
    """The content of a model card.

    Attributes:
        name: name of the run.
        settings: settings of the run.
        record: `run.json` of the training.
        frames: frame count T of the exported network.
        train_frames: the frame counts that the network was trained at; empty if an imported file does not say.
        subnetwork: the trained frame count whose sub-network it is; None for TSM, which has one set of weights.
        parameters: number of weights of the exported network.
        classes: number of classes.
        scores: a row for each evaluation of the run.
        differences: largest difference from the logits of the run's network, by file.
        digests: SHA-256 by file.
    """

    name: str
    settings: RunSettings
    record: Mapping[str, Any]
    frames: int
    train_frames: Sequence[int]
    subnetwork: int | None
    parameters: int
    classes: int
    scores: Sequence[Mapping[str, str]]
    differences: Mapping[str, float]
    digests: Mapping[str, str]

    def text(self) -> str:
        """The card as Markdown."""
        settings, record, frames = self.settings, self.record, self.frames
        short_side, size = settings.short_side, settings.crop_size
        depth = settings.network.depth
        trained = "whose file does not say at which frame counts it was trained"
        if self.train_frames:
            trained = f"trained at {', '.join(map(str, self.train_frames))} frames"
        origin = f"It is a TSM (Lin et al., ICCV 2019) on a ResNet-{depth}, {trained}"
        folded = "BatchNorm is"
        if self.subnetwork is not None:
            nearest = "" if self.subnetwork == frames else f" (the nearest to {frames} that was trained)"
            origin = (
                f"It is the sub-network of {self.subnetwork} frames{nearest} of a Frame Flexible Network (Zhang et al., CVPR 2023) on a "
                f"ResNet-{depth}, {trained}. It is written as a plain TSM (Lin et al., ICCV 2019)"
            )
            folded = "Weight alteration and BatchNorm are"
        others = " and from other weights, named above" if settings.weights or settings.start else ""
        data_set = "Data set"
        terms = f"they were made from the videos of\n{settings.dataset}{others}, whose terms apply"
        if "imported" in record:
            data_set = "Data set of the scores"
            terms = "they come from the file\nnamed above, and the terms of that file and of the videos that it was trained on apply"
        scores = "The run had no evaluations when it was exported."
        if self.scores:
            scores = tabulate(self.scores, headers="keys", tablefmt="pipe", disable_numparse=True)
            if settings.cache == "jpeg":
                scores += f"\n\nThe frames of these videos had been stored as JPEG of quality {settings.jpeg_quality}."
            if "best_epoch" in record and any(score["split"] == "validation" for score in self.scores):
                scores += "\n\nThe kept epoch is the best one on the validation videos, so scores on these are somewhat too high."
        differences = "\n".join(
            f"- `{name}`: {value:.1e}" for name, value in self.differences.items() if name != "folded"
        )
        digests = "\n".join(f"- `{name}`: `{value}`" for name, value in self.digests.items())
        return f"""\
# {self.name}, {frames} frames

A network that assigns a short video to one of {self.classes} classes. It sees {frames} frames of the video.
{origin}.
{folded} folded into the convolutions, which leaves {self.parameters:,} weights.

| file | content |
|---|---|
| `model.onnx` | the network for ONNX runtimes |
| `model.pt2` | the same for PyTorch: `torch.export.load("model.pt2").module()` |
| `labels.txt` | names of the classes, one per line, in the order of the logits |

Both networks take `clip`, a float32 array of shape (N, 3, {frames}, {size}, {size}) for any N, and give `logits` (N, {self.classes}). The
softmax of the logits gives the probabilities.

## Example

With `pip install onnxruntime numpy av pillow`, this prints the class of `video.webm`:

```python
{example(frames, short_side, size)}```

## Preprocessing

1. Decode all n frames of the video, as a player shows them (rotated, without what an edit list removes; the example does not rotate).
2. Take {frames} of them: frame `(2 i + 1) n // {2 * frames}` for i = 0 ... {frames - 1}, counted from 0.
3. Resize to a short side of {short_side} pixels, bilinear with antialiasing, the long side rounded down.
4. Cut a square of {size} pixels from the centre.
5. RGB, divided by 255; minus mean {_plain(IMAGENET_MEAN)}, divided by standard deviation {_plain(IMAGENET_STD)}.

## Data and training

- {data_set}: {settings.dataset}; digest of the data `{record.get("data", "not recorded")}`.
{_origin(settings, record)}
- Run: `{self.name}`, seed {record.get("seed", "not recorded")}; code at revision {record.get("git_revision") or "not recorded"}.

## Scores

Accuracy of the run at each frame count, in percent. This export is the network for {frames} frames only. The
95 % interval of top-1 is a bootstrap over videos; it does not include the spread between trainings.

{scores}

## Digests

Largest difference from the logits of the run's network, on two random clips:

{differences}

SHA-256 of the files, and of the tensors of the run's network:

{digests}

## Licence

The code of ffnrepro has the MIT licence. This card gives no licence to the weights: {terms}. Read them before you use the network commercially or pass it on.
"""


def example(frames: int, short_side: int, crop_size: int) -> str:
    """Python that classifies `video.webm` with `model.onnx` and `labels.txt`, without this package."""
    return f"""\
import av, numpy, onnxruntime, pathlib
T, SHORT, SIZE = {frames}, {short_side}, {crop_size}
video = [frame.to_image() for frame in av.open("video.webm").decode(video=0)]
chosen = [video[(2 * i + 1) * len(video) // (2 * T)] for i in range(T)]  # the centres of T segments
w, h = (SHORT * side // min(video[0].size) for side in video[0].size)
x, y = round((w - SIZE) / 2), round((h - SIZE) / 2)
clip = [numpy.array(picture.resize((w, h), 2))[y : y + SIZE, x : x + SIZE] for picture in chosen]  # 2: bilinear
clip = (numpy.array(clip) / 255 - {list(IMAGENET_MEAN)}) / {list(IMAGENET_STD)}
clip = clip.transpose(3, 0, 1, 2)[None].astype("float32")  # (1, 3, T, SIZE, SIZE)
logits = onnxruntime.InferenceSession("model.onnx").run(["logits"], {{"clip": clip}})[0][0]
print(pathlib.Path("labels.txt").read_text(encoding="utf-8").split("\\n")[logits.argmax()])
"""


def _origin(settings: RunSettings, record: Mapping[str, Any]) -> str:
    """The origin of the network, as items of a list."""
    if imported := record.get("imported"):
        return (
            f"- Imported, not trained here: from {PurePath(imported['path']).name}, in the format of {imported['source']}, SHA-256 "
            f"`{imported['sha256']}`."
        )
    method = settings.method.effective().model_dump(mode="json")
    start = "random weights"
    if settings.start:
        start = f"the network of the run with the key {settings.start}"
    elif settings.weights:
        start = f"{PurePath(record.get('start') or 'a file').name}, SHA-256 `{settings.weights}...`"
    return (
        f"- Training: {', '.join(f'{key} {_plain(value)}' for key, value in method.items())}; {record.get('videos', 'unknown')} videos.\n"
        f"- Started from: {start}."
    )


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
