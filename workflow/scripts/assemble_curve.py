"""Assemble the curves of a table from the records of its evaluations, refuse stale ones, and plot them."""

import sys
from pathlib import Path

import tyro

from ffnrepro.curves import assemble_curve, read_curve_records, read_curve_scores
from ffnrepro.figures import curve_figure, save_figure
from ffnrepro.files import replacing
from ffnrepro.logs import run
from ffnrepro.runs import evaluation_inputs
from ffnrepro.tables import read_published, read_rows


def main(
    rows: str,
    frames: tuple[int, ...],
    dataset: str,
    split: str,
    short_side: int,
    crop_size: int,
    data: Path,
    published: Path,
    csv: Path,
    figure: Path,
    log: Path | None = None,
) -> int:
    """Write accuracy at any frame count, for each row of a table, and plot it.

    Args:
        rows: JSON: a list of rows (`ffnrepro.tables.TableRow`).
        frames: Frame counts of `evaluate_any_frame`.
        dataset: Data set that was evaluated.
        split: Split that was evaluated.
        short_side: Short side of the resized frames in pixels.
        crop_size: Height and width of the clips in pixels.
        data: File with the digest of the manifest.
        published: Published figures.
        csv: File to write the numbers to.
        figure: File to write the plot to.
        log: File that messages are written to.
    """

    def work() -> None:
        inputs = evaluation_inputs(
            split=split,
            short_side=short_side,
            crop_size=crop_size,
            manifest_digest=data,
        )
        row_list = read_rows(rows)
        records = read_curve_records(row_list, inputs, frames)
        curve = assemble_curve(
            row_list,
            records,
            read_curve_scores(row_list, records),
            published=read_published(published),
            dataset=dataset,
        )
        with replacing(csv) as temporary:
            curve.to_csv(temporary, index=False)
        save_figure(curve_figure(curve, dataset=dataset), figure)

    return run(work, log)


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
