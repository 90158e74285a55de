"""Architecture and input stated by a file or by a `.yaml` beside it, checked before use."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backbench.config import Config, read_mapping
from backbench.errors import CheckpointError, ConfigError
from backbench.printable import printable

_LONGEST = 16  # items of a list


def plain(fields: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Return the fields, after checking that each is a word, a number, a boolean or a short list of numbers.

    Raises:
        CheckpointError: names the field that has another value.
    """
    for key, value in fields.items():
        if not isinstance(key, str):
            raise CheckpointError(f"{where}: a key must be a word, not {printable(key, 80)}")
        if not _is_plain(value):
            raise CheckpointError(
                f"{where}: '{printable(key, 80)}' is {printable(value, 80)}, not a word, number or short list"
            )
    return {key: list(value) if isinstance(value, tuple) else value for key, value in fields.items()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= _LONGEST and all(type(item) in (int, float, bool) and _is_plain(item) for item in value)
    if isinstance(value, bool) or value is None:
        return True
    if isinstance(value, int):
        return value.bit_length() <= 64
    if isinstance(value, float):
        return value - value == 0  # neither NaN nor infinite
    return isinstance(value, str) and len(value) <= 200


def sidecar(path: Path) -> dict[str, Any]:
    """Return `<checkpoint>.yaml` beside the file: `arch` and `input` fields that the weights do not show.

    Raises:
        ConfigError: it exists but is not a regular YAML file.
        CheckpointError: it has other keys.
    """
    side = Path(f"{path}.yaml")
    if not os.path.lexists(side):  # also where no file can have so long a name
        _refuse_other_names(path)
        return {}
    values = read_mapping(side)
    unknown = set(values) - {"arch", "input"}
    if unknown:
        raise CheckpointError(
            f"{printable(side.name)}: unknown key '{printable(min(unknown), 80)}'; known: arch, input"
        )
    for key, fields in values.items():
        if not isinstance(fields, dict):
            raise CheckpointError(
                f"{printable(side.name)}: '{key}' must be a mapping of fields, not {printable(fields, 80)}"
            )
    return values


def _refuse_other_names(path: Path) -> None:
    """Raise CheckpointError for a sidecar with a nearly right name, which would otherwise be ignored."""
    for other in (Path(f"{path}.yml"), path.with_suffix(".yaml"), path.with_suffix(".yml")):
        if not os.path.isfile(other):  # noqa: PTH113 (which raises for long names)
            continue
        try:
            meant = set(read_mapping(other)) <= {"arch", "input"}
        except ConfigError:  # another YAML file of the training
            continue
        if meant and other.stat().st_size:
            raise CheckpointError(
                f"{printable(other.name)} is not read: rename it to {printable(path.name)}.yaml, or remove it if it does not "
                "belong to this checkpoint"
            )


def refuse_contradiction(path: Path, part: str, own: Config, both: Config) -> None:
    """Raise CheckpointError if a sidecar contradicts what our own layout states; it may repeat it."""
    for key, value in own:
        if (beside := getattr(both, key)) != value:
            raise CheckpointError(
                f"{path.name}.yaml says {part}.{key} is {beside!r}, the checkpoint itself {value!r}: remove the .yaml if it "
                "belongs to another file"
            )
