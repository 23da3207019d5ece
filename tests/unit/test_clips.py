"""Samples from videos whose pixels encode their frame and position; order and batches of an epoch."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import default_collate

from ffnrepro.data.decode import open_video
from ffnrepro.recipe.clips import ClipDataset, collate_clips, evaluation_batches, training_batches
from ffnrepro.recipe.sampling import segment_indices
from ffnrepro.recipe.transforms import evaluation_crop

FRAMES = (46, 30, 16, 3)
CLASSES = [7, 0, 3, 1]


class Coordinates:
    """Stands for a video: red is the column, green the row and blue the number of the frame."""

    opened: list[str]
    asked: list[list[int]]

    def __init__(self, path, frames=None):
        rows, columns = np.mgrid[:120, :200]
        picture = np.stack([columns, 2 * rows, 0 * rows], axis=-1).astype(np.uint8)
        self.video = np.repeat(picture[None], frames or FRAMES[int(Path(path).stem)], axis=0)
        self.video[..., 2] = 5 * np.arange(len(self.video))[:, None, None]
        Coordinates.opened.append(Path(path).name)

    def frames(self, indices):
        Coordinates.asked.append(list(indices))
        return self.video[np.asarray(indices)]


@pytest.fixture
def manifest():
    Coordinates.opened, Coordinates.asked = [], []
    return pd.DataFrame(
        {
            "id": [str(number) for number in range(len(FRAMES))],
            "path": [f"{number}.webm" for number in range(len(FRAMES))],
            "frames": FRAMES,
            "class": pd.array(CLASSES, dtype="Int64"),
        }
    )


def build(manifest, *frame_counts, **options):
    options = {"crop": "multi_scale", "open_video": Coordinates, "videos": Path("videos"), **options}
    return ClipDataset(
        manifest=manifest, frame_counts=frame_counts, **{"size": 32, "short_side": 40, **options}
    )


def numbers(clip):
    """Frame numbers of a clip (3, T, S, S), read back from blue."""
    blue = clip[2].float()
    assert (blue.amax((1, 2)) == blue.amin((1, 2))).all()
    return (blue.mean((1, 2)) / 5).round().long().tolist()


# --- Samples ---------------------------------------------------------------------------------------------------


def test_evaluation_is_the_centre_frames_and_the_centre_crop(manifest):
    data = build(manifest, 4, 8, 16, crop="centre")
    assert len(data) == 4
    for index in range(4):
        clips, label = data[index]
        assert label == CLASSES[index]
        assert isinstance(label, int)
        assert list(clips) == [4, 8, 16]
        for count, clip in clips.items():
            assert clip.dtype == torch.uint8
            chosen = segment_indices(FRAMES[index], count)
            expected = evaluation_crop(Coordinates("x", FRAMES[index]).video[chosen], 40, 32)
            assert torch.equal(clip, expected.transpose(0, 1))
    assert torch.equal(data[(5, 1)][0][8], data[1][0][8])


@pytest.mark.parametrize("crop", ["multi_scale", "random"])
def test_clips_of_a_sample_share_the_crop_and_one_decoding(manifest, crop):
    data = build(manifest, 4, 8, 16, crop=crop)
    places = set()
    for epoch in range(20):
        Coordinates.opened, Coordinates.asked = [], []
        clips, label = data[(epoch, 0)]
        assert label == 7
        assert {count: tuple(clip.shape) for count, clip in clips.items()} == {
            count: (3, count, 32, 32) for count in (4, 8, 16)
        }
        assert Coordinates.opened == ["0.webm"]
        (asked,) = Coordinates.asked
        assert asked == sorted({number for clip in clips.values() for number in numbers(clip)})
        place = clips[4][:2, :1]
        for clip in clips.values():
            assert torch.equal(clip[:2], place.expand_as(clip[:2]))
            # No mirrored picture: columns and rows rise.
            assert (clip[0].float().diff(dim=2) >= 0).all()
            assert (clip[1].float().diff(dim=1) >= 0).all()
        places.add(place.numpy().tobytes())
    assert len(places) > 10


@pytest.mark.parametrize("crop", ["multi_scale", "random"])
def test_a_flip_mirrors_all_clips_of_half_of_the_samples_and_changes_nothing_else(manifest, crop):
    plain, flipped = (build(manifest, 4, 8, crop=crop, flip=flip) for flip in (False, True))
    mirrored = 0
    for epoch in range(200):
        expected, found = plain[(epoch, 0)][0], flipped[(epoch, 0)][0]
        # Columns rise in a plain picture and fall in a mirrored one.
        mirror = bool(found[4][0, 0, 0, 0] > found[4][0, 0, 0, -1])
        mirrored += mirror
        for count, clip in found.items():
            assert torch.equal(
                clip, expected[count][..., list(reversed(range(32)))] if mirror else expected[count]
            )
    # Of 200 tosses, 74 to 126 heads in all but 3 of 10,000 cases.
    assert 74 <= mirrored <= 126
    centre = build(manifest, 4, crop="centre", flip=True)[0][0][4]
    assert torch.equal(centre, build(manifest, 4, crop="centre")[0][0][4])


def test_training_draws_each_frame_count_from_its_own_segments(manifest):
    data = build(manifest, 4, 8, 16)
    drawn = [[numbers(clip) for clip in data[(epoch, 0)][0].values()] for epoch in range(40)]
    for row in drawn:
        for chosen in row:
            count = len(chosen)
            assert [number * count // 46 for number in chosen] == list(range(count))
    # Nested frames, or one stream for all counts, would tie them together.
    assert sum(set(row[0]) <= set(row[2]) for row in drawn) < 20
    assert len({tuple(row[0]) for row in drawn}) > 30
    assert {number for row in drawn for number in row[2]} == set(range(46))


@pytest.mark.parametrize("options", [{}, {"cache": True}])
def test_a_sample_is_a_function_of_seed_epoch_and_index(manifest, options):
    data = build(manifest, 8, crop="random", seed=3, **options)
    first = {key: data[key][0][8] for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    # The copy that a spawned worker gets, with samples requested in another order.
    again = pickle.loads(pickle.dumps(data))
    for key in reversed(first):
        assert torch.equal(again[key][0][8], first[key])
    assert not torch.equal(first[(0, 0)], first[(1, 0)])
    other_seed = build(manifest, 8, crop="random", seed=4)
    assert not torch.equal(first[(0, 0)], other_seed[(0, 0)][0][8])
    same_video = build(manifest.assign(path="0.webm", frames=46), 8, crop="random", seed=3)
    assert not torch.equal(same_video[(0, 0)][0][8], same_video[(0, 1)][0][8])


def test_cache_decodes_a_video_once_and_changes_nothing(manifest):
    plain, cached = (build(manifest, 4, 8, seed=1, cache=cache) for cache in (False, True))
    keys = [(epoch, index) for epoch in range(3) for index in range(4)]
    expected = [plain[key] for key in keys]
    Coordinates.opened = []
    got = [cached[key] for key in keys]
    assert sorted(Coordinates.opened) == ["0.webm", "1.webm", "2.webm", "3.webm"]
    for (ours, label), (theirs, other) in zip(got, expected, strict=True):
        assert label == other
        assert all(torch.equal(ours[count], theirs[count]) for count in (4, 8))
    assert len(pickle.dumps(cached)) < 10_000


@pytest.mark.parametrize(
    ("frame_counts", "options", "error", "words"),
    [
        ([4], {"crop": "center"}, ValueError, "multi_scale, random or centre"),
        ([0], {}, ValueError, "at least 1 frame"),
        ([], {}, ValueError, "at least 1 frame"),
        ([4], {"size": 48}, ValueError, "does not fit"),
        ([4], {"class": [0, None, 1, 2]}, ValueError, "without a class"),
        ([4], {}, TypeError, "by .epoch, index."),
    ],
)
def test_impossible_arguments_are_refused(manifest, frame_counts, options, error, words):
    if "class" in options:
        manifest["class"] = pd.array(options.pop("class"), dtype="Int64")
    with pytest.raises(error, match=words):
        build(manifest, *frame_counts, **options)[0]


# --- Real videos -----------------------------------------------------------------------------------------------

LENGTHS = (1, 3, 8, 15, 16, 17, 20)


@pytest.fixture(scope="module")
def videos(write_video, numbered_frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for length in LENGTHS:
        write_video(folder / f"clip {length}.webm", numbered_frames(length, 48, 64))
    table = pd.DataFrame(
        {
            "id": [f"clip {length}" for length in LENGTHS],
            "path": [f"clip {length}.webm" for length in LENGTHS],
            "frames": LENGTHS,
            "class": range(len(LENGTHS)),
        }
    )
    return folder, table


@pytest.mark.parametrize("crop", ["centre", "multi_scale"])
def test_frames_of_real_videos_around_the_frame_counts(videos, crop, monkeypatch):
    def refuse(*_):
        raise AssertionError("a worker that decodes must not touch CUDA")

    monkeypatch.setattr(torch.cuda, "_lazy_init", refuse)
    folder, table = videos
    data = build(table, 4, 8, 16, videos=folder, open_video=open_video, crop=crop)
    for index, length in enumerate(LENGTHS):
        clips, label = data[index if crop == "centre" else (0, index)]
        assert label == index
        for count, clip in clips.items():
            found = ((clip.float().mean((0, 2, 3)) - 20) / 4).round().long().tolist()
            if crop == "centre" or length <= count:
                assert found == [int((i + 0.5) * length / count) for i in range(count)]
            else:
                assert [number * count // length for number in found] == list(range(count))


# --- Batches ---------------------------------------------------------------------------------------------------


def test_collate_keeps_the_channel_last_in_memory(manifest):
    samples = [build(manifest, 4, 8, flip=True)[(0, index)] for index in range(3)]
    clips, labels = collate_clips(samples)
    expected, expected_labels = default_collate(samples)
    assert torch.equal(labels, expected_labels)
    assert labels.dtype == torch.int64
    assert list(clips) == [4, 8]
    for count, ours in clips.items():
        assert torch.equal(ours, expected[count])
        folded = ours.transpose(1, 2).reshape(3 * count, 3, 32, 32)
        assert folded.data_ptr() == ours.data_ptr()
        assert folded.is_contiguous(memory_format=torch.channels_last)


def test_order_of_an_epoch_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        batches = training_batches(50, seed=seed, epoch=epoch, batch_size=8)
        assert [len(batch) for batch in batches] == [8] * 6
        keys = [key for batch in batches for key in batch]
        assert {key[0] for key in keys} == {epoch}
        assert all(type(number) is int for key in keys for number in key)
        return [index for _, index in keys]

    orders = [order(2, 0), order(2, 1), order(2, 2), order(3, 0)]
    assert len(set(map(tuple, orders))) == 4
    assert order(2, 1) == orders[1]
    for indices in orders:
        # The last, incomplete batch is dropped, and so each epoch leaves out others.
        assert len(set(indices)) == 48
        assert set(indices) < set(range(50))
        assert indices != sorted(indices)
    assert len({frozenset(indices) for indices in orders}) > 1


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_share_the_batches_of_one(processes):
    whole = training_batches(50, seed=2, epoch=1, batch_size=12)
    shared = [
        training_batches(50, seed=2, epoch=1, batch_size=12, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    assert [[key for part in parts for key in part] for parts in zip(*shared, strict=True)] == whole
    assert {len(part) for parts in shared for part in parts} == {12 // processes}


@pytest.mark.parametrize("processes", [1, 2])
def test_fewer_samples_than_a_batch_make_no_step(processes):
    assert training_batches(7, seed=0, epoch=0, batch_size=8, processes=processes) == []


@pytest.mark.parametrize(("length", "processes"), [(10, 1), (11, 2), (1, 2)])
def test_evaluation_takes_each_sample_once_and_in_order(length, processes):
    batches = [
        evaluation_batches(length, batch_size=4, rank=rank, processes=processes) for rank in range(processes)
    ]
    indices = [[index for batch in part for index in batch] for part in batches]
    assert sorted(index for part in indices for index in part) == list(range(length))
    assert all(part == sorted(part) for part in indices)
    assert max(map(len, indices)) - min(map(len, indices)) <= 1
    assert all(len(batch) == 4 for part in batches for batch in part[:-1])
