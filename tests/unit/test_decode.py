"""Both decoders, on videos made here: right frames, agreement, and files that are none."""

import pickle

import av
import numpy as np
import pytest

from ffnrepro.data import decode
from ffnrepro.data.decode import DecodeError, examine, open_video


@pytest.fixture(params=["decord", "pyav"])
def decoder(request, monkeypatch):
    if request.param == "decord":
        pytest.importorskip("decord")
    else:
        monkeypatch.setattr(decode, "_import_decord", lambda: None)


def levels(frames):
    """Frame numbers, read back from the grey levels."""
    return np.round((frames.mean(axis=(1, 2, 3)) - 20) / 4).astype(int).tolist()


def natural(frames, height, width):
    """A coloured texture that moves."""
    noise = np.random.default_rng(0).uniform(0, 255, (height // 8 + 2, width // 8 + 2, 3))
    large = np.kron(noise, np.ones((8, 8, 1)))
    smooth = sum(np.roll(large, (dy, dx), (0, 1)) for dy in range(-4, 5, 2) for dx in range(-4, 5, 2)) / 25
    return np.stack([np.roll(smooth, 3 * t, 1)[:height, :width].astype(np.uint8) for t in range(frames)])


class Pipe:
    """A file that cannot go back to write the duration into its header."""

    def __init__(self, file):
        self.write = file.write


@pytest.fixture(scope="module")
def clip(write_video, numbered_frames, tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("clip") / "clip.webm", numbered_frames(24, 36, 64))


@pytest.mark.parametrize("indices", [[0], [23], [0, 5, 6, 23], [23, 2, 2, 11, 0], list(range(24))])
@pytest.mark.usefixtures("decoder")
def test_frames_come_as_asked(clip, indices):
    frames = open_video(clip).frames(indices)
    assert frames.dtype == np.uint8
    assert frames.shape == (len(indices), 36, 64, 3)
    assert levels(frames) == indices


@pytest.mark.usefixtures("decoder")
def test_each_frame_is_decoded_once(clip, monkeypatch):
    reader = open_video(clip)
    asked, decode_frames = [], reader._decode
    monkeypatch.setattr(
        reader, "_decode", lambda ascending: (asked.append(ascending), decode_frames(ascending))[1]
    )
    assert levels(reader.frames([9, 3, 9, 4])) == [9, 3, 9, 4]
    assert asked == [[3, 4, 9]]


@pytest.mark.usefixtures("decoder")
def test_the_header_is_told(clip):
    reader = open_video(clip)
    assert len(reader) == 24
    assert (reader.width, reader.height, reader.codec) == (64, 36, "vp9")
    assert reader.fps == pytest.approx(12)
    assert reader.duration == pytest.approx(2.0, abs=0.01)


def test_the_two_decoders_agree(write_video, tmp_path, monkeypatch):
    pytest.importorskip("decord")
    path = write_video(tmp_path / "clip.webm", natural(30, 240, 427))
    indices = [0, 3, 4, 17, 29]
    reader = open_video(path)
    assert isinstance(reader, decode._DecordReader)
    ours = reader.frames(indices).astype(int)
    monkeypatch.setattr(decode, "_import_decord", lambda: None)
    other = open_video(path)
    assert isinstance(other, decode._PyAVReader)
    theirs = other.frames(indices).astype(int)
    assert ours.shape == theirs.shape == (5, 240, 427, 3)
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a - b).mean() <= 2
    # The clip moves, so a decoder that is one frame off would be seen.
    assert np.abs(ours[1] - ours[2]).mean() > 4


@pytest.mark.parametrize(("height", "width"), [(240, 427), (35, 61), (64, 48)])
@pytest.mark.usefixtures("decoder")
def test_any_width_decodes(write_video, numbered_frames, tmp_path, height, width):
    path = write_video(tmp_path / "clip.webm", numbered_frames(6, height, width))
    frames = open_video(path).frames([1, 5])
    assert frames.shape == (2, height, width, 3)
    assert levels(frames) == [1, 5]


@pytest.mark.usefixtures("decoder")
def test_a_clip_of_one_frame(write_video, numbered_frames, tmp_path):
    path = write_video(tmp_path / "one.webm", numbered_frames(1))
    reader = open_video(path)
    assert len(reader) == 1
    assert levels(reader.frames([0, 0, 0])) == [0, 0, 0]
    assert examine(path)[1] == 1


@pytest.mark.usefixtures("decoder")
def test_a_clip_without_duration(write_video, numbered_frames, tmp_path):
    path = tmp_path / "piped.webm"
    with path.open("wb") as file:
        write_video(Pipe(file), numbered_frames(12), container="webm")
    reader = open_video(path)
    assert reader.duration is None
    assert len(reader) == 12
    assert levels(reader.frames([11, 4])) == [11, 4]


@pytest.mark.usefixtures("decoder")
def test_an_mp4_under_another_name(write_video, numbered_frames, tmp_path):
    path = write_video(tmp_path / "clip.webm", numbered_frames(10), codec="mpeg4", container="mp4")
    reader = open_video(path)
    assert reader.codec == "mpeg4"
    assert levels(reader.frames([0, 9])) == [0, 9]


@pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="PyAV was built without an AV1 encoder")
@pytest.mark.usefixtures("decoder")
def test_an_av1_clip_which_decord_refuses(write_video, numbered_frames, tmp_path):
    path = write_video(tmp_path / "av1.mp4", numbered_frames(6), codec="libsvtav1")
    assert levels(open_video(path).frames([5, 0])) == [5, 0]
    assert examine(path)[1] == 6


