"""The table of keys of config/README.md, from the models of the configuration: `python -m tests.keys_table` prints it."""

import json
import re
from collections.abc import Iterator
from typing import Any

from ffnrepro.config import Config

METHODS = {
    "tsm": "Tsm",
    "ffn": "Ffn",
    "mixed": "Mixed",
    "proportional": "Proportional",
    "checkpoint": "Imported",
}
"""Methods whose settings are in the table, with their classes. Another method describes its settings in its own file."""


def keys_markdown() -> str:
    """The table of keys of config/README.md."""
    schema = Config.model_json_schema()
    lines = ["| key | values | default | meaning |", "|---|---|---|---|"]
    for key, field in dict(_list_keys(schema, schema["$defs"], "")).items():
        default = f"`{json.dumps(field['default'])}`".replace('"', "") if "default" in field else "required"
        description = " ".join(field["description"].split())
        lines.append(f"| `{key}` | {_legal_values(field)} | {default} | {description} |")
    return "\n".join(lines) + "\n"


def _list_keys(model: Any, models: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Dotted key and JSON schema of each setting of a model and of the models in it."""
    for name, field in model["properties"].items():
        references = re.findall(r'"\$ref": "#/\$defs/(\w+)"', json.dumps(field))
        if "discriminator" in field:
            references = [name for name in references if name in METHODS.values()]
        inner = [models[reference] for reference in references]
        step = {"array": f"{name}[].", "object": f"{name}.NAME."}.get(field.get("type"), f"{name}.")
        if "discriminator" in field:
            # The settings of a method are on the same level as the other keys of an experiment.
            step = ""
        for schema in inner:
            yield from _list_keys(schema, models, f"{prefix}{step}")
        if "discriminator" in field:
            yield f"{prefix}{name}", {"enum": list(METHODS), "description": "Method of the experiment."}
        elif not inner:
            yield f"{prefix}{name}", field


def _legal_values(schema: Any) -> str:
    """Type and bounds of a JSON schema in words."""
    if "anyOf" in schema:
        return " or ".join(map(_legal_values, schema["anyOf"]))
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_legal_values(schema['items'])}".replace("number", "numbers")
    words = [_TYPES[kind], *(text.format(schema[key]) for key, text in _BOUNDS.items() if key in schema)]
    return ", ".join(words)


_TYPES = {
    "boolean": "`true` or `false`",
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "null": "`null`",
    "object": "mapping",
}
_BOUNDS = {
    "exclusiveMinimum": "above {}",
    "minimum": "{} or more",
    "exclusiveMaximum": "below {}",
    "maximum": "at most {}",
    "multipleOf": "multiple of {}",
}


if __name__ == "__main__":
    print(keys_markdown(), end="")
