"""Accuracy at any frame: one evaluation for all frame counts, and the curves that are made of it."""

import json
import runpy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from scipy import stats
from torch import nn

from ffnrepro.curves import assemble_curve, read_curve_records, read_curve_scores
from ffnrepro.data.decode import open_video
from ffnrepro.errors import UserError
from ffnrepro.recipe.clips import ClipDataset, Video, collate_clips
from ffnrepro.recipe.models.ffn import FrameFlexibleNetwork
from ffnrepro.recipe.scoring import clip_logits
from ffnrepro.runs import RUNS, run_name, run_settings, write_run
from ffnrepro.tables import TableRow, read_published
from ffnrepro.weights import save_checkpoint

from ..trainings import ROOT, configuration

COUNTS = (3, 8, 9, 16, 30)
PUBLISHED = read_published(ROOT / "resources/published.csv")
V1, V2 = "something-something-v1", "something-something-v2"


# --- Evaluation


def varied_network(data: Path) -> nn.Module:
    """A network that predicts various classes, which differ between its sub-networks, as if it were trained."""
    torch.manual_seed(0)
    network = FrameFlexibleNetwork(classes=12, depth=10, width=8, stem=5, dropout=0.0)
    for name, parameter in network.named_parameters():
        if "alteration" in name or "bn" in name:
            nn.init.normal_(parameter, 1.0, 0.05)
    nn.init.normal_(network.fc.weight)
    dataset = ClipDataset(
        manifest=pd.read_parquet(data / "results/manifest/validation.parquet"), videos=data / "data/videos",
        open_video=open_video, frame_counts=(8,), size=32, short_side=40, crop="centre",
    )  # fmt: skip
    clips, _ = collate_clips([dataset[index] for index in range(len(dataset))])
    # On average no class is preferred to another.
    network.fc.bias.data = -clip_logits(network, clips)[8].mean(0)
    return network


def test_all_frame_counts_from_one_decoding_are_those_of_single_evaluations(
    data: Path, tmp_path: Path
) -> None:
    """The videos have 18 frames, so 30 frames repeat some of them."""
    config = configuration()
    run = tmp_path / RUNS / run_name(config, "ffn")
    write_run(run, run_settings(config, "ffn"))
    save_checkpoint(run / "seed0/model.pt", varied_network(data))
    opened: Counter[Path] = Counter()

    def open_and_count(path: Path) -> Video:
        opened[path] += 1
        return open_video(path)

    evaluate: Callable[..., int] = runpy.run_path(str(ROOT / "workflow/scripts/evaluate.py"))["main"]
    evaluate.__globals__["opener"] = lambda *_, **__: open_and_count
    options: dict[str, Any] = {
        "run": run, "seed": 0, "split": "validation", "videos": data / "data/videos", "device": "cpu",
        "manifest": data / "results/manifest", "batch_size": 8,
    }  # fmt: skip
    assert evaluate(frames=COUNTS, any_frame=True, **options) == 0
    assert set(opened.values()) == {1}
    together = pd.read_parquet(run / "seed0/validation_any_frame.parquet")
    record = json.loads((run / "seed0/validation_any_frame.json").read_text())
    assert record["frames"] == list(COUNTS)
    for frames in COUNTS:
        assert evaluate(frames=(frames,), **options) == 0
        alone = pd.read_parquet(run / f"seed0/validation_{frames}f.parquet")
        assert together[["id", "label"]].equals(alone[["id", "label"]])
        assert together[f"class_{frames}f"].tolist() == alone["class_1"].tolist()
        of_one = json.loads((run / f"seed0/validation_{frames}f.json").read_text())
        for key in ("top1", "top5"):
            assert record[key][str(frames)] == of_one[key]
        for key in ("run", "seed", "split", "data", "code", "model", "parameters", "videos"):
            assert record[key] == of_one[key]
    # Otherwise the comparison could not tell the frame counts apart.
    assert len({tuple(together[f"class_{frames}f"]) for frames in COUNTS}) == len(COUNTS)
    assert together["class_8f"].nunique() > 2


# --- Curves


