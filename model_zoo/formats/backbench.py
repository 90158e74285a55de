"""Our own layout: {"format": "backbench-1", "arch", "input", "state_dict"} with torchvision names and no head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from backbench.errors import CheckpointError
from model_zoo.architecture import Architecture, InputSpec
from model_zoo.backbone import FORMAT
from model_zoo.formats import Extracted, take
from model_zoo.wrappers import word

MORE_SPECIFIC_THAN = ("torchvision", "prefixed", "mmdet", "lightning")  # the file states its format


def matches(obj: Any) -> bool:
    """Return whether the file states our format, in any version."""
    return isinstance(obj, Mapping) and isinstance(obj.get("format"), str) and obj["format"].startswith("backbench-")


def extract(obj: Any) -> Extracted:
    """Return the tensors with the architecture and input stated in the file."""
    if obj["format"] != FORMAT:
        raise CheckpointError(f"format '{obj['format']}' is unknown to this version, which reads '{FORMAT}'")
    absent = [key for key in ("arch", "input", "state_dict") if not isinstance(obj.get(key), Mapping)]
    if absent:
        raise CheckpointError(f"states format '{FORMAT}' but has no '{absent[0]}'")
    found = take({word(key): value for key, value in obj["state_dict"].items()}, "", ())
    return Extracted(found.state, found.dropped, found.leftover, arch=obj["arch"], input=obj["input"])


def example(state: Mapping[str, Tensor], arch: Architecture) -> Any:
    """Return a file of this layout."""
    return {
        "format": FORMAT,
        "arch": arch.model_dump(mode="json"),
        "input": InputSpec().model_dump(mode="json"),
        "state_dict": dict(state),
    }
