"""Data sets on videos whose pixels tell the frame and the place that they come from."""

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, default_collate

from ffnrepro.data.decode import DecodeError
from ffnrepro.recipe import clips as module
from ffnrepro.recipe.clips import ClipDataset, EpochSampler, FrameCountsDataset, collate_clips
from ffnrepro.recipe.sampling import segment_indices
from ffnrepro.recipe.transforms import evaluation_crop

FRAMES = (46, 30, 16, 3)


class Coordinates:
    """Stands for a video: red is the column, green the row and blue the number of the frame."""

    opened: list[str]
    asked: list[list[int]]

    def __init__(self, path, frames):
        rows, columns = np.mgrid[:120, :200]
        picture = np.stack([columns, 2 * rows, 0 * rows], axis=-1).astype(np.uint8)
        self.video = np.repeat(picture[None], frames, axis=0)
        self.video[..., 2] = 5 * np.arange(frames)[:, None, None]
        Coordinates.opened.append(Path(path).name)

    def frames(self, indices):
        Coordinates.asked.append(list(indices))
        return self.video[np.asarray(indices)]


@pytest.fixture
def manifest(monkeypatch):
    table = pd.DataFrame(
        {
            "id": [str(number) for number in range(len(FRAMES))],
            "path": [f"{number}.webm" for number in range(len(FRAMES))],
            "frames": FRAMES,
            "class": pd.array([7, 0, 3, 1], dtype="Int64"),
        }
    )
    Coordinates.opened, Coordinates.asked = [], []
    monkeypatch.setattr(module, "open_video", lambda path: Coordinates(path, FRAMES[int(Path(path).stem)]))
    return table


def build(cls, manifest, **options):
    return cls(
        manifest=manifest,
        videos=Path("videos"),
        **{"size": 32, "short_side": 40, "crop": "multi_scale", **options},
    )


def numbers(clip):
    """Frame numbers of a clip (3, T, S, S), read back from blue."""
    blue = clip[2].float()
    assert (blue.amax((1, 2)) == blue.amin((1, 2))).all()
    return (blue.mean((1, 2)) / 5).round().long().tolist()


def test_evaluation_is_the_centre_frames_and_the_centre_crop(manifest):
    data = build(ClipDataset, manifest, frames=8, crop="centre")
    assert len(data) == 4
    for index in range(4):
        clip, label = data[index]
        assert clip.dtype == torch.uint8
        assert clip.shape == (3, 8, 32, 32)
        assert label == [7, 0, 3, 1][index]
        assert isinstance(label, int)
        chosen = segment_indices(FRAMES[index], 8)
        assert numbers(clip) == chosen.tolist()
        expected = evaluation_crop(Coordinates("x", FRAMES[index]).video[chosen], 40, 32)
        assert torch.equal(clip, expected.transpose(0, 1))
    assert torch.equal(data[(5, 1)][0], data[1][0])


def test_evaluation_of_several_frame_counts_is_that_of_each(manifest):
    clips, label = build(FrameCountsDataset, manifest, frame_counts=(4, 8, 16), crop="centre")[0]
    assert label == 7
    for count, clip in zip((4, 8, 16), clips, strict=True):
        assert torch.equal(clip, build(ClipDataset, manifest, frames=count, crop="centre")[0][0])


@pytest.mark.parametrize("crop", ["multi_scale", "random"])
def test_clips_of_a_sample_share_the_crop_and_one_decoding(manifest, crop):
    data = build(FrameCountsDataset, manifest, frame_counts=(16, 4, 8), crop=crop)
    places = set()
    for epoch in range(20):
        Coordinates.opened, Coordinates.asked = [], []
        clips, label = data[(epoch, 0)]
        assert label == 7
        assert [clip.shape for clip in clips] == [(3, count, 32, 32) for count in (16, 4, 8)]
        assert Coordinates.opened == ["0.webm"]
        (asked,) = Coordinates.asked
        assert asked == sorted({number for clip in clips for number in numbers(clip)})
        place = clips[0][:2, :1]
        for clip in clips:
            assert torch.equal(clip[:2], place.expand_as(clip[:2]))
        places.add(place.numpy().tobytes())
    assert len(places) > 10


