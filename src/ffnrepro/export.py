"""Exports the sub-network of one frame count as a plain network for PyTorch and for ONNX, which does not need this package.

Weight alteration and BatchNorm are linear in evaluation, so they are folded into the convolutions. The result is a
TSM: convolutions with a bias, shifts, and a classifier.
"""

import importlib.util
import io
import re
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ffnrepro.errors import UserError
from ffnrepro.files import file_digest, make_folder, read_record, replacing, write_text
from ffnrepro.logs import logger
from ffnrepro.model_card import ModelCard
from ffnrepro.recipe.models.ffn import SeparateNetworks, nearest
from ffnrepro.recipe.models.specialized_norm import SpecializedBatchNorm2d
from ffnrepro.recipe.models.temporal_shift import SHIFT_FRACTION
from ffnrepro.recipe.models.tsm import TSM, BasicBlock, Bottleneck
from ffnrepro.recipe.models.weight_alteration import AlteredConv2d
from ffnrepro.recipe.transforms import normalise
from ffnrepro.runs import read_run
from ffnrepro.statistics import bootstrap_interval
from ffnrepro.tables import read_correct
from ffnrepro.weights import Network, tensors_digest

TOLERANCE = 1e-4
"""Largest difference of a logit that rounding can explain; relative to the largest logit if that is above 1."""

# --- Folding ---------------------------------------------------------------------------------------------------------


class _Folded(nn.Module):
    """Takes the place of a BatchNorm that is folded into the convolution before it."""

    def forward(self, x: Tensor, subnetwork: int) -> Tensor:  # noqa: ARG002
        return x


class _ShiftedConv2d(nn.Module):
    """The temporal shift of clips of T frames, and the convolution after it.

    The shift consists of padding and concatenation. `temporal_shift` assigns to slices, which the ONNX exporter turns into
    scatter operations, and with these a ResNet-50 takes twice as long in onnxruntime.
    """

    def __init__(self, convolution: nn.Module, frames: int) -> None:
        super().__init__()
        self.convolution = convolution
        self.frames = frames

    def forward(self, x: Tensor, subnetwork: int) -> Tensor:  # noqa: ARG002
        fold = x.shape[1] // SHIFT_FRACTION
        clips = x.view(-1, self.frames, *x.shape[1:])
        from_next = F.pad(clips[:, 1:, :fold], (0, 0, 0, 0, 0, 0, 0, 1))
        from_previous = F.pad(clips[:, :-1, fold : 2 * fold], (0, 0, 0, 0, 0, 0, 1, 0))
        shifted = torch.cat([from_next, from_previous, clips[:, :, 2 * fold :]], dim=2)
        out: Tensor = self.convolution(shifted.flatten(0, 1))
        return out


@torch.no_grad()
def fold(network: Network, frames: int) -> TSM:
    """The sub-network of a frame count as a plain TSM, with weight alteration and BatchNorm folded into the convolutions.

    Args:
        network: the network; it is not changed.
        frames: frame count T; if it was not trained, the nearest sub-network is used, as in evaluation.

    Returns:
        A network in evaluation mode, for normalised clips (N, 3, T, H, W) of this T only.
    """
    counts = getattr(network, "frame_counts", (0,))
    subnetwork = nearest(counts, frames)
    source = network.subnetworks[str(subnetwork)] if isinstance(network, SeparateNetworks) else network
    of_tsm = ("classes", "depth", "width", "stem", "dropout", "shift")
    folded = TSM(**{key: network.architecture[key] for key in of_tsm}).eval()
    for name, convolution in list(folded.named_modules()):
        if isinstance(convolution, nn.Conv2d):
            own = source.get_submodule(name)
            norm_name = re.sub(r"downsample\.0$", "downsample.1", re.sub(r"conv(\d)$", r"bn\1", name))
            norm = source.get_submodule(norm_name)
            if isinstance(norm, SpecializedBatchNorm2d):
                norm = norm[str(subnetwork)]
            weight = own.weight
            if isinstance(own, AlteredConv2d):
                weight = weight * (1 + own.alteration[str(subnetwork)].view(1, -1, 1, 1))
            statistics = (norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias)
            convolution.weight, convolution.bias = fuse_conv_bn_weights(weight, None, *statistics)  # type: ignore[arg-type]
            folded.set_submodule(norm_name, _Folded())
    folded.fc.load_state_dict(source.get_submodule("fc").state_dict())
    for block in folded.modules():
        if isinstance(block, BasicBlock | Bottleneck) and block.shifts:
            block.conv1, block.shifts = _ShiftedConv2d(block.conv1, frames), False
    return folded


# --- Files -----------------------------------------------------------------------------------------------------------


def check_packages() -> None:
    """Check that the packages for the export are installed.

    Raises:
        UserError: one is missing; the message says what to install.
    """
    needed = ("onnx", "onnxscript", "onnxruntime")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"ffnrepro export needs {', '.join(missing)}, which this environment does not have; install the extra `export`: "
            f"pip install -e '.[export]', or pip install {' '.join(missing)}"
        )


