"""The diagnosis of finished networks: all checks of `ffnrepro.faults` over the tables of the report.

It reads the files behind the tables. Each finding has the evidence, the likely cause, and what to do.
docs/diagnosis.md describes the checks.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ffnrepro import faults
from ffnrepro.ensembles import member_records, network_folders
from ffnrepro.faults import Finding, Network
from ffnrepro.files import read_record
from ffnrepro.runs import read_run, unpublished_settings

TITLES = {
    "loss": "The loss explodes",
    "distillation": "A frame count does not learn from the highest one",
    "overfitting": "The network overfits",
    "learning_rate": "The learning rate is not lowered as planned",
    "skipped_steps": "Many steps are skipped",
    "data_wait": "The training waits for its data",
    "classifier": "The classifier is untrained",
    "batchnorm": "BatchNorm does not fit the features",
    "chance": "The accuracy is near chance",
    "one_class": "One class takes many predictions",
    "labels": "The labels are permuted",
    "no_collapse": "TSM does not collapse at few frames",
    "ffn": "FFN does not help at few frames",
    "published": "The accuracy is not the published one",
    "excluded": "Many videos are excluded",
}
"""What each check finds, by its name."""

OF_ROW = (
    "network.depth",
    "weight_sharing",
    "specialized_normalization",
    "weight_alteration",
    "temporal_distillation",
)
"""Settings that may differ from the plain method in a row of the paper with a setting of its own, such as an ablation."""

Findings = Iterable[Finding]


def training_checks(network: Network) -> dict[str, Findings]:
    """The checks of a training history, by name; none for an imported network."""
    history, settings = network.history, network.settings
    if not history:
        return {}
    kl = [key for key in history[0] if key.startswith("train_kl_")]
    rows = next(iter(network.predictions.values()))
    checks: dict[str, Findings] = {
        "loss": faults.loss_explodes(history),
        "distillation": (finding for key in kl for finding in faults.not_distilled(history, key)),
        "overfitting": faults.overfitted(history, f"top1_{max(network.train_frames)}f", len(rows)),
        "data_wait": faults.long_data_wait(history, settings.cache),
    }
    if network.steps:
        checks |= {
            "learning_rate": faults.learning_rate_wrong(history, settings.training, network.steps),
            "skipped_steps": faults.steps_skipped(history, network.steps),
        }
    return checks


NETWORK_CHECKS: dict[str, Callable[[Network], Findings]] = {
    "classifier": faults.classifier_untrained,
    "labels": faults.labels_permuted,
    "batchnorm": faults.batchnorm_wrong,
    "chance": faults.near_chance,
    "one_class": faults.one_class,
    "no_collapse": faults.not_collapsed,
}
"""The checks of a network and its scores, by name; each of `EXPLAINS` comes before those that it explains."""

EXPLAINS = ("loss", "classifier", "labels", "batchnorm")
"""Faults that spoil all scores of a network. If one is found, the later checks of its scores and of its row are skipped: they
would find the same fault again, and give the advice for another one."""

EXPLAINS_FFN = (*EXPLAINS, "distillation", "chance", "no_collapse")
"""Faults of FFN or of TSM that explain why FFN does not help."""


def read_network(folder: Path, evaluations: Mapping[int, Path]) -> Network:
    """Read a network.

    Args:
        folder: the folder of its run and seed.
        evaluations: frame count -> the record of its evaluation; the predictions are in the same folder.
    """
    # Memory-mapped, because the checks read only a few of the tensors.
    content = torch.load(folder / "model.pt", map_location="cpu", weights_only=True, mmap=True)
    return Network(
        settings=read_run(folder.parent)[0].effective(),
        record=read_record(folder / "run.json"),
        history=pd.read_parquet(folder / "history.parquet").to_dict("records"),  # type: ignore[arg-type]
        predictions={
            frames: pd.read_parquet(
                record.with_suffix(".parquet"), columns=["id", "label", "class_1"]
            ).set_index("id")
            for frames, record in sorted(evaluations.items())
        },
        tensors=content["state_dict"],
    )


def read_networks(tables: Sequence[Mapping[str, Any]]) -> dict[str, Network]:
    """Read each network of the tables once, including the members of ensembles.

    Args:
        tables: `results/{table}.json` of each table.

    Returns:
        Networks by name, such as `tsm-aff52e89, seed 0`.
    """
    evaluations: dict[Path, dict[int, Path]] = {}
    for table in tables:
        for row in table["rows"]:
            for frames, paths in row["evaluations"].items():
                for member in (member for path in paths for member in member_records(Path(path))):
                    evaluations.setdefault(member.parent, {})[int(frames)] = member
    networks = [read_network(folder, records) for folder, records in evaluations.items()]
    return {network.name: network for network in networks}


def diagnose(
    networks: Mapping[str, Network],
    tables: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> dict[str, Any]:
    """Run all checks.

    Args:
        networks: the networks of the tables.
        tables: `results/{table}.json` of each table.
        summary: `results/manifest/summary.json`.

    Returns:
        The content of `results/diagnosis.json`: `checked` (names of the networks), `checks` (`name` and `title` of each check
        that ran) and `findings` (`check`, `title`, `subject`, `evidence`, `cause`, `remedy`). The subject is a network, a
        row of a table, or empty for the data.
    """
    names: set[str] = set()
    findings: list[dict[str, str]] = []

    def add(name: str, subject: str, found: Findings) -> None:
        names.add(name)
        findings.extend(
            {"check": name, "title": TITLES[name], "subject": subject, **finding._asdict()}
            for finding in found
        )

    def has(names: Sequence[str], *subjects: str) -> bool:
        return any(each["check"] in names and each["subject"] in subjects for each in findings)

    for network_name, network in networks.items():
        for name, found in training_checks(network).items():
            add(name, network_name, found)
        for name, check in NETWORK_CHECKS.items():
            add(name, network_name, () if has(EXPLAINS, network_name) else check(network))
    for ffn, tsm in _pairs(list(networks.values())):
        explained = has(EXPLAINS_FFN, ffn.name, tsm.name)
        add("ffn", ffn.name, () if explained else faults.ffn_does_not_help(ffn, tsm))
    for table in tables:
        for row in table["rows"]:
            frames = [int(n) for n in row["evaluations"]]
            if any(row["numbers"][f"published_{n}f"] is not None for n in frames):
                of_row = _networks_of_row(row, networks)
                explained = has(EXPLAINS, *(network.name for network in of_row))
                differs = faults.unlike_published(row["numbers"], frames, _changes_of_row(row, of_row))
                add("published", row["label"], () if explained else differs)
    for split in dict.fromkeys(("train", tables[0]["split"])):
        add("excluded", "", faults.many_excluded(summary, split))
    checks = [{"name": name, "title": title} for name, title in TITLES.items() if name in names]
    findings.sort(key=lambda finding: list(TITLES).index(finding["check"]))
    return {"checked": list(networks), "checks": checks, "findings": findings}


def _pairs(networks: Sequence[Network]) -> Iterator[tuple[Network, Network]]:
    """Each FFN, paired with the TSM of the same seed and ResNet that was trained at the FFN's highest frame count."""
    for ffn in networks:
        if ffn.settings.method.method != "ffn":
            continue
        for tsm in networks:
            if (
                tsm.settings.method.method == "tsm"
                and tsm.train_frames == (max(ffn.train_frames),)
                and tsm.settings.network == ffn.settings.network
                and tsm.settings.start == ffn.settings.start
                and tsm.record["seed"] == ffn.record["seed"]
            ):
                yield ffn, tsm