@pytest.mark.parametrize("crop", ["multi_scale", "random"])
def test_training_draws_each_frame_count_from_its_own_segments(manifest, crop):
    data = build(FrameCountsDataset, manifest, frame_counts=(4, 8, 16), crop=crop)
    drawn = [[numbers(clip) for clip in data[(epoch, 0)][0]] for epoch in range(40)]
    for row in drawn:
        for chosen in row:
            count = len(chosen)
            assert [number * count // 46 for number in chosen] == list(range(count))
    # Nested frames, or one stream for all counts, would tie them together.
    assert sum(set(row[0]) <= set(row[2]) for row in drawn) < 20
    assert len({tuple(row[0]) for row in drawn}) > 30
    assert {number for row in drawn for number in row[2]} == set(range(46))


def test_no_flip(manifest):
    data = build(ClipDataset, manifest, frames=4)
    for epoch in range(60):
        clip, _ = data[(epoch, 0)]
        assert (clip[0].float().diff(dim=2) >= 0).all()
        assert (clip[1].float().diff(dim=1) >= 0).all()


def test_a_sample_is_a_function_of_seed_epoch_and_index(manifest):
    data = build(ClipDataset, manifest, frames=8, crop="random", seed=3)
    first = {key: data[key][0] for key in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    again = pickle.loads(pickle.dumps(data))  # as a spawned worker gets it, asked in another order
    for key in reversed(first):
        assert torch.equal(again[key][0], first[key])
    assert not torch.equal(first[(0, 0)], first[(1, 0)])
    assert not torch.equal(
        first[(0, 0)], build(ClipDataset, manifest, frames=8, crop="random", seed=4)[(0, 0)][0]
    )
    twins = manifest.assign(path="0.webm", frames=46)
    same_video = build(ClipDataset, twins, frames=8, crop="random", seed=3)
    assert not torch.equal(same_video[(0, 0)][0], same_video[(0, 1)][0])


def test_training_needs_the_epoch(manifest):
    with pytest.raises(TypeError, match="EpochSampler"):
        build(ClipDataset, manifest, frames=4)[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"crop": "center"}, "multi_scale, random or centre"),
        ({"frames": 0}, "at least 1 frame"),
        ({"size": 48}, "does not fit"),
    ],
)
def test_what_makes_no_sense_is_refused(manifest, options, words):
    with pytest.raises(ValueError, match=words):
        build(ClipDataset, manifest, **{"frames": 4, **options})


def test_rows_without_a_class_are_refused(manifest):
    manifest["class"] = pd.array([0, None, 1, 2], dtype="Int64")
    with pytest.raises(ValueError, match="without a class"):
        build(ClipDataset, manifest, frames=4, crop="centre")


def test_cache_decodes_a_video_once_and_changes_nothing(manifest):
    plain = build(FrameCountsDataset, manifest, frame_counts=(4, 8), seed=1)
    cached = build(FrameCountsDataset, manifest, frame_counts=(4, 8), seed=1, cache=True)
    expected = [plain[(epoch, index)] for epoch in range(3) for index in range(4)]
    Coordinates.opened = []
    got = [cached[(epoch, index)] for epoch in range(3) for index in range(4)]
    assert sorted(Coordinates.opened) == ["0.webm", "1.webm", "2.webm", "3.webm"]
    for (ours, label), (theirs, other) in zip(got, expected, strict=True):
        assert label == other
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert len(pickle.dumps(cached)) < 10_000


def test_collate_keeps_the_channel_last_in_memory(manifest):
    one = [build(ClipDataset, manifest, frames=4)[(0, index)] for index in range(3)]
    several = [build(FrameCountsDataset, manifest, frame_counts=(4, 8))[(0, index)] for index in range(3)]
    clips, labels = collate_clips(one)
    expected, expected_labels = default_collate(one)
    assert torch.equal(clips, expected)
    assert torch.equal(labels, expected_labels)
    assert labels.dtype == torch.int64
    assert clips.permute(0, 2, 3, 4, 1).is_contiguous()
    batch, labels = collate_clips(several)
    expected, _ = default_collate(several)
    assert labels.tolist() == [7, 0, 3]
    for ours, theirs, count in zip(batch, expected, (4, 8), strict=True):
        assert torch.equal(ours, theirs)
        folded = ours.transpose(1, 2).reshape(3 * count, 3, 32, 32)
        assert folded.data_ptr() == ours.data_ptr()
        assert folded.is_contiguous(memory_format=torch.channels_last)


