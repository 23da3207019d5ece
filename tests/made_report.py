"""A folder of results with made numbers, as the workflow leaves it, for tests of the report."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ffnrepro.files import write_json
from ffnrepro.provenance import provenance
from ffnrepro.report.page import Sources, make_page
from ffnrepro.runs import run_name, run_settings, write_run
from ffnrepro.tables import assemble_table, read_published, read_records, read_rows, read_scores

from .trainings import ROOT, configuration

HOSTILE = "</script><img src=x onerror=alert(1)>"
"""A class name that tries to run a script."""

PUBLISHED = ROOT / "resources/published.csv"
FRAMES = (4, 16)


@dataclass(frozen=True)
class MadeReport:
    """What the made results hold.

    Attributes:
        labels: class of each video; video i has the id i.
        predicted: experiment (`tsm`, `ffn`) and frame count -> the predicted class of each video, for each seed.
        classes: names of the classes.
        frames: number of frames of each video.
        epochs: epochs of each history.
        findings: of the diagnosis.
        excluded: rows of `excluded.csv`.
    """

    labels: Sequence[int]
    predicted: Mapping[tuple[str, int], Sequence[Sequence[int]]]
    classes: Sequence[str]
    frames: int = 12
    epochs: int = 3
    findings: Sequence[Mapping[str, str]] = ()
    excluded: Sequence[Mapping[str, str]] = field(default_factory=list)

    def page(self) -> str:
        """Write the files below the working directory, and make the page."""
        self._write_data()
        evaluations: dict[str, dict[int, list[str]]] = {"tsm": {}, "ffn": {}}
        for (experiment, n), of_seeds in self.predicted.items():
            evaluations[experiment][n] = [
                self._write_seed(experiment, n, seed, predicted) for seed, predicted in enumerate(of_seeds)
            ]
        self._write_table(evaluations)
        return make_page(
            Sources(
                tables=[Path("results/table1.json")],
                published=PUBLISHED,
                diagnosis=Path("results/diagnosis.json"),
                manifest=Path("results/manifest"),
                classes=Path("results/labels/classes.csv"),
                videos=Path("videos"),
            )
        )

    def _write_data(self) -> None:
        manifest, videos = Path("results/manifest"), len(self.labels)
        for folder in (manifest, Path("results/labels")):
            folder.mkdir(parents=True)
        pd.DataFrame({"class": self.classes}).to_csv("results/labels/classes.csv", index_label="index")
        split = {"id": list(map(str, range(videos))), "path": [f"{i}.webm" for i in range(videos)]}
        pd.DataFrame({**split, "frames": self.frames, "class": self.labels}).to_parquet(
            manifest / "validation.parquet", index=False
        )
        columns = ["id", "split", "path", "reason", "detail"]
        pd.DataFrame(self.excluded, columns=columns).to_csv(manifest / "excluded.csv", index=False)
        (manifest / "manifest.sha256").write_text("da7a\n")
        reasons = pd.Series([row["reason"] for row in self.excluded]).value_counts().to_dict()
        splits = {"train": 0, "validation": videos, "test": 0}
        write_json(
            manifest / "summary.json",
            {
                "labelled": splits | {"validation": videos + len(self.excluded)},
                "videos": splits,
                "excluded": {"train": {}, "validation": reasons, "test": {}, "no label": {}},
                "classes": {
                    name: splits | {"validation": list(self.labels).count(number)}
                    for number, name in enumerate(self.classes)
                },
                "frames": {"train": {}, "validation": {str(self.frames): videos}, "test": {}},
                "warnings": [],
            },
        )
        checks = [{"name": name, "title": name.title()} for name in ("loss", "labels")]
        content = {"checked": ["tsm, seed 0"], "checks": checks, "findings": list(self.findings)}
        write_json(Path("results/diagnosis.json"), content)

    def _write_seed(self, experiment: str, n: int, seed: int, predicted: Sequence[int]) -> str:
        config = configuration(evaluation={"any_frame": [4]})
        run = Path("results/runs") / run_name(config, experiment)
        folder, settings = run / f"seed{seed}", run_settings(config, experiment)
        folder.mkdir(parents=True, exist_ok=True)
        write_run(run, settings)
        model = f"{experiment}{seed}".ljust(64, "0")
        (folder / "model.sha256").write_text(model)
        job = {"data": "da7a", "model": model, "parameters": 100, **provenance(torch.device("cpu"))}
        write_json(
            folder / "run.json",
            {"run": run.name, "seed": seed, "settings": settings.model_dump(mode="json"), "start": None}
            | {"precision": "float32", "best_epoch": 2, "wall_seconds": 3600.0, **job},
        )
        terms = ["train_cross_entropy", *(["train_kl_4f"] if experiment == "ffn" else [])]
        names = ["learning_rate", "train_loss", *terms, "train_top1", "validation_top1_16f"]
        epochs = range(1, self.epochs + 1)
        history = {name: [1.2345678 / epoch for epoch in epochs] for name in names}
        pd.DataFrame({"epoch": epochs, **history}).to_parquet(folder / "history.parquet", index=False)
        record = folder / f"validation_{n}f.json"
        rows = pd.DataFrame({"id": list(map(str, range(len(predicted)))), "label": self.labels})
        rows.assign(class_1=predicted).to_parquet(record.with_suffix(".parquet"), index=False)
        top1 = 100 * int((pd.Series(predicted) == pd.Series(self.labels)).sum()) / len(predicted)
        scores = {"top1": top1, "top5": 100.0, "videos": len(predicted), "gflops": n * 4.1}
        write_json(
            record,
            {"run": run.name, "seed": seed, "frames": n, "split": "validation", "code": "c0de"}
            | {"clips_per_second": 9.0, **scores, **job},
        )
        return str(record)

    def _write_table(self, evaluations: Mapping[str, Mapping[int, list[str]]]) -> None:
        rows: list[dict[str, Any]] = [
            {"label": label, "published": [label, None], "evaluations": evaluations[experiment]}
            for label, experiment in (("TSM", "tsm"), ("TSM-FFN", "ffn"))
        ]
        row_list = read_rows(json.dumps(rows))
        records = read_records(row_list, {"split": "validation"} | {"data": "da7a"})
        table = assemble_table(
            row_list,
            records,
            read_scores(row_list, records),
            published=read_published(PUBLISHED),
            dataset="something-something-v2",
        )
        lines = json.loads(table.to_json(orient="records"))
        content = {"dataset": "something-something-v2", "split": "validation"}
        content_rows = [row | {"numbers": line} for row, line in zip(rows, lines, strict=True)]
        write_json(Path("results/table1.json"), {**content, "rows": content_rows})