def _networks_of_row(row: Mapping[str, Any], networks: Mapping[str, Network]) -> list[Network]:
    """The networks of all seeds of a row; those of an ensemble, too."""
    records = (Path(path) for paths in row["evaluations"].values() for path in paths)
    runs = {folder.parent.name for folder in network_folders(records)}
    return [network for network in networks.values() if network.record["run"] in runs]


def _changes_of_row(row: Mapping[str, Any], networks: Sequence[Network]) -> list[str]:
    """Settings in which a row's networks differ from the published recipe of that row, each once."""
    changes = dict.fromkeys(
        change for network in networks for change in unpublished_settings(network.settings)
    )
    # A row that is published with a setting is, for example, an ablation or another depth.
    own = OF_ROW if row["published"][1] else ()
    return [change for change in changes if change.split(" ")[0] not in own]


def text(diagnosis: Mapping[str, Any]) -> str:
    """The diagnosis as text for the console, with the findings of one fault grouped."""
    findings = diagnosis["findings"]
    found = f"{_count(findings, 'finding')} (docs/diagnosis.md)" if findings else "nothing found"
    lines = [f"Diagnosis: {_count(diagnosis['checked'], 'network')} checked, {found}"]
    for fault in dict.fromkeys((each["title"], each["cause"], each["remedy"]) for each in findings):
        title, cause, remedy = fault
        lines += ["", f"{title}."]
        lines += [
            f"  {each['subject'] or 'Data'}: {each['evidence']}"
            for each in findings
            if (each["title"], each["cause"], each["remedy"]) == fault
        ]
        lines += [f"  Likely cause: {cause}", f"  What to do: {remedy}"]
    return "\n".join(lines) + "\n"


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'' if len(things) == 1 else 's'}"
