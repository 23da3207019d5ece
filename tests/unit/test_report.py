"""The report: its numbers against values by hand, no text that becomes HTML or a script, and its size."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ffnrepro.errors import UserError
from ffnrepro.report.clips import choose_confusions, choose_gains
from ffnrepro.report.data import class_accuracy, confusions, read_table
from ffnrepro.tables import read_published

from ..made_report import FRAMES, HOSTILE, PUBLISHED, MadeReport

# Six videos of three classes. At 4 frames TSM is right on videos 0 and 4, FFN on all but video 5, which both take for class 0.
LABELS = [0, 0, 1, 1, 2, 2]
TSM, FFN = [0, 1, 0, 0, 2, 0], [0, 0, 1, 1, 2, 0]
TINY = MadeReport(
    labels=LABELS,
    predicted={("tsm", 4): [TSM], ("tsm", 16): [LABELS], ("ffn", 4): [FFN], ("ffn", 16): [LABELS]},
    classes=["Pushing", HOSTILE, "Folding & <b>unfolding</b>"],
    findings=[
        {"check": "loss", "title": "The <i>loss</i>", "subject": "tsm, seed 0", "evidence": "It is 9.", "cause": "A.", "remedy": "B."}
    ],
    excluded=[{"id": "77", "split": "validation", "path": "<u>77</u>.webm", "reason": "truncated", "detail": HOSTILE}],
)  # fmt: skip


class Elements(HTMLParser):
    """The elements of a page, as a browser would see them, and the text of each."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self._script = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._script = tag == "script"

    def handle_endtag(self, tag: str) -> None:
        self._script = self._script and tag != "script"

    def handle_data(self, data: str) -> None:
        (self.scripts if self._script else self.text).append(data)


@pytest.fixture(autouse=True)
def work_in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("report"))
        return TINY.page()


def predictions(predicted: list[int], seed: int = 0) -> pd.DataFrame:
    ids = list(map(str, range(len(LABELS))))
    return pd.DataFrame({"id": ids, "label": LABELS, "class_1": predicted, "seed": seed})


def test_accuracy_of_each_class_is_that_by_hand_over_all_seeds() -> None:
    two_seeds = pd.concat([predictions(TSM), predictions(FFN, seed=1)])
    # Class 0: 1 + 2 of 4; class 1: 0 + 2; class 2: 1 + 1. A fourth class has no video.
    assert class_accuracy(two_seeds, 4).tolist()[:3] == [75.0, 50.0, 50.0]
    assert np.isnan(class_accuracy(two_seeds, 4)[3])


def test_confused_classes_are_those_by_hand_the_other_rows_first() -> None:
    found = [
        (pair.true, pair.predicted, pair.first, pair.second)
        for pair in confusions(predictions(TSM), predictions(FFN))
    ]
    # FFN confuses one pair only; then the pairs of TSM, the largest share first.
    assert found == [(2, 0, 50.0, 50.0), (1, 0, 100.0, 0.0), (0, 1, 50.0, 0.0)]
    assert confusions(predictions(LABELS), predictions(LABELS)) == []


def test_examples_show_what_they_claim() -> None:
    both = predictions(FFN).rename(columns={"class_1": "second"}).assign(first=TSM)
    gains = class_accuracy(predictions(FFN), 3) - class_accuracy(predictions(TSM), 3)
    assert gains.tolist() == [50.0, 100.0, 0.0]
    # One video of each class that gains, the largest gain first.
    assert [(choice.id, choice.first, choice.second) for choice in choose_gains(both, gains)] == [
        ("2", 0, 1),
        ("1", 1, 0),
    ]
    (choice,) = choose_confusions(both, confusions(predictions(TSM), predictions(FFN)))
    assert (choice.id, choice.true, choice.second) == ("5", 2, 0)


def test_the_page_has_the_numbers_of_the_table_and_of_the_records(page: str) -> None:
    text = " ".join(" ".join(Elements(page).text).split())
    # 2 and 5 of 6 videos are right.
    assert "At 4 frames, TSM-FFN is right on 83.3 % of the videos and TSM on 33.3 %" in text
    assert "on the 6 validation videos of something-something-v2" in text
    assert "The paper reports 56.1 % and 31.5 %." in text
    assert "Pushing +50.0" in text
    assert "83.33 100.00 6 ffn-" in text
    assert "1 finding 2 checks" in text
    assert "It is 9." in text
    assert "truncated: 1" in text
    assert "training.epochs 44 instead of 50" in text


