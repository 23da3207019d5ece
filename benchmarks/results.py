"""The file of results: each benchmark owns one section of RESULTS.md."""

import re
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def write_section(benchmark: str, command: str, text: str) -> None:
    """Replace the section of a benchmark and keep the others.

    Args:
        benchmark: Name of the benchmark's file, the title of its section.
        command: The command that measured this.
        text: Machine, table and remarks, in Markdown.
    """
    old = RESULTS.read_text() if RESULTS.exists() else "# Results of the benchmarks\n"
    sections = re.split(r"(?m)^(?=## )", old)
    kept = [section.rstrip() for section in sections if not section.startswith(f"## {benchmark}\n")]
    RESULTS.write_text("\n\n".join([*kept, f"## {benchmark}\n\n    {command}\n\n{text.rstrip()}\n"]))
