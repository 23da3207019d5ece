"""Time and peak memory of a training step of TSM and of FFN, computed in several ways.

The ways are: all terms of the loss at once (their sum in one graph), term by term (as in training), with activations
computed again in the backward pass (`training.recompute`), and in micro-batches (`training.micro_batch`). Each is measured in a
process of its own, on random clips: on a GPU at the published size, on the CPU with fewer and smaller clips on one core.
The memory is that of tensors on a GPU; on the CPU (Linux only) it is what a step takes in addition to the network.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from statistics import median

import torch
from results import write_section
from torch import Tensor

from ffnrepro.methods import CLASSES
from ffnrepro.recipe.methods.method import Method, Term
from ffnrepro.recipe.models.tsm import ShiftedResNet
from ffnrepro.recipe.network import NetworkSettings
from ffnrepro.recipe.optim import make_optimizer
from ffnrepro.recipe.step import make_scaler, precision_on, train_step
from ffnrepro.training.devices import place

ON_GPU = torch.cuda.is_available()
CLIPS, SIZE = (32, 224) if ON_GPU else (4, 112)
WARM_UP, STEPS = (3, 10) if ON_GPU else (1, 2)
FRAMES = {"tsm": (16,), "ffn": (4, 8, 16)}
HALF = CLIPS // 2
WAYS = {
    "all at once": "all terms at once",
    "plain": "term by term",
    "recompute": "recomputed",
    "micro": f"micro-batches of {HALF}",
    "recompute micro": f"micro-batches of {HALF}, recomputed",
}
Measured = dict[str, float]


class AllAtOnce:
    """A method whose only term is the sum of another method's terms, in one graph."""

    def __init__(self, method: Method) -> None:
        self._method = method

    def terms(
        self,
        network: Callable[[Tensor], Tensor],
        clips: Mapping[int, Tensor],
        labels: Tensor,
        generator: torch.Generator,
    ) -> Iterator[Term]:
        """Yield the sum."""
        terms = list(self._method.terms(network, clips, labels, generator))
        yield Term("sum", sum(term.weight * term.loss for term in terms), logits=terms[0].logits)


def measure(name: str, way: str) -> Measured | None:
    """Seconds and GiB of a step in this process; None if it does not fit into the memory of the GPU."""
    torch.set_num_threads(1)
    device = torch.device("cuda" if ON_GPU else "cpu")
    precision = precision_on(device, "float16")
    method = CLASSES[name].model_validate({"method": name, "train_frames": FRAMES[name]})
    network = place(method.build_seeded(174, NetworkSettings(), seed=0), device).train()
    for part in network.modules():
        if isinstance(part, ShiftedResNet):
            part.recompute = "recompute" in way
    optimizer = make_optimizer(network, learning_rate=0.01, momentum=0.9, weight_decay=5e-4)
    scaler = make_scaler(device, precision)
    # The memory layout is that of the loader.
    clips = {
        frames: torch.randint(256, (CLIPS, frames, SIZE, SIZE, 3), dtype=torch.uint8, device=device).permute(0, 4, 1, 2, 3)
        for frames in FRAMES[name]
    }  # fmt: skip
    labels = torch.arange(CLIPS, device=device)

    def step(number: int) -> float:
        started = time.perf_counter()
        train_step(
            network,
            AllAtOnce(method) if way == "all at once" else method,  # type: ignore[arg-type]
            clips,
            labels,
            optimizer=optimizer,
            scaler=scaler,
            seeds=(0, 0, number),
            precision=precision,
            clip_norm=20.0,
            micro_batch=HALF if "micro" in way else None,
        )
        # A step ends with a copy of its losses to the CPU and the update of the weights.
        if ON_GPU:
            torch.cuda.synchronize()
        return time.perf_counter() - started

    try:
        for number in range(WARM_UP):
            step(number)
        before = start_peak()
        seconds = median(step(WARM_UP + number) for number in range(STEPS))
    except torch.OutOfMemoryError:
        return None
    return {"seconds": seconds, "gib": (peak() - before) / 2**30}


def start_peak() -> int:
    """Forget the peak so far; return the bytes that are not counted as a step's."""
    if ON_GPU:
        torch.cuda.reset_peak_memory_stats()
        return 0
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak() -> int:
    """The most bytes at one time since `start_peak`."""
    return torch.cuda.max_memory_allocated() if ON_GPU else _status("VmHWM")


def _status(key: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def measure_in_child(name: str, way: str) -> Measured | None:
    """Measure in a process of its own."""
    # Otherwise freed memory stays in the process, and the peak depends on the order of the tensors' sizes.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    command = [sys.executable, __file__, "--measure", name, way]
    output = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout
    measured: Measured | None = json.loads(output)
    return measured


def main() -> None:
    """Measure all ways, print the table and write it to RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(*arguments.measure)))
        return
    rows = ["| step | time | frames/s | memory | time, ratio | memory, ratio |", "|---|---|---|---|---|---|"]
    for name, frames in FRAMES.items():
        # TSM's loss has one term.
        ways = list(WAYS) if name == "ffn" else [way for way in WAYS if way != "all at once"]
        found = {way: measure_in_child(name, way) for way in ways}
        for way, measured in found.items():
            label = f"{name.upper()} {'+'.join(map(str, frames))} frames, {WAYS[way]}"
            if measured is None:
                rows.append(f"| {label} | does not fit | | | | |")
                continue
            rate = CLIPS * sum(frames) / measured["seconds"]
            row = f"| {label} | {1000 * measured['seconds']:,.0f} ms | {rate:,.0f} | {measured['gib']:.2f} GiB |"
            if plain := found["plain"]:
                ratios = (measured[key] / plain[key] for key in ("seconds", "gib"))
                row += "".join(f" {ratio:.2f} |" for ratio in ratios)
            else:
                row += " | |"
            rows.append(row)
    device = (
        torch.cuda.get_device_name() if ON_GPU else f"one core of {platform.system()} on {platform.machine()}"
    )
    text = (
        f"`python benchmarks/step.py`: ResNet-50, {CLIPS} clips of {SIZE} px, {'float16' if ON_GPU else 'float32'}; {device}, Python "
        f"{platform.python_version()}, torch {torch.__version__}. Ratios to the step term by term of the same method; "
        f"memory: {'all tensors' if ON_GPU else 'without weights, momentum and clips'}.\n\n"
    )
    text += "\n".join(rows)
    print(text)
    write_section(f"step.py, {'GPU' if ON_GPU else 'CPU'}", f"{text}\n\n{TRIED}")


TRIED = """Alternatives that were worse: a shift that copies each channel once, instead of copying all of them and then a quarter again
(1.0 to 3 times as long on the CPU); a shift that joins three parts with `torch.cat` (1.5 to 16 times as long);
recomputing whole stages instead of blocks (1.5 times the memory, because a stage's activations are larger than the inputs
of its blocks); recomputing the blocks but not the layers before them (1.3 times the memory). Peak memory of all tensors of
a TSM step with 4 clips of 4 frames of 224 px: plain 1666 MiB, stages 833, blocks 539, blocks and first layers 417."""


if __name__ == "__main__":
    main()
