"""Unusual and broken files of every known kind, made here: their entries in the index, and the frames that are read."""

import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from ffnrepro.data import decode
from ffnrepro.data.decode import DecodeError, examine, open_video
from ffnrepro.data.video_index import index_videos, list_videos

from .test_decode import Pipe, audio_only, levels, natural, page


def patch_matrix(path: Path, degrees: int) -> None:
    """Write a clockwise rotation into the track header of an mp4."""
    one, minus = 1 << 16, -(1 << 16)
    a, b, c, d = {90: (0, one, minus, 0), 180: (minus, 0, 0, minus), 270: (0, minus, one, 0)}[degrees]
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40
    content[start : start + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def patch_edit_list(path: Path, first: float, seconds: float) -> None:
    """Make an mp4 begin `first` seconds into its track, and show `seconds` from there."""
    content = bytearray(path.read_bytes())
    media = content.index(b"mdhd")
    scale = struct.unpack(">I", content[media + 16 : media + 20])[0]
    header = content.index(b"mvhd")
    movie_scale = struct.unpack(">I", content[header + 16 : header + 20])[0]
    start = content.index(b"elst") + 4 + 8
    content[start : start + 8] = struct.pack(">Ii", round(seconds * movie_scale), round(first * scale))
    path.write_bytes(content)


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def damage(path: Path) -> None:
    """Overwrite the content of the packets in the middle, and leave the container intact."""
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(video=0) if packet.size]
    for packet in packets[15:25]:
        end = packet.pos + packet.size
        start = end - int(0.9 * packet.size)
        content[start:end] = np.random.default_rng(0).bytes(end - start)
    path.write_bytes(content)


def patch_packet(path: Path, number: int, change: Callable[[bytes], bytes]) -> None:
    """Change the content of one packet, and leave its size and everything else."""
    content = path.read_bytes()
    with av.open(str(path)) as container:
        old = bytes([packet for packet in container.demux(video=0) if packet.size][number])
    new = change(old)
    assert content.count(old) == 1
    assert len(new) == len(old)
    path.write_bytes(content.replace(old, new))


def remux(source: Path, target: Path) -> Path:
    """Copy a video into a container of another kind."""
    with av.open(str(source)) as given, av.open(str(target), "w") as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                output.mux(packet)
    return target


@pytest.fixture(scope="module")
def folder(write_video, numbered_frames, tmp_path_factory):
    where: Path = tmp_path_factory.mktemp("wrong files")
    mpeg4: dict[str, Any] = {"codec": "mpeg4", "container": "mp4"}
    for frames in (1, 2, 3, 8, 15, 16, 17, 40):
        write_video(where / f"frames {frames}.webm", numbered_frames(frames))
    with (where / "piped.webm").open("wb") as file:
        write_video(Pipe(file), numbered_frames(40), container="webm")
    write_video(where / "mp4 renamed.webm", numbered_frames(40), **mpeg4)
    for name, height, width in (("portrait", 427, 240), ("odd", 239, 427), ("tiny", 32, 64)):
        write_video(where / f"{name}.webm", natural(30, height, width))
    write_video(where / "rotated.mov", natural(3, 64, 128), **mpeg4 | {"container": "mov"})
    patch_matrix(where / "rotated.mov", 90)
    write_video(where / "edit list.mp4", numbered_frames(30), fps=25, **mpeg4)
    patch_edit_list(where / "edit list.mp4", 5 / 25, 25 / 25)
    write_video(where / "late start.mp4", numbered_frames(12), times=range(100, 112), **mpeg4)
    write_video(where / "out of order.mov", numbered_frames(20), b_frames=2, **mpeg4 | {"container": "mov"})
    write_video(where / "one.mp4", numbered_frames(1), **mpeg4)
    write_video(where / "variable.webm", numbered_frames(20), times=[*range(10), *range(10, 60, 5)])
    write_video(where / "old.avi", numbered_frames(24), codec="mpeg4", container="avi")

    write_video(where / "truncated.webm", natural(40, 96, 128))
    cut(where / "truncated.webm", 0.5)
    write_video(where / "truncated.avi", natural(40, 96, 128), codec="mpeg4", container="avi")
    cut(where / "truncated.avi", 0.5)
    write_video(where / "truncated.mp4", natural(40, 96, 128), movflags="faststart", **mpeg4)
    cut(where / "truncated.mp4", 0.5)
    write_video(where / "no index.mp4", natural(40, 96, 128), **mpeg4)
    cut(where / "no index.mp4", 0.5)
    write_video(where / "damaged.webm", natural(40, 96, 128))
    damage(where / "damaged.webm")
    write_video(where / "damaged.mp4", natural(40, 96, 128), **mpeg4)
    damage(where / "damaged.mp4")
    write_video(where / "first damaged.webm", natural(40, 96, 128))
    patch_packet(where / "first damaged.webm", 0, lambda packet: bytes(len(packet)))
    write_video(where / "hidden.webm", numbered_frames(20), codec="libvpx")
    # VP8 has frames that others are predicted from and nobody sees.
    patch_packet(where / "hidden.webm", 19, lambda packet: bytes([packet[0] & ~0x10]) + packet[1:])
    foreign = (where / "frames 40.webm").read_bytes().replace(b"V_VP9", b"V_QQ9")
    (where / "foreign codec.webm").write_bytes(foreign)
    (where / "zero bytes.webm").touch()
    (where / "header only.webm").write_bytes((where / "frames 40.webm").read_bytes()[:300])
    (where / "text.webm").write_text("the video is on the other disk\n")
    page(where / "page.webm")
    audio_only(where / "audio.webm")
    return where


