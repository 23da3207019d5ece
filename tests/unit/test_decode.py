"""Both decoders, on videos made here: the right frames, and files that are no videos."""

import pickle

import av
import numpy as np
import pytest
from PIL import Image

from ffnrepro.data import decode
from ffnrepro.data.decode import DecodeError, examine, open_video


@pytest.fixture(params=["decord", "pyav"])
def decoder(request, monkeypatch):
    if request.param == "decord":
        pytest.importorskip("decord")
    else:
        monkeypatch.setattr(decode, "find_decord", lambda: None)


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
def test_frames_come_in_the_requested_order(clip, indices):
    frames = open_video(clip).frames(indices)
    assert frames.dtype == np.uint8
    assert frames.shape == (len(indices), 36, 64, 3)
    assert levels(frames) == indices


@pytest.mark.usefixtures("decoder")
def test_each_frame_is_decoded_once(clip, monkeypatch):
    reader = open_video(clip)
    decoded, decode_frames = [], reader._decode
    monkeypatch.setattr(
        reader, "_decode", lambda ascending: (decoded.append(ascending), decode_frames(ascending))[1]
    )
    assert levels(reader.frames([9, 3, 9, 4])) == [9, 3, 9, 4]
    assert decoded == [[3, 4, 9]]


def test_the_header(clip):
    header, frames = examine(clip)
    assert frames == 24
    assert (header.width, header.height, header.codec) == (64, 36, "vp9")
    assert header.fps == pytest.approx(12)
    assert header.duration == pytest.approx(2.0, abs=0.01)


def test_decord_reads_webm_only(clip, write_video, numbered_frames, tmp_path):
    pytest.importorskip("decord")
    assert isinstance(open_video(clip), decode._DecordReader)
    other = write_video(tmp_path / "clip.mp4", numbered_frames(2), codec="mpeg4")
    assert isinstance(open_video(other), decode._PyAVReader)


@pytest.mark.parametrize(("height", "width"), [(240, 427), (35, 61), (64, 48)])
@pytest.mark.usefixtures("decoder")
def test_any_width_decodes(write_video, numbered_frames, tmp_path, height, width):
    path = write_video(tmp_path / "clip.webm", numbered_frames(6, height, width))
    frames = open_video(path).frames([1, 5])
    assert frames.shape == (2, height, width, 3)
    assert levels(frames) == [1, 5]


@pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="PyAV was built without an AV1 encoder")
@pytest.mark.usefixtures("decoder")
def test_an_av1_clip_that_decord_refuses(write_video, numbered_frames, tmp_path):
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
def test_a_relative_name_with_a_colon_is_not_an_address(write_video, numbered_frames, tmp_path, monkeypatch):
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
        (lambda path: Image.new("RGB", (64, 48)).save(path, "JPEG"), "a picture, not a video"),
        (lambda path: Image.new("RGB", (64, 48)).save(path, "PNG"), "a picture, not a video"),
        (lambda path: path.write_text("see attachment"), "text, not a video"),
        (lambda path: path.write_bytes(b"\x1a\x45\xdf\xa3" + bytes(296)), "does not open"),
    ],
    ids=["empty", "missing", "audio", "page", "jpeg", "png", "text", "header"],
)
@pytest.mark.usefixtures("decoder")
def test_a_file_that_is_not_a_video_is_refused_with_the_reason(tmp_path, make, reason):
    path = tmp_path / "bad file.webm"
    make(path)
    with pytest.raises(DecodeError, match=r"bad file\.webm") as caught:
        open_video(path).frames([0])
    assert caught.value.reason == reason
    assert reason in str(caught.value)
    # As a worker of the loader does.
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.reason) == (str(caught.value), reason)


@pytest.mark.parametrize("name", ["README.txt", "notes.nfo", "art.ans", "a.asc"])
@pytest.mark.parametrize("read", [lambda path: open_video(path).frames([0]), examine])
def test_text_whose_ending_ffmpeg_draws_as_a_picture(tmp_path, name, read):
    path = tmp_path / name
    path.write_text("see the web page\n" * 40)
    with pytest.raises(DecodeError, match="text, not a video"):
        read(path)


@pytest.mark.usefixtures("decoder")
def test_damage_in_the_middle_is_an_error(write_video, tmp_path):
    """FFmpeg says that the container is damaged there, or ends quietly: that depends on its version and on the damage."""
    path = write_video(tmp_path / "clip.webm", natural(24, 96, 128))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2000] = np.random.default_rng(0).bytes(2000)
    path.write_bytes(content)
    with pytest.raises(DecodeError, match=r"clip\.webm: (does not decode|too few frames \(has \d+ frames)"):
        open_video(path).frames(range(24))
    with pytest.raises(DecodeError, match=r"clip\.webm: (does not decode|truncated or damaged \(ends at)"):
        examine(path)


@pytest.mark.usefixtures("decoder")
def test_a_frame_after_the_end_is_an_error(clip):
    with pytest.raises(
        DecodeError, match=r"clip\.webm: too few frames \(has 24 frames, frame 24 was requested"
    ):
        open_video(clip).frames([3, 24])


@pytest.mark.parametrize("indices", [[], [-1]])
@pytest.mark.usefixtures("decoder")
def test_invalid_indices(clip, indices):
    with pytest.raises(ValueError, match="from 0"):
        open_video(clip).frames(indices)
