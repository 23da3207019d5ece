"""Ensembles: networks whose class probabilities are averaged (Table 1).

The evaluation of an ensemble lies in `results/ensembles/{run}+{run}/seed{seed}/`, in files named as in the folder of a run.
"""

from pathlib import Path


def member_records(record: Path) -> list[Path]:
    """Records of the evaluations that an ensemble is computed from; of any other evaluation, its own record.

    Args:
        record: `results/ensembles/{run}+{run}/seed{seed}/{split}_{frames}f.json`, or the same in `results/runs/{run}`.
    """
    if "+" not in record.parts[-3]:
        return [record]
    runs = record.parents[3] / "runs"
    return [runs / run / record.parent.name / record.name for run in record.parts[-3].split("+")]
