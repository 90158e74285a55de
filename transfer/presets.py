"""Presets: named sets of a protocol's fields. Some may depend on other fields of the cell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel

from backbench.config import Config


@dataclass(frozen=True)
class When:
    """Fields that a preset sets only if the cell's field `key` (`a.b` for a nested one) equals `value`."""

    key: str
    value: Any
    fields: Mapping[str, Any]


@dataclass(frozen=True)
class Preset:
    """Fields that a preset's name sets. A value may be a nested configuration (a detector's spec)."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    when: tuple[When, ...] = ()

    def resolved(self, model: type[Config], values: Mapping[str, Any]) -> dict[str, Any]:
        """Return all fields as plain values for a cell with fields `values`. An override's key may be `a.b`."""
        found = dict(self.fields)
        for rule in self.when:
            if stated(model, values, rule.key) == rule.value:
                found |= rule.fields
        return {name: v.model_dump(mode="json") if isinstance(v, BaseModel) else v for name, v in found.items()}


def stated(model: type[Config], values: Mapping[str, Any], key: str) -> Any:
    """Return a field's value: the override's, else the cell's, else the model's default."""
    if key in values:
        return values[key]
    first, nested, rest = key.partition(".")
    default = model.model_fields[first].default
    if not nested:
        return default
    below = values.get(first)
    return below[rest] if isinstance(below, Mapping) and rest in below else getattr(default, rest)
