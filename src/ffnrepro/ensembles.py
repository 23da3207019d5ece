"""Ensembles: networks whose class probabilities are averaged (Table 1).

The evaluation of an ensemble is in `results/ensembles/{run}+{run}/seed{seed}/`; its files have the same names as in a run.
"""

from collections.abc import Iterable
from pathlib import Path


def member_records(record: Path) -> list[Path]:
    """The records that an ensemble's evaluation is computed from; for any other evaluation, its own record.

    Args:
        record: `results/ensembles/{run}+{run}/seed{seed}/{split}_{frames}f.json`, or the same in `results/runs/{run}`.
    """
    if "+" not in record.parts[-3]:
        return [record]
    runs = record.parents[3] / "runs"
    return [runs / run / record.parent.name / record.name for run in record.parts[-3].split("+")]


def network_folders(records: Iterable[Path]) -> list[Path]:
    """Folders of the networks behind evaluations, each once."""
    return list(dict.fromkeys(member.parent for record in records for member in member_records(record)))
