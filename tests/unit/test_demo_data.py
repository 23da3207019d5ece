"""The demo data, judged by their decoded files."""

import json
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from ffnrepro.data import demo
from ffnrepro.data.demo import CLASSES, Clip, draw, encode, make_demo_data, plan
from ffnrepro.data.labels import read_labels
from ffnrepro.errors import UserError

SMALL = {"train_per_class": 2, "validation_per_class": 1, "frames": 6, "workers": 1}
LABELS = list(CLASSES)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "data"
    make_demo_data(folder, seed=3, **SMALL)
    return folder


def decoded(path_or_buffer):
    with av.open(path_or_buffer) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_a_seed_gives_its_files_whatever_the_number_of_threads(small, tmp_path):
    make_demo_data(tmp_path / "again", seed=3, **{**SMALL, "workers": 2})
    again = contents(tmp_path / "again")
    assert again == contents(small)
    assert len(again) == 36 + 5
    assert not any(Path(name).name.startswith(".") for name in again)


def test_another_seed_gives_other_clips(small, tmp_path):
    make_demo_data(tmp_path / "other", seed=4, **SMALL)
    videos = {content for name, content in contents(small).items() if name.startswith("videos/")}
    others = {content for name, content in contents(tmp_path / "other").items() if name.startswith("videos/")}
    assert len(videos) == len(others) == 36
    assert not videos & others


def test_label_files_are_those_of_something_something(small):
    classes = json.loads((small / "labels/labels.json").read_text())
    assert list(classes.values()) == [str(index) for index in range(12)]
    ids = []
    for split, count in (("train", 2), ("validation", 1)):
        rows = json.loads((small / f"labels/{split}.json").read_text())
        assert all(list(row) == ["id", "label", "template", "placeholders"] for row in rows)
        per_class = Counter(row["template"].replace("[", "").replace("]", "") for row in rows)
        assert per_class == dict.fromkeys(classes, count)
        for row in rows:
            assert row["template"].lower().count("[something]") == len(row["placeholders"])
            assert all(placeholder in row["label"] for placeholder in row["placeholders"])
            assert "[" not in row["label"]
        ids += [row["id"] for row in rows]
    assert sorted(f"{name}.webm" for name in ids) == sorted(
        path.name for path in (small / "videos").iterdir()
    )


def test_read_labels_reads_them(small):
    classes, table = read_labels(small / "labels")
    assert classes == [template.replace("[", "").replace("]", "") for template in CLASSES]
    assert table["split"].value_counts().to_dict() == {"train": 24, "validation": 12}
    assert table.groupby("split")["class"].nunique().to_dict() == {"train": 12, "validation": 12}


def test_ids_are_not_in_the_order_of_classes(small):
    templates = [row["template"] for row in json.loads((small / "labels/train.json").read_text())]
    assert templates != sorted(templates)
    assert len(set(templates[:8])) > 4


def test_videos_are_vp9(tmp_path):
    path = tmp_path / "clip.webm"
    encode(draw(Clip(0, 0, 0, 0, 48)), path)
    with av.open(path) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name in ("vp9", "libvpx-vp9")
        assert (stream.width, stream.height, stream.average_rate) == (64, 64, 12)
        assert container.duration == pytest.approx(4_000_000, abs=100_000)
        assert sum(1 for _ in container.decode(stream)) == 48
    assert path.stat().st_size < 20_000


def foreground(frames):
    """Return the pixels that differ from the most frequent colour of their frame, without any knowledge of the drawing."""
    frames = frames.astype(float) / 255
    common = np.median(frames.reshape(len(frames), -1, 3), axis=1)[:, None, None]
    return abs(frames - common).max(axis=-1) > 0.22


def measured(clip, tmp_path):
    """Measure centroid (x, y), spread and area, in picture widths, at the start and at the end of a decoded clip."""
    path = tmp_path / "clip.webm"
    encode(draw(clip), path)
    masks = foreground(decoded(str(path)))
    size = masks.shape[1]
    found = []
    for mask in masks:
        y, x = (np.nonzero(mask)[axis] / size for axis in (0, 1))
        found.append((x.mean(), y.mean(), np.sqrt(x.var() + y.var()), mask.mean()))
    return np.mean(found[:3], axis=0), np.mean(found[-3:], axis=0)


DIRECTIONS = {"to the left": (-1, 0), "to the right": (1, 0), "up": (0, -1), "down": (0, 1)}


@pytest.mark.parametrize("label", range(12), ids=LABELS)
@pytest.mark.parametrize("number", range(3))
def test_decoded_motion_is_that_of_the_class(label, number, tmp_path):
    start, end = measured(Clip(7, 0, label, number, 48), tmp_path)
    words = LABELS[label]
    if "far" in words or "slightly" in words:
        direction = next(vector for name, vector in DIRECTIONS.items() if words.endswith(name))
        along = (end - start)[:2] @ np.array(direction)
        across = (end - start)[:2] @ np.array(direction[::-1])
        low, high = (0.43, 0.61) if "far" in words else (0.13, 0.20)
        assert low - 0.06 < along < high + 0.06
        assert abs(across) < 0.06
    elif "growing" in words:
        assert 1.8**2 * 0.7 < end[3] / start[3] < 2.8**2 * 1.4
    elif "shrinking" in words:
        assert 1.8**2 * 0.7 < start[3] / end[3] < 2.8**2 * 1.4
    elif "closer" in words:
        assert end[2] < start[2] - 0.05
    else:
        assert end[2] > start[2] + 0.05


