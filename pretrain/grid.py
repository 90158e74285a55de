"""Comma lists among the overrides, `method.views=2,4 method.lambda_b=0,0.5`: the points of their product."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from backbench.config import takes_commas
from backbench.errors import ConfigError
from pretrain import methods
from pretrain.config import DEFAULT_METHOD, PretrainConfig, fields_of, load

MOST = 1000  # points; more are a typing mistake
_CLOSING = {"[": "]", "{": "}", "(": ")"}


@dataclass(frozen=True)
class Point:
    """One recipe of a grid."""

    name: str  # of its folder
    words: tuple[str, ...]  # all overrides, without lists
    values: tuple[tuple[str, str], ...]  # (field, value) of the fields that differ between points


def points(recipe: str | None, overrides: Sequence[str]) -> list[Point]:
    """The points in the order of the words, the last field fastest; empty where no override is a list of values.

    Commas within brackets do not separate values: `views.scale=[0.08,1],[0.2,1]` is a grid of two.

    Raises:
        ConfigError: an empty value, more than `MOST` points, two equal points, or one that does not fit the recipe.
    """
    words = list(
        {word.partition("=")[0].strip(): word for word in overrides}.values()
    )  # the last one of a field counts
    named = [name for word in words if word.startswith("method.name=") for name in split(word.partition("=")[2])]
    axes = {word.partition("=")[0].strip(): split(word.partition("=")[2]) for word in words if _is_axis(word, named)}
    if not axes:
        return []
    for key, values in axes.items():
        if not all(values):
            raise ConfigError(f"{key}={','.join(values)}: a value of the list is empty")
    rest = [word for word in words if word.partition("=")[0].strip() not in axes]
    count = 1
    for values in axes.values():
        count *= len(values)
    if count > MOST:
        raise ConfigError(f"{' x '.join(map(str, map(len, axes.values())))} values are {count} points; {MOST} at most")
    found = [_point(dict(zip(axes, chosen, strict=True)), rest) for chosen in itertools.product(*axes.values())]
    _refuse_equal(recipe, found)
    return found


def split(text: str) -> list[str]:
    """The parts between commas outside brackets."""
    parts, waiting = [""], []
    for letter in text:
        if letter in _CLOSING:
            waiting.append(_CLOSING[letter])
        elif waiting and letter == waiting[-1]:
            waiting.pop()
        if letter == "," and not waiting:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def _is_axis(word: str, named: Sequence[str]) -> bool:
    key, _, text = word.partition("=")
    values = split(text)
    if len(values) < 2:
        return False
    kind = _commas(key.strip(), named)
    return kind is None or (kind == "list" and all(value.startswith("[") for value in values))


def _commas(key: str, named: Sequence[str]) -> Literal["text", "list"] | None:
    if not key.startswith("method."):
        return takes_commas(PretrainConfig, key)
    kinds = (takes_commas(fields_of(methods.get(name)), key) for name in named or [DEFAULT_METHOD])
    return next((kind for kind in kinds if kind), None) if key != "method.name" else None


def _point(chosen: dict[str, str], rest: Sequence[str]) -> Point:
    last = [key.rpartition(".")[2] for key in chosen]
    labels = last if len(set(last)) == len(last) else list(chosen)
    plain = [re.sub(r"[^A-Za-z0-9.+-]+", "_", value).strip("_") for value in chosen.values()]
    name = "-".join(f"{label}-{value}" for label, value in zip(labels, plain, strict=True))
    words = [*rest, *(f"{key}={value}" for key, value in chosen.items())]
    return Point(name, tuple(words), tuple(chosen.items()))


def _refuse_equal(recipe: str | None, found: Sequence[Point]) -> None:
    """ConfigError when two points are one recipe, or would share a folder. Validates every point."""
    recipes: dict[str, str] = {}
    for point in found:
        text = load(recipe, list(point.words)).model_dump_json()
        if (other := recipes.get(text)) is not None:
            raise ConfigError(f"{point.name} and {other} are the same recipe; give each value once")
        if point.name in recipes.values():
            raise ConfigError(f"two points would have the folder {point.name}; give values that differ in letters")
        recipes[text] = point.name
