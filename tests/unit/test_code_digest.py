"""What changes the digest of a script's code, and what does not."""

import ast
from pathlib import Path

import pytest

from ffnrepro import code_digest

SCRIPT = '''
"""A script."""
from ffnrepro.numbers import double
from ffnrepro import shapes
import math
print(double(shapes.area(3)))
'''
PACKAGE = {
    "__init__.py": '"""The package."""\n',
    "numbers.py": '''
"""Numbers."""
from math import floor
FACTOR = 2
"""What is multiplied by."""
UNUSED = 1
def double(x):
    """Twice."""
    return floor(_times(x, FACTOR))
def _times(x, factor):
    # a comment
    return x * factor
def unused():
    return UNUSED
''',
    "shapes.py": "from ffnrepro import errors\ndef area(x):\n    errors.check(x)\n    return x ** 2\ndef other(x):\n    return x\n",
    "unused.py": "print('imported')\n",
    "errors.py": "def check(x):\n    assert x\n",
}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "ffnrepro"
    package.mkdir()
    for name, text in PACKAGE.items():
        (package / name).write_text(text)
    (tmp_path / "script.py").write_text(SCRIPT)
    monkeypatch.setattr(code_digest, "__file__", str(package / "code_digest.py"))
    return tmp_path / "script.py"


def digests(script: Path, method: str | None = None) -> dict[str, str]:
    for function in (code_digest.code_digests, code_digest._read):
        function.cache_clear()
    return code_digest.code_digests(script, method)


@pytest.mark.parametrize(
    ("file", "old", "new", "changed"),
    [
        ("numbers.py", "FACTOR = 2", "FACTOR = 3", "ffnrepro.numbers"),
        ("numbers.py", "x * factor", "factor * x", "ffnrepro.numbers"),
        ("numbers.py", "from math import floor", "from math import ceil as floor", "ffnrepro.numbers"),
        ("numbers.py", "FACTOR = 2", "FACTOR = 2\nprint('imported')", "ffnrepro.numbers"),
        ("numbers.py", "FACTOR = 2", "FACTOR = 2\nFACTOR = 4", "ffnrepro.numbers"),
        ("shapes.py", "x ** 2", "x ** 3", "ffnrepro.shapes"),
        ("__init__.py", '"""The', 'import os\nos.environ["A"] = "1"\n"""The', "ffnrepro"),
        ("../script.py", "area(3)", "area(4)", "script.py"),
        ("../script.py", "import math", "import math\nmath.pi = 3", "script.py"),
        ("shapes.py", "import errors", "import errors, unused", "ffnrepro.unused"),
        # No number depends on these:
        ("numbers.py", "# a comment", "# another", None),
        ("numbers.py", '"""Twice."""', '"""Two times."""', None),
        ("numbers.py", '"""What is multiplied by."""', "", None),
        ("numbers.py", "_times(x, FACTOR)", "_times(\n        x,\n        (FACTOR),\n    )", None),
        ("numbers.py", "UNUSED = 1", "UNUSED = 2", None),
        ("numbers.py", "return UNUSED", "return 0", None),
        ("shapes.py", "return x\n", "return -x\n", None),
        ("errors.py", "assert x", "assert x > 0", None),
    ],
)  # fmt: skip
def test_what_changes_the_digest(script: Path, file: str, old: str, new: str, changed: str | None) -> None:
    before = digests(script)
    path = script.parent / "ffnrepro" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    after = digests(script)
    assert [name for name in after | before if after.get(name) != before.get(name)] == (
        [changed] if changed else []
    )


@pytest.mark.parametrize(
    "line",
    ["from .numbers import double", "from ffnrepro.numbers import *", "import ffnrepro.numbers", "import ffnrepro"],
)  # fmt: skip
def test_an_import_that_cannot_be_followed_is_refused(script: Path, line: str) -> None:
    script.write_text(f"import math\n{line}\n")
    with pytest.raises(ValueError, match=r"script\.py, line 2: .* write from MODULE import NAME"):
        digests(script)


def test_a_module_under_another_name_is_followed(script: Path) -> None:
    script.write_text("import ffnrepro.shapes as s\nprint(s.area(3))\n")
    before = digests(script)
    shapes = script.parent / "ffnrepro/shapes.py"
    shapes.write_text(shapes.read_text().replace("x ** 2", "x ** 3"))
    assert digests(script)["ffnrepro.shapes"] != before["ffnrepro.shapes"]


def test_a_name_that_begins_to_be_used_counts(script: Path) -> None:
    before = digests(script)
    script.write_text(SCRIPT.replace("area", "other"))
    assert digests(script)["ffnrepro.shapes"] != before["ffnrepro.shapes"]


def test_what_another_method_alone_computes_with_does_not_count(
    script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_digest, "ONLY_OF", {"round": ("ffnrepro.shapes",)})
    assert "ffnrepro.shapes" not in digests(script, "square")
    assert "ffnrepro.shapes" in digests(script, "round")


def test_what_is_named_is_there() -> None:
    """A name in the lists that nothing bears any more would hide nothing and say otherwise."""
    source = Path(code_digest.__file__).parents[1]
    for name in (*code_digest.LEFT_OUT, *(name for names in code_digest.ONLY_OF.values() for name in names)):
        path = source.joinpath(*name.split("."))
        if not path.with_suffix(".py").exists():
            tree = ast.parse(path.parent.with_suffix(".py").read_text())
            assert path.name in {getattr(statement, "name", None) for statement in tree.body}, name