def test_the_object_stays_inside_the_picture():
    for label in range(12):
        for number in range(40):
            for thing in plan(Clip(1, 1, label, number, 12))[0]:
                x, y, radius = thing.path.T
                assert min((x - radius).min(), (y - radius).min()) > -1e-5
                assert max((x + radius).max(), (y + radius).max()) < 1 + 1e-5


def test_slight_motion_at_4_frames_steps_like_far_motion_at_16():
    def step(label, frames):
        steps = []
        for number in range(40):
            path = plan(Clip(0, 0, label, number, 48))[0][0].path[:, 0]
            seen = path[np.linspace(0, 47, frames).round().astype(int)]
            steps.append(abs(np.diff(seen)).max())
        return np.mean(steps)

    far, slightly = (LABELS.index(f"Moving [something] {way} to the left") for way in ("far", "slightly"))
    assert step(slightly, 4) / step(far, 16) == pytest.approx(1.4, abs=0.4)
    assert step(far, 4) / step(far, 16) > 3


def test_the_middle_frame_does_not_tell_far_from_slight():
    def middles(label):
        clips = (Clip(0, 0, label, number, 49) for number in range(400))
        return np.array([plan(clip)[0][0].path[:, 0].take([0, -1]).mean() for clip in clips])

    far, slightly = (LABELS.index(f"Moving [something] {way} to the left") for way in ("far", "slightly"))
    assert middles(far).mean() == pytest.approx(0.5, abs=0.02)
    assert middles(slightly).mean() == pytest.approx(0.5, abs=0.02)


def test_the_recipe_version_stands_for_what_is_drawn():
    # When these figures change, raise RECIPE_VERSION: folders made before are then refused and not mixed.
    assert demo.RECIPE_VERSION == 1
    (thing,), _ = plan(Clip(0, 0, 2, 0, 48))
    assert (thing.texture, thing.shape) == ("checked", "square")
    np.testing.assert_allclose(thing.path[[0, 24, -1], 1], [0.24160, 0.52781, 0.79066], atol=1e-4)
    assert draw(Clip(0, 0, 2, 0, 48)).mean() == pytest.approx(126.278, abs=0.05)


def test_an_interrupted_folder_is_continued(small, tmp_path, monkeypatch):
    folder = tmp_path / "data"
    made = []

    def stops(path, clip):
        if len(made) == 10:
            raise KeyboardInterrupt
        made.append(path)
        write_clip(path, clip)

    write_clip = demo._write_clip
    with monkeypatch.context() as patch:
        patch.setattr(demo, "_write_clip", stops)
        with pytest.raises(KeyboardInterrupt):
            make_demo_data(folder, seed=3, **SMALL)
    before = [path.stat().st_mtime_ns for path in made]
    assert "36 videos, 26 of them new" in make_demo_data(folder, seed=3, **SMALL)
    assert contents(folder) == contents(small)
    assert before == [path.stat().st_mtime_ns for path in made]


def test_a_removed_file_is_made_again(small, tmp_path):
    folder = tmp_path / "data"
    make_demo_data(folder, seed=3, **SMALL)
    (folder / "videos/5.webm").unlink()
    (folder / "labels/train.json").unlink()
    assert "36 videos, 1 of them new" in make_demo_data(folder, seed=3, **SMALL)
    assert contents(folder) == contents(small)


@pytest.mark.parametrize("other", [{"seed": 4}, {"seed": 3, "frames": 7}, {"seed": 3, "train_per_class": 3}])
def test_another_recipe_is_refused(small, other):
    with pytest.raises(UserError, match=r"other settings.*delete it or choose another folder"):
        make_demo_data(small, **{**SMALL, **other})


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "holiday.webm").touch()
    with pytest.raises(UserError, match="holds other files"):
        make_demo_data(tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == [tmp_path / "holiday.webm"]
    (tmp_path / "holiday.webm").unlink()
    (tmp_path / "recipe.json").write_text('{"eggs": 3}')
    with pytest.raises(UserError, match="holds other files"):
        make_demo_data(tmp_path, **SMALL)
    with pytest.raises(UserError, match="holds other files"):
        make_demo_data(tmp_path / "recipe.json", **SMALL)


def test_the_texts_say_that_scores_are_no_evidence(small):
    for text in ((small / "README.txt").read_text(), demo.__doc__):
        words = " ".join(text.split())
        assert "designed to show" in words
        assert "no evidence about Something-Something" in words
