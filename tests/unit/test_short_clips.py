"""Videos about as long as the frame counts, from a file to a sample: the frames that a network really sees."""

import numpy as np
import pandas as pd
import pytest

from ffnrepro.data.decode import open_video
from ffnrepro.recipe.clips import ClipDataset

LENGTHS = (1, 2, 3, 8, 15, 16, 17)


@pytest.fixture(scope="module")
def clips(tmp_path_factory, write_video, numbered_frames):
    folder = tmp_path_factory.mktemp("clips")
    for length in LENGTHS:
        write_video(folder / f"{length}.webm", numbered_frames(length))
    return folder


def seen(clip):
    """Return the numbers of the frames of a clip (3, T, S, S), from their grey levels."""
    return np.rint((clip.float().mean(dim=(0, 2, 3)).numpy() - 20) / 4).astype(int).tolist()


@pytest.mark.parametrize("crop", ["centre", "multi_scale"])
@pytest.mark.parametrize("length", LENGTHS)
def test_frames_of_short_clips(clips, length, crop):
    table = pd.DataFrame({"id": ["a"], "path": [f"{length}.webm"], "frames": [length], "class": [0]})
    data = ClipDataset(
        manifest=table,
        videos=clips,
        open_video=open_video,
        frame_counts=(4, 8, 16),
        size=32,
        short_side=40,
        crop=crop,
    )
    sample, _ = data[0 if crop == "centre" else (0, 0)]
    assert list(sample) == [4, 8, 16]
    for frames, clip in sample.items():
        found = seen(clip)
        assert len(found) == frames
        assert found == sorted(found)
        counts = [found.count(frame) for frame in range(length)]
        assert sum(counts) == frames
        if length == frames:
            assert counts == [1] * frames
        elif length < frames:
            # Every frame, repeated evenly.
            assert min(counts) >= 1
            assert max(counts) - min(counts) <= 1
        else:
            assert max(counts) == 1
