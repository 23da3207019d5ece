"""The page on networks of one's own runs as written."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).parents[2] / "docs/own_network.md"


def test_the_page_runs_as_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo").symlink_to(data)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    values: dict[str, Any] = {}
    exec(compile("\n".join(blocks), str(PAGE), "exec"), values)  # noqa: S102 (the page is ours)
    added, losses, accuracy = capsys.readouterr().out.splitlines()
    assert added == "145,600 parameters are added"
    assert len(ast.literal_eval(losses)) == 3
    assert list(ast.literal_eval(accuracy)) == [4, 12, 16]
    # The file holds the trained network.
    state, again = values["network"].state_dict(), values["again"].state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in state.items())