@pytest.mark.parametrize("name", ["name with space.webm", "a:b.webm", "%03d.webm", "ünï.webm"])
@pytest.mark.usefixtures("decoder")
def test_any_name(write_video, numbered_frames, tmp_path, name):
    write_video(tmp_path / "plain.webm", numbered_frames(4))
    path = (tmp_path / "plain.webm").rename(tmp_path / name)
    assert levels(open_video(path).frames([3])) == [3]
    assert levels(open_video(str(path)).frames([3])) == [3]
    assert examine(path)[1] == 4


@pytest.mark.usefixtures("decoder")
def test_a_relative_name_with_a_colon_is_no_address(write_video, numbered_frames, tmp_path, monkeypatch):
    write_video(tmp_path / "plain.webm", numbered_frames(4)).rename(tmp_path / "a:b.webm")
    monkeypatch.chdir(tmp_path)
    assert levels(open_video("a:b.webm").frames([3])) == [3]
    assert examine("a:b.webm")[1] == 4


def audio_only(path):
    with av.open(str(path), "w", format="matroska") as output:
        stream = output.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def page(path):
    path.write_text("<!DOCTYPE html><html><body>502 Bad Gateway</body></html>")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_bytes(b""), "empty file"),
        (lambda path: path.unlink(missing_ok=True), "no such file"),
        (audio_only, "no video stream"),
        (page, "a web page, not a video"),
        (lambda path: path.write_text("see attachment"), "text, not a video"),
        (lambda path: path.write_bytes(b"\x1a\x45\xdf\xa3" + bytes(296)), "does not open"),
    ],
    ids=["empty", "missing", "audio", "page", "text", "header"],
)
@pytest.mark.parametrize("read", [open_video, examine])
@pytest.mark.usefixtures("decoder")
def test_what_is_no_video_is_named_with_its_reason(tmp_path, make, reason, read):
    path = tmp_path / "bad file.webm"
    make(path)
    with pytest.raises(DecodeError, match=r"bad file\.webm") as caught:
        read(path)
    assert caught.value.reason == reason
    assert reason in str(caught.value)
    copy = pickle.loads(pickle.dumps(caught.value))  # what a loader worker does with it
    assert (str(copy), copy.reason) == (str(caught.value), reason)


@pytest.mark.parametrize("name", ["README.txt", "notes.nfo", "art.ans", "a.asc"])
@pytest.mark.parametrize("read", [open_video, examine])
def test_text_whose_ending_ffmpeg_draws_as_a_picture(tmp_path, name, read):
    path = tmp_path / name
    path.write_text("see the web page\n" * 40)
    with pytest.raises(DecodeError, match="text, not a video"):
        read(path)


@pytest.mark.usefixtures("decoder")
def test_damage_in_the_middle_is_an_error(write_video, tmp_path):
    path = write_video(tmp_path / "clip.webm", natural(24, 96, 128))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"clip\.webm: does not decode"):
        examine(path)
    with pytest.raises(DecodeError, match=r"clip\.webm"):
        open_video(path).frames(range(24))


@pytest.mark.usefixtures("decoder")
def test_a_frame_behind_the_end_is_an_error(clip):
    with pytest.raises(DecodeError, match=r"clip\.webm: has 24 frames, frame 24 was asked for"):
        open_video(clip).frames([3, 24])


@pytest.mark.parametrize("indices", [[], [-1]])
@pytest.mark.usefixtures("decoder")
def test_indices_that_make_no_sense(clip, indices):
    with pytest.raises(ValueError, match="from 0"):
        open_video(clip).frames(indices)