def test_sampler_order_is_a_function_of_seed_and_epoch():
    sampler = EpochSampler(50, seed=2)
    assert len(sampler) == 50
    orders = {}
    for epoch in (0, 1, 2):
        sampler.set_epoch(epoch)
        pairs = list(sampler)
        assert {pair[0] for pair in pairs} == {epoch}
        assert sorted(pair[1] for pair in pairs) == list(range(50))
        assert all(isinstance(number, int) for pair in pairs for number in pair)
        assert list(sampler) == pairs
        orders[epoch] = pairs
    assert [i for _, i in orders[0]] != [i for _, i in orders[1]] != [i for _, i in orders[2]]
    resumed = EpochSampler(50, seed=2)
    resumed.set_epoch(2)
    assert list(resumed) == orders[2]
    resumed.set_epoch(2, start=30)
    assert list(resumed) == orders[2][30:]
    assert len(resumed) == 50
    resumed.set_epoch(1)
    assert list(resumed) == orders[1]
    other = EpochSampler(50, seed=3)
    assert list(other) != orders[0]


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_share_the_batches_of_one(processes):
    one, batch = EpochSampler(50, seed=2), 12
    shared = [
        EpochSampler(50, seed=2, batch_size=batch, rank=rank, processes=processes)
        for rank in range(processes)
    ]
    for sampler in (one, *shared):
        sampler.set_epoch(1)
    part = batch // processes
    seen = []
    for step in range(50 // batch):
        whole = list(one)[step * batch : (step + 1) * batch]
        parts = [list(sampler)[step * part : (step + 1) * part] for sampler in shared]
        assert [pair for pairs in parts for pair in pairs] == whole
        seen += whole
    assert len(set(seen)) == len(seen) == sum(len(sampler) for sampler in shared) == 48
    shared[1].set_epoch(1, start=2 * part)
    assert list(shared[1])[:part] == list(one)[2 * batch + part : 2 * batch + 2 * part]


@pytest.fixture(scope="module")
def videos(write_video, numbered_frames, tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number, frames in enumerate((20, 9, 1)):
        write_video(folder / f"clip {number}.webm", numbered_frames(frames, 48, 64))
    table = pd.DataFrame(
        {
            "id": [f"clip {number}" for number in range(3)],
            "path": [f"clip {number}.webm" for number in range(3)],
            "frames": [20, 9, 1],
            "class": [0, 1, 2],
        }
    )
    return folder, table


def test_real_videos_come_the_same_from_a_worker_and_without(videos):
    folder, table = videos
    data = FrameCountsDataset(
        manifest=table, videos=folder, frame_counts=(4, 8), size=32, short_side=40, crop="multi_scale", seed=1
    )
    sampler = EpochSampler(3, seed=1)
    sampler.set_epoch(4)

    def batches(**options):
        return list(DataLoader(data, batch_size=2, sampler=sampler, collate_fn=collate_clips, **options))

    alone = batches()
    # Spawned, as on Macs: the data set travels as a pickle.
    helped = batches(num_workers=1, multiprocessing_context="spawn")
    assert len(alone) == len(helped) == 2
    for (ours, labels), (theirs, other) in zip(alone, helped, strict=True):
        assert labels.tolist() == other.tolist()
        for a, b in zip(ours, theirs, strict=True):
            assert torch.equal(a, b)
            assert a.stride() == b.stride()


def _forbid_cuda(_):
    def refuse(*_):
        raise AssertionError("a loader worker called CUDA")

    torch.cuda._lazy_init = refuse


def test_workers_make_no_cuda_call(videos):
    folder, table = videos
    data = FrameCountsDataset(manifest=table, videos=folder, size=32, short_side=40, crop="multi_scale")
    loader = DataLoader(
        data, sampler=EpochSampler(3), collate_fn=collate_clips, num_workers=1, worker_init_fn=_forbid_cuda
    )
    assert len(list(loader)) == 3


def test_real_videos_give_the_frames_of_the_manifest(videos):
    folder, table = videos
    data = ClipDataset(manifest=table, videos=folder, frames=8, size=32, short_side=40, crop="centre")
    for index in range(3):
        clip, label = data[index]
        assert label == index
        found = ((clip.float().mean((0, 2, 3)) - 20) / 4).round().long().tolist()
        assert found == segment_indices(table["frames"][index], 8).tolist()


def test_a_broken_video_is_named(videos, tmp_path):
    _, table = videos
    (tmp_path / "clip 0.webm").write_bytes(b"no video")
    data = ClipDataset(manifest=table, videos=tmp_path, frames=8, crop="centre")
    with pytest.raises(DecodeError, match=r"clip 0\.webm"):
        data[0]
    with pytest.raises(DecodeError, match=r"clip 1\.webm: no such file"):
        data[1]
