"""The data stages at the size of Something-Something V2: seconds, videos per second, peak memory, and goals.

The benchmark generates label files of the official sizes, a few hundred clips of 427x240, and 220,847 links to these
clips. It runs everything as a user would (scripts and snakemake), on two cores. The last line of the output has the
figures, and the exit code is 1 if a goal is missed. The figures also go into RESULTS.md, with the machine.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import yaml
from results import write_section

from ffnrepro.data.video_index import index_videos, list_videos, shard_of
from ffnrepro.files import replacing

ROOT = Path(__file__).parents[1]
SPLITS = {"train": 168_913, "validation": 24_777, "test": 27_157}
CLASSES = 174
CORES = 2
TARGETS = ["results/manifest/manifest.sha256", "results/figures/class_counts.png"]


@dataclass(frozen=True)
class Measured:
    """Time, memory and output of a finished command."""

    seconds: float
    cpu_seconds: float
    gigabytes: float
    output: str


def measure(command: list[object], folder: Path) -> Measured:
    """Run a command and measure it; the memory is that of the largest process."""
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(list(map(str, command)), cwd=folder, stdout=output, stderr=output)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        sys.exit(f"{command} failed:\n{text}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Measured(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * unit / 1e9, text)


def make_labels(folder: Path) -> None:
    """Write label files of the official sizes, named as in the current release."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    templates = [f"Moving [something] {n} times, and [something else] not" for n in range(CLASSES)]
    names = [re.sub(r"[\[\]]", "", template) for template in templates]
    (folder / "labels.json").write_text(json.dumps({name: str(n) for n, name in enumerate(names)}))
    ids = iter((random.permutation(sum(SPLITS.values())) + 1).tolist())
    for split, count in SPLITS.items():
        classes = random.integers(CLASSES, size=count).tolist()
        rows: list[dict[str, Any]] = [{"id": str(next(ids))} for _ in range(count)]
        if split != "test":
            for row, number in zip(rows, classes, strict=True):
                row["label"] = names[number].replace("something", "a cup")
                row["template"] = templates[number]
                row["placeholders"] = ["a cup", "a spoon"]
        else:
            answers = "".join(f"{row['id']};{names[n]}\n" for row, n in zip(rows, classes, strict=True))
            (folder / "test-answers.csv").write_text(answers)
        (folder / f"{split}.json").write_text(json.dumps(rows))


def make_clip(path: Path, seed: int) -> None:
    """Write a clip like those of the data set: VP9, 427x240, 12 frames per second, 2 to 6 s."""
    random = np.random.default_rng(seed)
    coarse = random.uniform(0, 255, (40, 60, 3))
    scene = np.kron(coarse, np.ones((12, 12, 1)))
    scene = (scene + np.roll(scene, 5, 0) + np.roll(scene, 7, 1)) / 3
    grain = random.normal(0, 6, scene.shape)
    scene = np.clip(scene + grain, 0, 255).astype(np.uint8)
    with replacing(path) as temporary, av.open(str(temporary), "w") as container:
        stream = container.add_stream(
            "libvpx-vp9", rate=Fraction(12), options={"deadline": "realtime", "cpu-used": "8"}
        )
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 427, 240, "yuv420p", 190_000
        for t in range(int(random.integers(24, 73))):
            picture = np.ascontiguousarray(scene[2 * t : 2 * t + 240, 3 * t : 3 * t + 427])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def make_videos(folder: Path, clips: int) -> float:
    """Write the clips and link every id to one of them; return the mean size of a clip in kB."""
    folder.mkdir(parents=True)
    generated = folder.with_name("clips")
    generated.mkdir(exist_ok=True)
    paths = [generated / f"{n}.webm" for n in range(clips)]
    for n, path in enumerate(paths):
        # An earlier call that was interrupted may have written some.
        if not path.exists():
            make_clip(path, n)
    for number in range(sum(SPLITS.values())):
        os.link(paths[number % clips], folder / f"{number + 1}.webm")
    return sum(path.stat().st_size for path in paths) / clips / 1000


def decode_bare(paths: list[str]) -> float:
    """Decode files and do nothing else; return the seconds."""
    started = time.perf_counter()
    for path in paths:
        with av.open(path) as container:
            container.streams.video[0].codec_context.thread_count = 1
            for _ in container.decode(video=0):
                pass
    return time.perf_counter() - started


def bare_rate(folder: Path, names: list[str]) -> float:
    """Videos per second of bare decoding on one core."""
    return len(names) / decode_bare([str(folder / name) for name in names])


def index_rate(folder: Path, names: list[str], entries: Path) -> float:
    """Videos per second that the index of one shard decodes, on one core."""
    started = time.perf_counter()
    table = index_videos(folder, names, entries=entries)
    seconds = time.perf_counter() - started
    assert (table["status"] == "ok").all()
    return len(names) / seconds


