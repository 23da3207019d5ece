"""A table as Markdown and LaTeX: accuracy, difference from another row, published figures, cost."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from tabulate import LATEX_ESCAPE_RULES, tabulate

from ffnrepro.tables import Published, frame_counts, published_elsewhere


@dataclass(frozen=True)
class Block:
    """A part of a table's text, which has its own caption, header and lines."""

    caption: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]


def table_blocks(table: pd.DataFrame, *, published: Published, dataset: str) -> list[Block]:
    """The parts of a table's text; a part or a line without any number is left out.

    Args:
        table: a table of `ffnrepro.tables.assemble_table`.
        published: `resources/published.csv`.
        dataset: data set that was evaluated.
    """
    rows, frames = table.to_dict("records"), frame_counts(table)
    caption = f"Top-1 accuracy in percent on {dataset} ({rows[0]['videos']:,} videos), with 95 % intervals."
    if "seeds" in table:
        caption += f" Mean ± sample standard deviation of {table['seeds'].max()} seeds."
    lines = {
        caption: [[_accuracy(row, n) for n in frames] for row in rows],
        **{
            f"Difference from {other} on the same videos, in points, with 95 % intervals.": [
                [_gain(row, n) if row["compared_with"] == other else "" for n in frames] for row in rows
            ]
            for other in table["compared_with"].dropna().unique()
        },
        f"Published on {dataset}; in brackets: ours minus published, in points.": [
            [_published(row, n) for n in frames] for row in rows
        ],
    }
    for source, curves in published_elsewhere(table, published=published, dataset=dataset).items():
        of_rows = [curves.get(row["method"], {}) for row in rows]
        lines[f"Published on {source}, for comparison of the pattern."] = [
            [f"{curve[n]:.2f}" if n in curve else "" for n in frames] for curve in of_rows
        ]
    header = ["method", *(f"{n} frames" for n in frames)]
    blocks = [
        Block(
            caption,
            header,
            [[row["method"], *cells] for row, cells in zip(rows, of_block, strict=True) if any(cells)],
        )
        for caption, of_block in lines.items()
    ]
    cost = Block(
        "Parameters, and GFLOPs per video (billions of multiply-adds); in brackets: clips per second, network only.",
        ["method", "parameters", *header[1:]],
        [[row["method"], f"{row['parameters']:,}", *(_cost(row, n) for n in frames)] for row in rows],
    )
    return [block for block in (*blocks, cost) if block.lines]


def _accuracy(row: Mapping[Any, Any], n: int) -> str:
    deviation = f" ± {row[f'deviation_{n}f']:.1f}" if "seeds" in row else ""
    return f"{row[f'top1_{n}f']:.1f}{deviation} [{row[f'low_{n}f']:.1f}, {row[f'high_{n}f']:.1f}]"


def _gain(row: Mapping[Any, Any], n: int) -> str:
    return f"{row[f'gain_{n}f']:+.1f} [{row[f'gain_low_{n}f']:+.1f}, {row[f'gain_high_{n}f']:+.1f}]"


def _published(row: Mapping[Any, Any], n: int) -> str:
    if pd.isna(row[f"published_{n}f"]):
        return ""
    return f"{row[f'published_{n}f']:.2f} ({row[f'difference_{n}f']:+.2f})"


def _cost(row: Mapping[Any, Any], n: int) -> str:
    return f"{row[f'gflops_{n}f']:.4g} ({row[f'clips_per_second_{n}f']:.0f})"


def markdown(blocks: Sequence[Block]) -> str:
    """The parts of a table as Markdown."""
    return "\n".join(f"{block.caption}\n\n{_tabulate(block, 'pipe')}\n" for block in blocks)


def latex(blocks: Sequence[Block]) -> str:
    r"""The parts of a table as LaTeX tables, for a document with `\usepackage{booktabs, graphicx}`."""
    escapes = str.maketrans(LATEX_ESCAPE_RULES)
    # A part that is wider than the text is shrunk to its width.
    fit = "\\resizebox{\\ifdim\\width>\\linewidth\\linewidth\\else\\width\\fi}{!}"
    text = "\n".join(
        f"\\begin{{table}}\n\\centering\n\\caption{{{block.caption.translate(escapes)}}}\n"
        f"{fit}{{%\n{_tabulate(block, 'latex_booktabs')}}}\n\\end{{table}}\n"
        for block in blocks
    )
    # A hyphen before a number is a minus sign.
    return "% \\usepackage{booktabs, graphicx}\n" + re.sub(r"(?<=[\s\[(])-(?=\d)", "$-$", text)


def _tabulate(block: Block, form: str) -> str:
    aligned = ["left", *["right"] * (len(block.header) - 1)]
    return tabulate(block.lines, block.header, tablefmt=form, colalign=aligned, disable_numparse=True)
