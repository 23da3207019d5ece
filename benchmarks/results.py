"""Results of the benchmarks, in RESULTS.md."""

import re
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")


def write_section(title: str, text: str) -> None:
    """Replace the section of RESULTS.md with this title, and keep the others."""
    sections = re.split(r"(?m)^(?=## )", RESULTS.read_text())
    kept = [section.rstrip() for section in sections if not section.startswith(f"## {title}\n")]
    RESULTS.write_text("\n\n".join([*kept, f"## {title}\n\n{text.rstrip()}\n"]))