def main() -> int:
    """Generate the data, run the stages, compare with the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder",
        type=Path,
        default=ROOT / "benchmarks/work/full_scale",
        help="of the data, which is generated once",
    )
    parser.add_argument("--clips", type=int, default=300, help="clips that are generated (default 300)")
    parser.add_argument("--sample", type=int, help="videos that are decoded (default: one shard of 64)")
    arguments = parser.parse_args()
    return benchmark(arguments.folder.resolve(), arguments.clips, arguments.sample)


def benchmark(folder: Path, clips: int, sample: int | None) -> int:
    """Run everything in a folder and return the exit code."""
    for name in ("results", "state", "logs", "alone", "decoded", ".snakemake"):
        shutil.rmtree(folder / name, ignore_errors=True)
    say = partial(print, flush=True)
    if not (folder / "data" / "ready").exists():
        for name in ("labels", "videos"):
            shutil.rmtree(folder / "data" / name, ignore_errors=True)
        make_labels(folder / "data/labels")
        size = make_videos(folder / "data/videos", clips)
        (folder / "data" / "ready").write_text(f"{size:.0f}")
    size = float((folder / "data" / "ready").read_text())
    total = sum(SPLITS.values())
    say(f"{total:,} links to {clips} clips of {size:.0f} kB, {CLASSES} classes")

    scripts = ROOT / "workflow/scripts"
    labels = measure(
        [sys.executable, scripts / "parse_labels.py", "--labels", "data/labels", "--dataset", "something-something-v2", "--classes", "alone/classes.csv",
         "--table", "alone/labels.parquet"],
        folder,
    )  # fmt: skip
    say(f"labels: {labels.seconds:.1f} s ({labels.cpu_seconds:.1f} s of CPU), {labels.gigabytes:.2f} GB")

    config = {
        "data": {"labels": "data/labels", "videos": "data/videos", "verify": "packets", "index_shards": 16}
    }
    (folder / "full_scale.yaml").write_text(yaml.safe_dump(config))
    snakemake = [
        sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder, "--cores", CORES,
        "--configfile", folder / "full_scale.yaml", "--",
    ]  # fmt: skip
    index = [f"results/video_index/part-{shard}.parquet" for shard in range(16)]
    packets = measure([*snakemake, *index], folder)
    say(f"index, packets: {packets.seconds:.0f} s, {total / packets.seconds:.0f} videos/s")
    manifest = measure([*snakemake, *TARGETS], folder)
    say(f"labels and manifest by snakemake: {manifest.seconds:.1f} s")
    plan = measure([*snakemake[:-1], "--dry-run", "--", *TARGETS], folder)
    assert "Nothing to be done" in plan.output, plan.output
    say(f"plan of the finished tree: {plan.seconds:.1f} s ({plan.cpu_seconds:.1f} s of CPU)")

    videos = folder / "data/videos"
    names = shard_of(list_videos(videos), 0, 64)[:sample]
    # In two halves, in opposite order: the machine may be busy with other work, and its clock rate changes.
    first, second = names[::2], names[1::2]
    bare_first = bare_rate(videos, first)
    index_first = index_rate(videos, first, folder / "decoded" / "0-of-64.jsonl")
    index_second = index_rate(videos, second, folder / "decoded" / "0-of-64.jsonl")
    bare = 2 / (1 / bare_first + 1 / bare_rate(videos, second))
    indexed = 2 / (1 / index_first + 1 / index_second)
    say(f"index, decode: {indexed:.1f} videos/s of {len(names):,}; bare decoding {bare:.1f}")

    memory = max(run.gigabytes for run in (labels, packets, manifest, plan))
    goals = [
        ("labels", labels.seconds, "s ", labels.seconds < 20, "under 20 s"),
        ("plan with nothing to do", plan.seconds, "s ", plan.seconds < 10, "under 10 s"),
        ("peak memory of a process", memory, "GB ", memory < 1.5, "under 1.5 GB"),
        ("index / bare decoding", indexed / bare, "", indexed / bare >= 0.9, "at least 0.90"),
    ]
    rows = [
        f"| labels, {total:,} rows | {labels.seconds:.1f} s | {labels.cpu_seconds:.1f} s | {labels.gigabytes:.2f} GB |",
        f"| index, packets, {total / packets.seconds:.0f} videos/s | {packets.seconds:.0f} s | {packets.cpu_seconds:.0f} s | {packets.gigabytes:.2f} GB |",
        f"| labels, manifest and plots by snakemake | {manifest.seconds:.1f} s | {manifest.cpu_seconds:.1f} s | {manifest.gigabytes:.2f} GB |",
        f"| `snakemake -n`, nothing to do | {plan.seconds:.1f} s | {plan.cpu_seconds:.1f} s | {plan.gigabytes:.2f} GB |",
        f"| index, decode, {len(names):,} videos on one core | {indexed:.1f} videos/s | | |",
        f"| bare decoding of the same videos on one core | {bare:.1f} videos/s | | |",
    ]
    met = [
        f"| {what} | {value:.2f} {unit}| {goal} | {'yes' if ok else '**no**'} |"
        for what, value, unit, ok, goal in goals
    ]
    write_section(
        "full_scale.py",
        f"`python benchmarks/full_scale.py`: {total:,} links to {clips} clips of {size:.0f} kB; {CORES} cores of {platform.system()} on {platform.machine()}, Python "
        f"{platform.python_version()}, PyAV {av.__version__}. Decoding all {total:,} at that rate takes "
        f"{total / indexed / 3600:.1f} h on one core.\n\n"
        + "\n".join(["| stage | time | CPU time | memory |", "|---|---|---|---|", *rows])
        + "\n\n"
        + "\n".join(["| goal | measured | | met |", "|---|---|---|---|", *met])
        + "\n",
    )
    summary = (
        f"{what} {value:.2f} {unit}({goal}{'' if ok else ': MISSED'})"
        for what, value, unit, ok, goal in goals
    )
    say("; ".join(summary))
    return 0 if all(ok for *_, ok, _ in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
