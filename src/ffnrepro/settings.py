"""The base class of all settings, and the one function that reads settings from a mapping.

A model of settings declares each key once: its type, bounds, default and, as the docstring of the attribute, its
description. A validator of a model raises `ValueError` with the text that follows "config: KEY is VALUE; ".
"""

import difflib
import typing
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from ffnrepro.errors import UserError

MAX_FRAMES = 256
"""No clip of the data sets is longer at the frame rates in use, so a higher frame count is a typing error."""


class Settings(BaseModel):
    """Immutable settings.

    Types are strict: True is not accepted as a number, nor 1 as true. Text is read as YAML where a field takes no
    text: YAML 1.1 reads 5e-4 as text, and Snakemake passes the values inside `--config training='{epochs: 30}'` as text.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _read_mapping(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        refuse_unknown_keys(value, cls.model_fields)
        return {name: _read_text(item, cls.model_fields[name].annotation) for name, item in value.items()}


def listed_values(settings: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Some settings with their values, for messages, such as "depth 50, width 64"; a missing one is None."""
    return ", ".join(f"{key} {settings.get(key)}" for key in keys)


def refuse_unknown_keys(mapping: Mapping[Any, Any], legal: Iterable[str]) -> None:
    """Refuse the first unknown key; for validators.

    Raises:
        PydanticCustomError: `read_settings` turns it into one line for the user.
    """
    legal = list(legal)
    for name in mapping:
        if name not in legal:
            near = difflib.get_close_matches(str(name), legal, n=1)
            raise PydanticCustomError(
                "unknown_key", "unknown key", {"name": str(name), "near": near, "legal": legal}
            )


def _read_text(value: Any, annotation: Any) -> Any:
    """Read text as YAML where `annotation` takes no text, and lists as tuples."""
    if isinstance(value, list | tuple):
        return tuple(_read_text(item, annotation) for item in value)
    takes_text = _takes_text(annotation)
    optional = type(None) in typing.get_args(annotation)
    if not isinstance(value, str) or (takes_text and not (optional and value == "null")):
        return value
    try:
        read = yaml.safe_load(value)
        return float(read) if isinstance(read, str) else tuple(read) if isinstance(read, list) else read
    except (yaml.YAMLError, ValueError):
        return value


def _takes_text(annotation: Any) -> bool:
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is Literal:
        return any(isinstance(value, str) for value in arguments)
    return annotation is str or any(_takes_text(argument) for argument in arguments)


def check_rising(values: tuple[int, ...]) -> tuple[int, ...]:
    """Refuse whole numbers that are repeated or out of order.

    Raises:
        ValueError: they are; the message gives the right order.
    """
    if list(values) != sorted(set(values)):
        raise ValueError(f"write each number once, in ascending order: {sorted(set(values))}")
    return values


Rising = AfterValidator(check_rising)

FrameCounts = Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_FRAMES)], ...], Field(min_length=1), Rising]
"""Frame counts from 1 to `MAX_FRAMES`, each once, in ascending order."""


Model = TypeVar("Model", bound=Settings)


def read_settings(model: type[Model], mapping: Any, *, source: str = "config", key: str = "") -> Model:
    """Read and check settings.

    Args:
        model: class of the settings.
        mapping: the content, as read from YAML or JSON.
        source: where the mapping comes from, such as a file's path; each message begins with it.
        key: dotted key of the mapping in its source; empty if the mapping is the whole source.

    Raises:
        UserError: an unknown, missing, mistyped or impossible value, in one line with its key and the valid values.
    """
    try:
        return model.model_validate(mapping)
    except ValidationError as error:
        # If a value may be of two types, the deepest error belongs to the type that fits best.
        deepest = max(error.errors(include_url=False), key=lambda details: len(details["loc"]))
        raise UserError(f"{source}: {_describe(deepest, mapping, key)}") from None


_LEGAL = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text (put a number in quotes)",
    "string_pattern_mismatch": "text that matches {pattern}",
    "tuple_type": "a list, such as [{value}]",
    "too_short": "a list or mapping of length {min_length} or more",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "literal_error": "{expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "greater_than": "more than {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "below {lt:g}",
    "less_than_equal": "{le:g} or less",
    "multiple_of": "a multiple of {multiple_of}",
}
"""Valid values by pydantic's type of error."""


def _describe(error: ErrorDetails, mapping: Any, key: str) -> str:
    """One line for an error from pydantic, without the source."""
    kind, context, value = error["type"], error.get("ctx", {}), error["input"]
    key = _dotted(error, mapping, key)
    if kind == "unknown_key":
        prefix = f"{key}." if key else ""
        hint = f"valid keys: {', '.join(context['legal'])}"
        if context["near"]:
            hint = f"did you mean {prefix}{context['near'][0]}?"
        return f"{prefix}{context['name']} is not a key; {hint}"
    if kind in ("missing", "union_tag_not_found"):
        return f"{key} is missing; config/README.md describes it"
    key = key or "the content"
    if kind == "value_error" and isinstance(value, Mapping | Settings):
        return f"{key}: {context['error']}"
    value = context.get("tag", value)
    shown = list(value) if isinstance(value, tuple) else value
    if kind == "value_error":
        return f"{key} is {shown!r}; {context['error']}"
    legal = _LEGAL[kind].format(value=value, **context) if kind in _LEGAL else error["msg"]
    return f"{key} is {shown!r}; it must be {legal}"


def _dotted(error: ErrorDetails, mapping: Any, key: str) -> str:
    """The dotted key of an error, without the parts of pydantic's location that name a type."""
    location, found, here = error["loc"], key, mapping
    for i, part in enumerate(location):
        last = i == len(location) - 1
        if isinstance(here, list | tuple) and isinstance(part, int):
            found += f"[{part}]"
            here = here[part]
        elif isinstance(here, Mapping) and part in here:
            # An experiment has the settings of its method on its own level, while the location is (method, its name, key).
            if last or here[part] != location[i + 1]:
                found += f".{part}"
                here = here[part]
        elif last and error["type"] in ("missing", "union_tag_not_found"):
            found += f".{part}"
    return found.removeprefix(".")
