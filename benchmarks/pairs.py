"""Find a cell by its name: a cell file, or a pair of a data set and a protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from backbench import plugins
from backbench.config import Config, build, read_mapping
from backbench.data import catalogue, layouts
from backbench.errors import BackbenchError, ConfigError, nearest
from backbench.files.folders import configs_folder
from transfer import tasks

Needs = Literal["images", "class", "classes", "boxes", "masks", "semantic"]


class Protocol(Config):
    """`configs/protocols/<name>.yaml`: a task with its preset and fields, for every data set with the labels it needs."""

    task: str
    preset: str | None = None
    needs: Needs | Annotated[tuple[Needs, ...], Field(min_length=1)] = "class"  # labels, of several any; `images`: none
    fields: Mapping[str, Any] = Field(default_factory=dict)
    of_labels: Mapping[Needs, Mapping[str, Any]] = Field(default_factory=dict)  # keys for data with these labels
    of_layout: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)  # keys of the cell for data in this layout
    of_data: Mapping[str, Mapping[str, Any]] = Field(default_factory=dict)  # keys of the cell for one data set


def protocols() -> plugins.Parts[Protocol]:
    """Every protocol, by name."""
    return plugins.read_files("protocols", configs_folder() / "protocols", _read_protocol)


def names() -> list[str]:
    """Return every cell: cell files, and pairs without a file."""
    own = files().found
    return sorted({*own, *(_pairs().keys() - _standing_for(own).keys())})


def exists(name: str) -> bool:
    """Return whether a name, as `called` returns it, is a cell's."""
    return name in files().found or name in _pairs()


def called(name: str) -> str:
    """Return the cell file's name for a pair (`voc07_svm` for `voc_svm`), or the name itself."""
    own = files().found
    return name if name in own else _standing_for(own).get(name, name)


def fields(name: str) -> dict[str, Any]:
    """Return the keys of a cell: task, preset, data and fields. Raises ConfigError: its file, or a part of it, is broken."""
    own, pair = files(), _pairs().get(name)
    if name not in own.found and pair is not None:
        return _of_pair(*pair)
    values = dict(own.get(name, "cell"))
    protocol = values.pop("protocol", None)
    if protocol is None:
        return values
    data = values.pop("data", None)
    if not isinstance(data, str) or not isinstance(protocol, str):
        raise ConfigError(f"cell {name}: 'protocol' and 'data' must be names, as in `data: voc` and `protocol: svm`")
    return merged(_of_pair(data, protocol), values)


def why_not(name: str) -> str | None:
    """Return why a name with a known part is not a cell; None when no part is known, or another cell's name is close."""
    own, parts = files(), protocols()
    if name in own.broken:
        return own.broken[name]
    for data in sorted(catalogue.known(), key=len, reverse=True):
        rest = name.removeprefix(f"{data}_")
        if rest == name:
            continue
        if rest in parts.broken:
            return parts.broken[rest]
        if rest in parts.found:
            layout = catalogue.info(data).layout
            needs = " or ".join(_WORDS[each] for each in sorted(_needed(parts.found[rest])))
            given = " and ".join(sorted(layouts.labels(layout)))
            return f"unknown cell '{name}': '{rest}' needs {needs}; '{data}' (layout {layout}) gives {given}"
    data, _, rest = name.rpartition("_")
    if data and rest in parts.found and not nearest(name, names()).startswith("; did you mean"):
        return f"unknown cell '{name}': there is no data set '{data}'; give its folder: --data {data}=DIR"
    return None


def of_data(name: str) -> list[str]:
    """Return the pairs of a data set, by cell name."""
    return sorted(cell for cell, (data, _) in _pairs().items() if data == name)


_WORDS = {
    "images": "images",
    "class": "one class an image",
    "classes": "all classes of an image",
    "boxes": "boxes",
    "masks": "masks",
    "semantic": "a mask with one class per pixel",
}


def _needed(protocol: Protocol) -> frozenset[Needs]:
    """Return the kinds of labels that a protocol can use."""
    return frozenset([protocol.needs] if isinstance(protocol.needs, str) else protocol.needs)


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge `over` into `base`; nested mappings are merged key by key."""
    found = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = merged(found[key], value) if both else value
    return found


def files() -> plugins.Parts[dict[str, Any]]:
    """Return the keys of each cell file, by cell."""
    return plugins.read_files("cells", configs_folder() / "tasks", read_mapping)


def _standing_for(cells: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Map each pair that a cell file states to that cell."""
    return {
        f"{values['data']}_{values['protocol']}": name
        for name, values in sorted(cells.items(), reverse=True)
        if isinstance(values.get("protocol"), str) and isinstance(values.get("data"), str)
    }


def _pairs() -> dict[str, tuple[str, str]]:
    """Return every pair of a data set and a protocol that its labels allow, by cell name."""
    found: dict[str, tuple[str, str]] = {}
    kinds = protocols().found  # once: every call looks at the files again
    for data, info in catalogue.known().items():
        if info.train is None:
            continue
        try:
            labels = layouts.labels(info.layout)
        except BackbenchError as error:
            plugins.warn(f"data set '{data}': {error}; its cells are left out")
            continue
        given = {*labels, "images"}
        found |= {f"{data}_{name}": (data, name) for name, p in kinds.items() if _needed(p) & given}
    return found


def _of_pair(data: str, name: str) -> dict[str, Any]:
    """Return the keys of a pair: the protocol's, then those for its labels, the layout and the data set."""
    protocol, info = protocols().get(name, "protocol"), catalogue.info(data)
    values: dict[str, Any] = {"task": protocol.task, **protocol.fields}
    if protocol.preset is not None:
        values["preset"] = protocol.preset
    for kind in sorted(protocol.of_labels.keys() & layouts.labels(info.layout)):
        values = merged(values, protocol.of_labels[kind])
    values = merged(values, protocol.of_layout.get(info.layout, {}))
    values = merged(values, protocol.of_data.get(data, {}))
    values["data"] = {"name": data} if info.counts else {"name": data, "expect": "any"}
    known = tasks.get(values["task"]).Config.model_fields
    splits = {role: getattr(info, role) for role in ("train", "test") if role in known}  # for detection
    return {**splits, **values}


def _read_protocol(file: Path) -> Protocol:
    return build(Protocol, read_mapping(file), where=str(file))