USABLE = {
    **{f"frames {n}.webm": n for n in (1, 2, 3, 8, 15, 16, 17, 40)},
    "piped.webm": 40, "mp4 renamed.webm": 40, "portrait.webm": 30, "odd.webm": 30, "tiny.webm": 30, "rotated.mov": 3,
    "edit list.mp4": 25, "late start.mp4": 12, "out of order.mov": 20, "one.mp4": 1, "variable.webm": 20, "old.avi": 24,
    "hidden.webm": 19,
}  # fmt: skip
BROKEN = {
    **dict.fromkeys(("truncated.webm", "truncated.avi", "truncated.mp4"), "truncated or damaged"),
    "first damaged.webm": "does not decode", "no index.mp4": "does not open", "damaged.webm": "does not decode", "damaged.mp4": "does not decode",
    "zero bytes.webm": "empty file", "header only.webm": "does not open", "text.webm": "text, not a video",
    "page.webm": "a web page, not a video", "audio.webm": "no video stream",
    "foreign codec.webm": "a codec without a decoder here",
}  # fmt: skip


def index(folder: Path, verify: Any) -> pd.DataFrame:
    entries = folder / ".index/0-of-1.jsonl"
    return index_videos(folder, list_videos(folder), entries=entries, verify=verify).set_index("path")


def test_the_index_of_every_kind_of_file(folder: Path) -> None:
    table = index(folder, "decode")
    assert table.loc[table["status"] == "ok", "frames"].to_dict() == USABLE
    assert table.loc[table["status"] == "excluded", "reason"].to_dict() == BROKEN
    assert re.fullmatch(r"ends at \d\.\d\d s of 3\.3\d s", table.loc["truncated.webm", "detail"])
    assert set(table.loc[table["status"] == "ok", "detail"]) == {""}
    sizes = table[["width", "height"]].apply(tuple, axis=1)
    assert sizes["portrait.webm"] == (240, 427)
    assert sizes["odd.webm"] == (427, 239)
    assert sizes["rotated.mov"] == (64, 128)


def test_packets_count_the_same_and_only_miss_damage(folder: Path) -> None:
    table = index(folder, "packets")
    found = table.loc[table["status"] == "ok", "frames"].to_dict()
    assert {name: found.pop(name) for name in USABLE} == USABLE
    assert set(found) <= {"damaged.webm", "damaged.mp4"}