INPUTS = {"split": "validation", "short_side": 256, "crop_size": 224, "data": "da" * 32, "code": "c0" * 32}


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write_evaluation(run: str, name: str, frames: Any, top1: Any, seed: int = 0) -> Path:
    """Write a record of an evaluation, and what it is compared with; return its path."""
    folder = RUNS / run / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    model = f"{run}{seed}"
    (folder / "model.sha256").write_text(model)
    (folder / "run.json").write_text(json.dumps({"model": model, "data": INPUTS["data"]}))
    record = {
        "run": run,
        "seed": seed,
        "frames": frames,
        "model": model,
        "videos": 200,
        "top1": top1,
        **INPUTS,
    }
    path = folder / f"validation_{name}.json"
    path.write_text(json.dumps(record))
    # Of 200 videos with the class 1, the first ones are right.
    columns = (
        {f"class_{n}f": value for n, value in top1.items()} if name == "any_frame" else {"class_1": top1}
    )
    right = {column: [1] * int(2 * value) + [0] * (200 - int(2 * value)) for column, value in columns.items()}
    frame = pd.DataFrame({"id": [str(n) for n in range(200)], "label": 1, **right})
    frame.to_parquet(path.with_suffix(".parquet"))
    return path


def make_rows(seeds: int = 1) -> list[TableRow]:
    """One network at 2, 4 and 6 frames; and two networks, at 4 and at 8 frames."""
    at_any = [
        write_evaluation("ffn-00000000", "any_frame", [2, 4, 6], {"2": 30, "4": 40 + 2 * seed, "6": 46.5}, seed)
        for seed in range(seeds)
    ]  # fmt: skip
    apart = {
        frames: [write_evaluation(f"tsm_{frames}f-00000000", f"{frames}f", frames, 41.5)] for frames in (4, 8)
    }
    return [
        TableRow("FFN", ("TSM-FFN", None), dict.fromkeys((2, 4, 6), at_any)),
        TableRow("ST", ("TSM-ST", None), apart),
    ]


def curve_of(rows: list[TableRow], dataset: str) -> pd.DataFrame:
    records = read_curve_records(rows, INPUTS, (2, 4, 6))
    scores = read_curve_scores(rows, records)
    return assemble_curve(rows, records, scores, published=PUBLISHED, dataset=dataset)


def test_a_line_per_row_and_frame_count_beside_the_published_figures() -> None:
    curve = curve_of(make_rows(), V1)
    assert curve["method"].tolist() == ["FFN"] * 3 + ["ST"] * 2
    assert curve["frames"].tolist() == [2, 4, 6, 4, 8]
    assert curve["top1"].tolist() == [30, 40, 46.5, 41.5, 41.5]
    # Quantiles of the binomial distribution of 200 videos.
    for name, share in (("low", 0.025), ("high", 0.975)):
        expected = [stats.binom.ppf(share, 200, top1 / 100) / 2 for top1 in curve["top1"]]
        assert curve[name].tolist() == pytest.approx(expected, abs=0.5)
    # Of Table 7.
    assert curve["published_top1"].fillna(0).tolist() == [0, 42.85, 46.57, 39.71, 45.63]
    assert curve["difference"].fillna(0).tolist() == [0, -2.85, -0.07, 1.79, -4.13]
    assert curve["published_on_v1"].isna().all()
    assert curve["run"].tolist() == ["ffn-00000000"] * 3 + ["tsm_4f-00000000", "tsm_8f-00000000"]
    assert "seeds" not in curve


def test_figures_of_v1_stand_apart_where_another_data_set_was_evaluated() -> None:
    curve = curve_of(make_rows(), V2)
    # Of Table 9, and of Table 7.
    assert curve["published_top1"].fillna(0).tolist() == [0, 56.07, 0, 53.38, 59.29]
    assert curve["published_on_v1"].fillna(0).tolist() == [0, 42.85, 46.57, 39.71, 45.63]


def test_several_seeds_are_averaged() -> None:
    curve = curve_of(make_rows(seeds=2)[:1], V1)
    assert curve["top1"].tolist() == [30, 41, 46.5]
    # By hand: 40 and 42 deviate by 1 from 41, and sqrt((1 + 1) / (2 - 1)) = 1.41.
    assert curve["deviation"].tolist() == [0, 1.41, 0]
    assert curve["seeds"].tolist() == [2, 2, 2]


def test_predictions_that_do_not_give_their_top_1_are_refused() -> None:
    rows = make_rows()
    path = rows[0].evaluations[2][0]
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "top1": {**record["top1"], "6": 46}}))
    with pytest.raises(UserError, match=rf"any_frame\.parquet: its top-1 is 46\.5 and should be 46.*{path}$"):
        curve_of(rows, V1)


def test_a_record_of_other_frame_counts_is_refused_with_the_command() -> None:
    """Other differences are found as for a table (test_tables.py)."""
    rows = make_rows()
    path = rows[0].evaluations[2][0]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"frames": [2, 4]}))
    says = r"frames is \[2, 4\] and should be \[2, 4, 6\]; .*snakemake --cores 1 --force"
    with pytest.raises(UserError, match=rf"^{path}: {says} {path}$"):
        curve_of(rows, V1)