def write_programs(network: Network, folder: Path, *, frames: int, crop_size: int) -> dict[str, float]:
    """Write `model.pt2` and `model.onnx`, and compare both files with the network on two random clips.

    Both take `clip`, normalised float32 clips (N, 3, T, S, S) for any N, and give `logits` (N, classes).

    Args:
        network: the network, on the CPU.
        folder: the folder to write to.
        frames: frame count T.
        crop_size: height and width S of the clips in pixels.

    Returns:
        The largest difference from the network's logits, by the name of what was compared.

    Raises:
        UserError: a package is missing, or a difference is larger than rounding can explain; that file is then not written.
    """
    check_packages()
    import onnxruntime  # noqa: PLC0415

    pixels = torch.randint(
        256,
        (2, 3, frames, crop_size, crop_size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    clips = normalise(pixels)
    folded = fold(network, frames)
    with torch.inference_mode():
        expected = network.eval()(clips)
    differences: dict[str, float] = {}

    def compare(name: str, logits: Tensor) -> None:
        differences[name] = float((logits - expected).abs().max())
        # A NaN is refused, too.
        if not differences[name] <= TOLERANCE * max(1.0, float(expected.abs().max())):
            raise UserError(
                f"{folder}: {name}: a logit differs by {differences[name]:.2g} from the network's, which is more than rounding, so this file is not "
                "written. Please report it, with the versions of torch and onnxscript"
            )

    with torch.inference_mode():
        compare("folded", folded(clips))
    # More than one clip, because the exporter would treat a batch of one as a fixed size.
    example = torch.zeros(3, *clips.shape[1:])
    with torch.no_grad():
        program = torch.export.export(folded, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with replacing(folder / "model.pt2") as path:
        torch.export.save(program, path)
        with torch.inference_mode():
            compare("model.pt2", torch.export.load(path).module()(clips))
    with replacing(folder / "model.onnx") as path:
        # The exporter prints its progress on stdout even with verbose=False.
        with redirect_stdout(io.StringIO()):
            exported = torch.onnx.export(
                program, (), dynamo=True, input_names=["clip"], output_names=["logits"], verbose=False
            )
            assert exported is not None
            exported.save(path, external_data=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        compare("model.onnx", torch.from_numpy(session.run(None, {"clip": clips.numpy()})[0]))
    return differences


def export_run(
    run: Path,
    output: Path,
    *,
    network: Network,
    train_frames: Sequence[int],
    seed: int,
    frames: int,
    names: Sequence[str],
) -> dict[str, float]:
    """Write the sub-network of one frame count with its model card: `model.pt2`, `model.onnx`, `labels.txt`, `README.md`.

    Args:
        run: folder of the run.
        output: the folder to write to; it is created if necessary.
        network: the network of the run.
        train_frames: the frame counts that it was trained at; empty if not known.
        seed: seed of the training.
        frames: frame count T.
        names: names of the classes.

    Returns:
        The largest differences; see `write_programs`.

    Raises:
        UserError: a package is missing, `output` cannot be written to or has a `README.md` of something else, the settings or
            an evaluation cannot be read, or a file differs from the network.
    """
    make_folder(output)
    card = output / "README.md"
    if card.exists() and not (output / "model.onnx").exists():
        raise UserError(
            f"{card}: exists already, and is not that of an export; give another folder as --output"
        )
    folder = run / f"seed{seed}"
    settings, _ = read_run(run)
    digest = tensors_digest(network.state_dict())
    scores = card_scores(folder, digest)
    differences = write_programs(network, output, frames=frames, crop_size=settings.crop_size)
    write_text(output / "labels.txt", "\n".join(names) + "\n")
    text = ModelCard(
        name=run.name,
        settings=settings,
        record=read_record(folder / "run.json"),
        frames=frames,
        train_frames=train_frames,
        subnetwork=None if isinstance(network, TSM) else nearest(network.frame_counts, frames),
        parameters=sum(parameter.numel() for parameter in fold(network, frames).parameters()),
        classes=len(names),
        scores=scores,
        differences=differences,
        digests={
            **{name: file_digest(output / name) for name in ("model.onnx", "model.pt2", "labels.txt")},
            "the run's network": digest,
        },
    ).text()
    write_text(card, text)
    return differences


def card_scores(folder: Path, digest: str) -> list[dict[str, str]]:
    """Read the evaluations of a network: accuracy in percent by frame count, with the 95 % interval of top-1.

    Args:
        folder: folder of a run's seed.
        digest: digest of the network; evaluations of another one are left out with a warning.

    Raises:
        UserError: the predictions of an evaluation cannot be read, or have another top-1.
    """
    named = ((re.fullmatch(r"(\w+?)_(\d+)f", path.stem), path) for path in folder.glob("*_*f.json"))
    rows = []
    for frames, split, path in sorted((int(match[2]), match[1], path) for match, path in named if match):
        record = read_record(path)
        if record.get("model") != digest:
            logger.warning(
                "%s: not in the model card, because it belongs to another network; run snakemake again", path
            )
            continue
        correct = read_correct(path, "class_1", record["top1"])
        low, high = bootstrap_interval(correct.to_numpy()[None])
        rows.append(
            {
                "frames": str(frames),
                "top-1": f"{record['top1']:.2f}",
                "95 % interval": f"{low:.2f} to {high:.2f}",
                "top-5": f"{record['top5']:.2f}",
                "split": split,
                "videos": f"{record['videos']:,}",
            }
        )
    return rows