@pytest.mark.parametrize("without_decord", [False, True])
def test_usable_files_are_read_as_indexed(
    folder: Path, without_decord: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if without_decord:
        monkeypatch.setattr(decode, "find_decord", lambda: None)
    for name, frames in USABLE.items():
        pixels = open_video(folder / name).frames(range(frames))
        header, _ = examine(folder / name, "packets")
        assert pixels.shape == (frames, header.height, header.width, 3), name
        if name not in ("rotated.mov", "portrait.webm", "odd.webm", "tiny.webm"):
            first = 5 if name == "edit list.mp4" else 0
            assert levels(pixels) == list(range(first, first + frames)), name


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_rotated_video_is_shown_upright(write_video, tmp_path, degrees, ending):
    frames = natural(4, 64, 128)
    path = write_video(tmp_path / "turned.mp4", frames, codec="mpeg4")
    patch_matrix(path, degrees)
    if ending == "mkv":
        path = remux(path, tmp_path / "turned.mkv")
    pixels = open_video(path).frames([0, 3])
    upright = np.rot90(frames[[0, 3]], -degrees // 90, axes=(1, 2))
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < 6
    header, _ = examine(path, "packets")
    assert (header.height, header.width) == upright.shape[1:3]


@pytest.mark.parametrize("name", ["natural.webm", "variable.webm", "turned.mov"])
def test_the_decoders_give_the_same_frames_at_the_same_times(write_video, tmp_path, name):
    decord = pytest.importorskip("decord")
    mov = {"codec": "mpeg4"} if name.endswith("mov") else {}
    times = [*range(10), *range(10, 60, 5)] if name == "variable.webm" else None
    height, width = (96, 160) if mov else (240, 427)
    path = write_video(tmp_path / name, natural(20, height, width), times=times, **mov)
    if mov:
        patch_matrix(path, 90)
    decoded = decode._DecordReader(path, decord)
    ours, theirs = decode._PyAVReader(path).frames(range(20)), decoded.frames(range(20))
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).mean(axis=(1, 2, 3)).max() <= 2
    # The clip moves, so that a decoder that is one frame off would be seen.
    assert np.abs(np.diff(ours.astype(int), axis=0)).mean() > 4
    with av.open(str(path)) as container:
        shown = [frame.time for frame in container.decode(video=0)]
    assert decoded._reader.get_frame_timestamp(range(20))[:, 0].tolist() == pytest.approx(shown, abs=2e-3)


@pytest.mark.parametrize("codec", ["libvpx-vp9", "libvpx"])
def test_frames_that_change_size_get_the_size_of_the_first(write_video, tmp_path, codec, monkeypatch):
    large = natural(20, 96, 160)
    first = write_video(tmp_path / "first.webm", large[:10], codec=codec)
    second = write_video(tmp_path / "second.webm", large[10:, ::2, ::2], codec=codec)
    path = tmp_path / "both.webm"
    with av.open(str(first)) as one, av.open(str(second)) as other, av.open(str(path), "w") as output:
        stream = output.add_stream_from_template(one.streams.video[0])
        packets = [p for given in (one, other) for p in given.demux(video=0) if p.size]
        for number, packet in enumerate(packets):
            packet.pts = packet.dts = round(number / 12 / packet.time_base)
            packet.stream = stream
            output.mux(packet)
    assert examine(path)[1] == 20
    ours = open_video(path).frames([3, 15])
    monkeypatch.setattr(decode, "find_decord", lambda: None)
    theirs = open_video(path).frames([3, 15])
    assert ours.shape == theirs.shape == (2, 96, 160, 3)
    assert open_video(path).frames([15]).shape == (1, 96, 160, 3)
    assert np.abs(ours.astype(int) - theirs).mean(axis=(1, 2, 3)).max() <= 2


def write_frames(folder: Path, pictures: Any, pattern: str = "{:05d}.jpg", start: int = 1) -> Path:
    folder.mkdir(parents=True)
    for number, picture in enumerate(pictures, start=start):
        Image.fromarray(picture).save(folder / pattern.format(number), quality=95)
    return folder


@pytest.mark.parametrize(
    ("pattern", "start"),
    [
        ("{:05d}.jpg", 1), ("img_{:05d}.jpg", 1), ("{}.JPEG", 0), ("{}.jpg", 95), ("frame{:06d}.jpg", 1),
        ("v_Run_g01_c02_{:04d}.jpg", 1), ("v_{:05d}.jpg", 1), ("image_{:05d}.PNG", 0), ("{}.png", 1),
    ],
)  # fmt: skip
def test_a_folder_of_frames_is_a_video(numbered_frames, tmp_path, pattern, start):
    folder = write_frames(tmp_path / "12", numbered_frames(12, 36, 64), pattern, start)
    (folder / "Thumbs.db").touch()
    header, count = examine(folder)
    codec = "png" if pattern.lower().endswith("png") else "jpeg"
    assert (count, header.width, header.height, header.codec) == (12, 64, 36, codec)
    assert (header.fps, header.duration) == (None, None)
    reader = open_video(folder)
    frames = reader.frames([11, 0, 3, 3])
    assert frames.dtype == np.uint8
    assert frames.shape == (4, 36, 64, 3)
    assert levels(frames) == [11, 0, 3, 3]
    with pytest.raises(DecodeError, match="has 12 frames, frame 12 was requested"):
        reader.frames([12])


@pytest.mark.parametrize("flow", ["flow_{}_", "{}_"])
def test_optical_flow_beside_the_frames_is_left_out(numbered_frames, tmp_path, flow):
    """As mmaction2 and TSN write it; files without a number do not matter either."""
    folder = write_frames(tmp_path / "1", numbered_frames(12), "img_{:05d}.jpg")
    for axis in "xy":
        source = write_frames(tmp_path / axis, numbered_frames(11)[::-1], flow.format(axis) + "{:05d}.jpg")
        for file in source.iterdir():
            file.rename(folder / file.name)
    (folder / "cover.jpg").touch()
    assert examine(folder)[1] == 12
    assert levels(open_video(folder).frames(range(12))) == list(range(12))


FOLDERS = {
    "two kinds": (["img_1.jpg", "1.jpg"], r"frames of several kinds \(\*\.jpg, img_\*\.jpg; keep one"),
    "two types": (["1.jpg", "1.png"], r"frames of several kinds \(\*\.jpg, \*\.png; keep one"),
    "a prefix each": ([f"{n:.1f}s1.jpg" for n in range(9)], r"0\.0s\*\.jpg, .*4\.0s\*\.jpg and 4 more; keep"),
    "one number twice": (
        ["1.jpg", "00001.jpg"],
        r"several kinds \(00001\.jpg and 1\.jpg have the same number; keep",
    ),
    "only flow": (
        ["flow_x_1.jpg", "flow_y_1.jpg"],
        r"no frames \(only optical flow: flow_x_\*\.jpg, flow_y_\*\.jpg; ex",
    ),
    "another type": (
        ["1.bmp", "2.bmp"],
        r"no frames \(it holds files such as 1\.bmp; expected files such as 00001\.jpg",
    ),
    "words at the end": (["1_rgb.jpg"], r"no frames \(it holds files such as 1_rgb\.jpg; expected"),
    "folders": (["rgb/1.jpg"], r"no frames \(it holds the folder rgb; expected"),
    "nothing": ([], r"no frames \(an empty folder; expected"),
    "a gap": (
        ["1.jpg", "2.jpg", "4.jpg", "6.jpg"],
        r"frames missing \(no number 3, 5 between 1\.jpg and 6\.jpg\)",
    ),
    "gaps": (["1.jpg", "10.jpg"], r"\(no number 2, 3, 4, 5, 6 and 3 more between 1\.jpg and 10\.jpg\)"),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folders_that_are_unclear_say_what_they_hold(tmp_path, case):
    names, words = FOLDERS[case]
    for name in names:
        file = tmp_path / "clip" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(file)
    (tmp_path / "clip").mkdir(exist_ok=True)
    with pytest.raises(DecodeError, match=rf"/clip: .*{words}"):
        examine(tmp_path / "clip")


def test_pictures_that_are_not_of_8_bits_are_refused(tmp_path):
    """Such as depth in PNG: Pillow would clip their values."""
    folder = tmp_path / "1"
    folder.mkdir()
    Image.fromarray(np.full((8, 8), 300, np.uint16)).save(folder / "1.png")
    with pytest.raises(DecodeError, match=r"does not decode \(1\.png: 16 or 32 bits a pixel"):
        examine(folder)


def second_is(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: change(folder / "00002.jpg")


@pytest.mark.parametrize(
    ("spoil", "reason", "detail"),
    [
        (second_is(Path.unlink), "frames missing", "no number 2 between 00001.jpg and 00004.jpg"),
        (second_is(lambda file: cut(file, 0.5)), "does not decode", "00002.jpg: "),
        (
            second_is(lambda file: file.write_bytes(b"")),
            "does not decode",
            "00002.jpg: cannot identify image file '2/00002.jpg'",
        ),
        (
            second_is(lambda file: Image.new("RGB", (8, 8)).save(file)),
            "frames change size",
            "from 00001.jpg to 00002.jpg",
        ),
        (
            lambda folder: [file.unlink() for file in folder.iterdir()],
            "no frames",
            "an empty folder; expected",
        ),
    ],
    ids=["gap", "cut", "empty", "size", "none"],
)
def test_a_broken_folder_of_frames(numbered_frames, tmp_path, spoil, reason, detail):
    write_frames(tmp_path / "1", numbered_frames(4))
    spoil(write_frames(tmp_path / "2", numbered_frames(4)))
    table = index_videos(tmp_path, list_videos(tmp_path, "frames"), entries=tmp_path / ".index/0-of-1.jsonl")
    assert table["id"].tolist() == table["path"].tolist() == ["1", "2"]
    assert table["reason"].tolist() == ["", reason]
    assert table["detail"].iloc[1].startswith(detail)
    assert table["frames"].tolist()[0] == 4
    assert table["bytes"].iloc[0] == sum(file.stat().st_size for file in (tmp_path / "1").iterdir())