def test_charts_have_the_numbers_of_the_table_and_of_the_history(page: str) -> None:
    specs = json.loads(Elements(page).scripts[0])
    of_frames = specs["chart0"]["data"]["values"].splitlines()
    assert of_frames[0] == "source,row,kind,frames,gflops,top1,low,high"
    assert [line.split(",")[1:6] for line in of_frames[1:5]] == [
        ["TSM", "ours", "4", "16.4", "33.33"],
        ["TSM", "ours", "16", "65.6", "100"],
        ["TSM-FFN", "ours", "4", "16.4", "83.33"],
        ["TSM-FFN", "ours", "16", "65.6", "100"],
    ]
    assert "something-something-v2,TSM,published,4,16.4,31.52,," in of_frames
    (loss,) = (spec["data"]["values"] for spec in specs.values() if "KL, 4 frames" in spec["data"]["values"])
    assert loss.splitlines()[:3] == [
        "epoch,seed,sum,cross entropy,\"KL, 4 frames\"", "1,0,1.2346,1.2346,1.2346", "2,0,0.61728,0.61728,0.61728",
    ]  # fmt: skip


def test_no_text_becomes_html_or_a_script(page: str) -> None:
    elements = Elements(page)
    # Three scripts (data, library, own), no handler, and nothing is loaded from anywhere.
    assert [tag for tag, _ in elements.tags].count("script") == 3
    assert not {"u", "iframe", "object", "link"} & {tag for tag, _ in elements.tags}
    assert not [name for _, attributes in elements.tags for name in attributes if name.startswith("on")]
    addresses = [
        value or ""
        for _, attributes in elements.tags
        for name, value in attributes.items()
        if name in ("src", "href")
    ]
    assert all(address.startswith(("data:image/jpeg", "#")) for address in addresses)
    # The name is shown as it is, in the page and in the data of the charts.
    assert HOSTILE in "".join(elements.text)
    assert HOSTILE in json.dumps(json.loads(elements.scripts[0]), ensure_ascii=False)
    assert "<b>unfolding" not in page
    assert "<i>loss" not in page


def test_the_browser_may_run_the_pages_own_scripts_only(page: str) -> None:
    (policy,) = (
        attributes["content"] or ""
        for tag, attributes in Elements(page).tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    assert len(re.findall("'sha256-[^']{44}'", policy)) == 2


def test_a_video_is_shown_as_a_strip_and_one_that_cannot_be_read_is_noted(
    tmp_path: Path, write_video: Callable[..., Path], numbered_frames: Callable[..., Any]
) -> None:
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos/2.webm", numbered_frames(12))
    (tmp_path / "videos/1.webm").write_text("<html>404</html>")
    elements = Elements(TINY.page())
    assert [tag for tag, _ in elements.tags].count("img") == 4
    text = " ".join(elements.text)
    assert "The video cannot be shown: a web page, not a video" in text
    assert "The video cannot be shown: no such file" in text


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results/table1.json").write_text("{")
    with pytest.raises(UserError, match=r"results/table1\.json: cannot be read"):
        read_table(Path("results/table1.json"), read_published(PUBLISHED))


def test_the_page_of_the_whole_data_set_is_small() -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(174, size=24_777)
    predicted = {
        (experiment, n): [
            np.where(generator.random(24_777) < 0.6, labels, generator.integers(174, size=24_777)).tolist()
            for _ in range(3)
        ]
        for experiment in ("tsm", "ffn")
        for n in FRAMES
    }
    classes = [
        f"Pretending to put [something] underneath [something], the way number {n}" for n in range(174)
    ]
    page = MadeReport(labels=labels.tolist(), predicted=predicted, classes=classes, epochs=50).page()
    # Without pictures, of which there are at most 48 of about 8 kB.
    assert len(page.encode()) < 2_000_000
