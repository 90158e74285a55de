"""Strict YAML into frozen pydantic models.

An unknown key, a wrong type or a key given twice is an error that names the nearest key. Overrides `a.b=c` are typed by
the model. Nothing mutates a configuration after it is loaded.
"""

from __future__ import annotations

import hashlib
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from backbench.errors import ConfigError, nearest
from backbench.files import opened
from backbench.printable import printable
from backbench.yaml_text import parse_yaml, write_yaml

_LONGEST_FILE = 1 << 18  # bytes


class Config(BaseModel):
    """Base of every configuration: frozen, no unknown keys, no silent coercion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)


class _ChangesNoNumber:
    """See `CHANGES_NO_NUMBER`."""


# Marks a field, `Annotated[int, Field(gt=0), CHANGES_NO_NUMBER]`, that changes speed or frequency and never a number.
# Identities use its default: two configurations that differ only in it are the same protocol.
CHANGES_NO_NUMBER = _ChangesNoNumber()


def read_mapping(path: Path) -> dict[str, Any]:
    """Read the mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: not a regular file, larger than any configuration, not UTF-8, or refused by `parse_yaml`.
    """
    try:
        with opened(path, ConfigError) as file:
            data = file.read(_LONGEST_FILE + 1)
    except OSError as error:
        raise ConfigError(f"{printable(path, 300)}: cannot be read ({error.strerror or error})") from None
    if len(data) > _LONGEST_FILE:
        raise ConfigError(f"{printable(path, 300)}: more than {_LONGEST_FILE:,} bytes, which no configuration has")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{printable(path, 300)}: cannot be read as UTF-8 ({error}); save it as UTF-8") from None
    values = parse_yaml(text, where=str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected a mapping of keys, found {type(values).__name__}")
    return values


def build(model: type[C], values: dict[str, Any], overrides: Sequence[str] = (), *, where: str = "configuration") -> C:
    """Validate `values`, with `a.b=c` overrides applied, into a frozen `model`.

    Raises:
        ConfigError: names the offending key and, when it is unknown, the nearest one.
    """
    merged = json.loads(json.dumps(values))
    for override in overrides:
        _apply(model, merged, override)
    try:
        # Through JSON: strict validation then accepts a list for a tuple, and no other conversion.
        return model.model_validate_json(json.dumps(merged))
    except ValidationError as error:
        raise ConfigError(f"{where}: {_explain(model, error)}") from None


def dump(config: Config) -> str:
    """The configuration as YAML that `build` reads back to an equal object."""
    return write_yaml(config.model_dump(mode="json"))


def as_override(value: Any) -> str:
    """A field's value as the right side of `a.b=c`: `none`, a word, or JSON."""
    if value is None:
        return "none"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def digest(values: Any) -> str:
    """SHA-256 of the canonical JSON of plain values or of a configuration: identity, independent of key order."""
    if isinstance(values, BaseModel):
        values = values.model_dump(mode="json")
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _apply(model: type[Config], values: dict[str, Any], override: str) -> None:
    """Write one `a.b=c` into `values`, typed by the model's field."""
    path, equals, text = override.partition("=")
    if not equals or not path:
        raise ConfigError(f"override '{override}' is not of the form key=value")
    keys, target, kind = path.strip().split("."), values, model
    for depth, key in enumerate(keys):
        fields = kind.model_fields if _is_model(kind) else None
        if fields is None:
            raise ConfigError(f"override '{path}': '{'.'.join(keys[:depth])}' has no keys below it")
        if key not in fields:
            raise ConfigError(f"unknown key '{path}'{nearest(path, dotted_keys(model))}")
        kind, optional = _plain_type(fields[key].annotation)
        if depth < len(keys) - 1:
            target = target.setdefault(key, {})
            if not isinstance(target, dict):
                raise ConfigError(f"override '{path}': '{key}' is {target!r} in the file, not a mapping of keys")
    if optional and text in ("none", "null", "~"):
        target[keys[-1]] = None
    else:
        target[keys[-1]] = text if kind is str else parse_yaml(text, where=f"override '{path}'")


def dotted_keys(model: type[Config], prefix: str = "") -> list[str]:
    """Every key of a model, nested ones as `a.b`."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind, _ = _plain_type(field.annotation)
        keys += dotted_keys(kind, f"{prefix}{name}.") if _is_model(kind) else [f"{prefix}{name}"]
    return keys


def takes_commas(model: type[Config], key: str) -> Literal["text", "list"] | None:
    """How one value of the field `a.b` can hold a comma, if the model has the field and it can."""
    kind: Any = model
    for name in key.split("."):
        field = kind.model_fields.get(name) if _is_model(kind) else None
        if field is None:
            return None
        annotation, (kind, _) = field.annotation, _plain_type(field.annotation)
    if kind is str:
        return None if "Literal" in str(annotation) else "text"
    return "list" if typing.get_origin(kind) in (tuple, list, dict) else None


def indifferent_keys(model: type[Config], prefix: str = "") -> list[str]:
    """The keys of a model's fields that are marked `CHANGES_NO_NUMBER`, nested ones as `a.b`."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        kind, _ = _plain_type(field.annotation)
        if CHANGES_NO_NUMBER in field.metadata:
            keys.append(f"{prefix}{name}")
        elif _is_model(kind):
            keys += indifferent_keys(kind, f"{prefix}{name}.")
    return keys


def without_indifferent(config: C) -> C:
    """The configuration with all fields that are marked `CHANGES_NO_NUMBER` at their defaults."""
    changed: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if CHANGES_NO_NUMBER in field.metadata:
            changed[name] = field.get_default(call_default_factory=True)
        elif isinstance(value, Config):
            changed[name] = without_indifferent(value)
    return config.model_copy(update=changed)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _plain_type(annotation: Any) -> tuple[Any, bool]:
    """`X` for `X | None` and `Annotated[X, ...]`, `str` for a Literal of words; and whether None is allowed."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _plain_type(typing.get_args(annotation)[0])
    if origin in (types.UnionType, typing.Union):
        kinds = [a for a in typing.get_args(annotation) if a is not type(None)]
        kind = _plain_type(kinds[0])[0] if len(kinds) == 1 else object
        return kind, len(kinds) < len(typing.get_args(annotation))
    if origin is typing.Literal and all(isinstance(a, str) for a in typing.get_args(annotation)):
        return str, False
    return annotation, False


_OUR_WORDS = {  # pydantic's words for these are those of JSON
    "list_type": "must be a list, such as [1, 2]",
    "tuple_type": "must be a list, such as [1, 2]",
    "model_type": "must be a mapping of keys, such as {a: 1}",
    "dict_type": "must be a mapping of keys, such as {a: 1}",
    "bool_type": "must be true or false",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be text",
}


def _explain(model: type[Config], error: ValidationError) -> str:
    """Return all problems in one sentence, each with its dotted key."""
    sentences = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            sentences.append(f"unknown key '{key}'{nearest(key, dotted_keys(model))}")
        elif problem["type"] == "missing":
            sentences.append(f"key '{key}' is missing")
        else:
            message = _OUR_WORDS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
            message = message.replace("Input should", "must", 1)
            given = json.dumps(problem["input"], default=str)
            sentences.append(f"'{key}': {message} (given: {given[:80]})" if key and len(given) <= 80 else message)
    return "; ".join(sentences)
