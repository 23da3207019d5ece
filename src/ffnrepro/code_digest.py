"""Digest of the code that decides a script's numbers: changed code is run again, a comment is not.

From a script on, every name that is used is followed through the imports to the function, class or constant of this
package that it means, and on to the names used there. What is reached counts, by its syntax tree: comments, docstrings
and formatting do not. Statements of a reached module that define nothing count, too, since importing runs them.
"""

import ast
import hashlib
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = "ffnrepro"

LEFT_OUT = {
    "ffnrepro.code_digest": "tells whether code changed; it computes nothing",
    "ffnrepro.decides": "makes the key from what decides a result; what it leaves out is not computed otherwise",
    "ffnrepro.errors": "kinds of errors",
    "ffnrepro.files": "writes files whole; digests, where another way to make them changes every key anyway",
    "ffnrepro.training.lease": "who may work on a state",
    "ffnrepro.logs": "what a script says",
    "ffnrepro.provenance": "what is recorded beside a number",
    "ffnrepro.training.stopping": "when a run stops; it continues from its state to the same result (tests/unit/test_resumption.py)",
    "ffnrepro.training.checkpoints": "saves and reads what training hands to it, checked by digest; a resumed run ends in the same tensors",
    "ffnrepro.training.progress": "lines, curves and warnings",
    "ffnrepro.training.job.training_parser": "hands over what the rule gives: the settings as they are, and what decides no number",
    "ffnrepro.training.job.write_record": "writes run.json and the history, beside the network",
}
"""What is reached and decides no number, with the reason. A mistake here gives a stale number, so it holds little."""

ONLY_OF = {"ffn": ("ffnrepro.recipe.models.ffn", "ffnrepro.recipe.losses.frame_flexible_loss")}
"""What a method alone computes with: jobs of other methods name it, but never call it."""


def reached_names(script: Path, method: str | None = None) -> dict[str, set[str]]:
    """The names that are used in a script and in each module of the package that it reaches; `*` is all of a module.

    Args:
        script: of a rule.
        method: of the experiment that the job is about; what other methods alone compute with is left out.
    """
    others = {name for other, names in ONLY_OF.items() if method not in (None, other) for name in names}
    stops = tuple(f"{name}." for name in (*LEFT_OUT, *others))
    reached: dict[str, set[str]] = defaultdict(set)
    todo = [(script.name, "*")]
    while todo:
        name, what = todo.pop()
        if what in reached[name] or f"{name}.{what}.".startswith(stops):
            continue
        module = _read_module(name, script)
        if not reached[name]:  # importing runs the module, those that it imports, and the packages above
            reached[name].add("")
            todo += [(name, used) for statement in module.always for used in _names_in(statement)]
            todo += [(_place(origin)[0], "") for origin in module.imports.values() if _is_ours(origin)]
            if _is_ours(name) and name != PACKAGE:
                todo.append((name.rpartition(".")[0], ""))
        reached[name].add(what)
        if what == "*":
            todo += [(name, defined) for defined in module.definitions]
        elif what in module.imports:
            origin = module.imports[what]
            if _is_ours(origin):
                todo.append(_place(origin))
        elif what in module.definitions:
            for statement in module.definitions[what]:
                todo += [(name, used) for used in _names_in(statement)]
        elif "." in what:  # transforms.normalise: an attribute of something imported, or of anything else
            first, _, rest = what.partition(".")
            origin = module.imports.get(first, "")
            if _is_ours(origin) and _place(origin)[1] == "*":
                todo.append((origin, rest))
            else:
                todo.append((name, first))
    return dict(reached)


@cache
def code_digests(script: Path, method: str | None = None) -> dict[str, str]:
    """A digest for the script and for each module of the package that it reaches, of what it reaches there.

    Args:
        script: of a rule.
        method: of the experiment that the job is about.
    """
    reached = reached_names(script, method)
    texts = {name: _read_module(name, script).content(reached[name]) for name in sorted(reached)}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in texts.items() if text}


class _Module(NamedTuple):
    """A source file: what it defines by name, where its imported names come from, and its other statements."""

    definitions: dict[str, list[ast.stmt]]
    imports: dict[str, str]
    always: list[ast.stmt]

    def content(self, names: set[str]) -> str:
        """These definitions and imports, whatever their order, and what importing runs."""
        parts = [[_text_of(statement)] for statement in self.always]
        for name in sorted(names):
            if name in self.imports:
                parts.append([name, self.imports[name]])
            if name in self.definitions:
                parts.append([name, *map(_text_of, self.definitions[name])])
        return repr(parts) if parts else ""


def _read_module(name: str, script: Path) -> _Module:
    return _read(script if name == script.name else _file_of(name))


@cache
def _read(path: Path) -> _Module:
    module = _Module(defaultdict(list), {}, [])
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if _is_ours(alias.name) and alias.asname is None:
                    raise _not_followed(path, node, f"import {alias.name}")
                module.imports[alias.asname or alias.name.partition(".")[0]] = alias.name
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise _not_followed(path, node, "a relative import")
            for alias in node.names:
                if alias.name == "*":
                    raise _not_followed(path, node, "import *")
                module.imports[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            module.definitions[statement.name].append(statement)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            names = [target.id for target in targets if isinstance(target, ast.Name)]
            for name in names:
                module.definitions[name].append(statement)
            # Of something that is there already, such as os.environ["A"]; or of several at once.
            if len(names) < len(targets):
                module.always.append(statement)
        elif not isinstance(statement, ast.Import | ast.ImportFrom) and not _is_text(statement):
            module.always.append(statement)
    return module


def _not_followed(path: Path, node: ast.stmt, what: str) -> ValueError:
    return ValueError(
        f"{path}, line {node.lineno}: {what}: what it brings is not counted by the digest of code; write "
        "from MODULE import NAME"
    )


@cache
def _names_in(statement: ast.stmt) -> tuple[str, ...]:
    """Names used in a statement; `a.b` for an attribute of a name."""
    found, within = [], set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            within.add(node.value)
            found.append(f"{node.value.id}.{node.attr}")
        elif isinstance(node, ast.Name) and node not in within:  # an attribute is walked before its name
            found.append(node.id)
    return tuple(dict.fromkeys(found))


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] == PACKAGE


def _place(origin: str) -> tuple[str, str]:
    """Module and name of what is imported; all of it (`*`) where it is a module."""
    if _file_of(origin).exists():
        return origin, "*"
    module, _, name = origin.rpartition(".")
    return module, name


def _file_of(module: str) -> Path:
    path = Path(__file__).parent.joinpath(*module.split(".")[1:])
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _text_of(statement: ast.stmt) -> str:
    return repr(_canonical(statement))


def _canonical(node: Any) -> Any:
    """A syntax tree as plain values: without docstrings, places, and what a later Python adds and is not used."""
    if isinstance(node, list):
        return [_canonical(item) for item in node if not _is_text(item)]
    if isinstance(node, ast.AST):
        fields = [(name, value) for name, value in ast.iter_fields(node) if value is not None and value != []]
        return [type(node).__name__, *([name, _canonical(value)] for name, value in fields if name != "kind")]
    return repr(node)


def _is_text(node: Any) -> bool:
    """Whether it is a docstring, of a module, class, function or constant."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
