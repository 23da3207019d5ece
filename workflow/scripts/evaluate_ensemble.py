"""Evaluate an ensemble from the stored scores of its networks: predictions of each video, and a record in the same folder."""

import sys
from pathlib import Path

import pandas as pd
import torch
import tyro

from ffnrepro.errors import UserError
from ffnrepro.evaluation import accuracy, predict_with_ensemble, write_predictions
from ffnrepro.files import read_record, write_json
from ffnrepro.logs import logger
from ffnrepro.logs import run as run_logged
from ffnrepro.provenance import provenance
from ffnrepro.runs import scoring_code

SHARED = ("seed", "split", "frames", "short_side", "crop_size", "data")
"""Keys of a record that must be the same for all networks of an ensemble."""


def main(members: list[Path], output: Path, log: Path | None = None) -> int:
    """Average the class probabilities of several networks; each network's predictions are in the folder of its record.

    Args:
        members: Records of the evaluations of the networks, at one frame count.
        output: Record to write; the predictions are written to the same folder.
        log: File that messages are written to.
    """

    def work() -> None:
        records = [read_record(path) for path in members]
        for path, record in zip(members, records, strict=True):
            different = [key for key in SHARED if record.get(key, "missing") != records[0].get(key)]
            if different:
                raise UserError(
                    f"{path}: {different[0]} is not that of {members[0]}; remake both, with your --directory and "
                    f"--configfile: snakemake --cores 1 --force {members[0]} {path}"
                )
        predictions = predict_with_ensemble(
            [pd.read_parquet(path.with_suffix(".parquet")) for path in members]
        )
        write_predictions(predictions, output.with_suffix(".parquet"))
        record = {
            "run": output.parts[-3],
            **{key: records[0][key] for key in SHARED},
            "code": scoring_code(),
            "model": " ".join(record["model"] for record in records),
            "parameters": sum(record["parameters"] for record in records),
            "videos": len(predictions),
            **accuracy(predictions),
            # The networks run one after the other.
            "gflops": sum(record["gflops"] for record in records),
            "clips_per_second": 1 / sum(1 / record["clips_per_second"] for record in records),
            **provenance(torch.device("cpu")),
        }
        write_json(output, record)
        logger.info(
            "%s, seed %d, %d frames: top-1 %.2f, top-5 %.2f, %d videos",
            record["run"], record["seed"], record["frames"], record["top1"], record["top5"], len(predictions),
        )  # fmt: skip

    return run_logged(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
