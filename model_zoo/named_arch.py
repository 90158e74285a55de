"""Build the network that `--arch timm:NAME?field=value` names, without weights."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from torch import nn

from backbench.errors import CheckpointError, nearest
from backbench.printable import printable
from model_zoo import external

_NAME = re.compile(r"[a-z0-9_]{3,80}")
# Fields of timm's networks that no tensor shows, or whose tensors another value explains.
_FIELDS: dict[str, type] = {
    "num_heads": int,
    "img_size": int,
    "depth": int,
    "embed_dim": int,
    "reg_tokens": int,
    "init_values": float,
    "global_pool": str,
}


@dataclass(frozen=True)
class NamedNetwork:
    """A network with timm's initial weights, and what its tensors do not show."""

    words: str  # its name and fields, as in a record
    module: nn.Module
    size: int  # of its images
    classifiers: tuple[str, ...]  # names of the modules that are not there

    @property
    def heads(self) -> tuple[int, int] | None:
        """(attention heads, width) of a transformer; None for other networks."""
        blocks, width = getattr(self.module, "blocks", None), getattr(self.module, "embed_dim", None)
        attention = getattr(blocks[0], "attn", None) if isinstance(blocks, nn.Sequential) and len(blocks) else None
        heads = getattr(attention, "num_heads", None)
        return (heads, width) if isinstance(heads, int) and isinstance(width, int) else None

    @property
    def pooling(self) -> str | None:
        """How timm makes one feature vector of a transformer's tokens; None where it does not say."""
        found = getattr(self.module, "global_pool", None)
        return found if isinstance(found, str) and found else None


def build(arch: str) -> NamedNetwork:
    """Return the network of `timm:NAME`, with timm's fields after a question mark.

    Raises:
        CheckpointError: timm has no such network, a field is unknown, or it does not take square RGB images.
    """
    import timm

    shown = printable(arch, 200)
    name, _, query = arch.removeprefix("timm:").partition("?")
    if not arch.startswith("timm:") or not _NAME.fullmatch(name):
        raise CheckpointError(f"--arch {shown}: write timm:NAME, the architecture without a tag of its weights")
    if not timm.is_model(name):
        raise CheckpointError(f"--arch {shown}: timm {timm.__version__} has no such network{_near(name)}")
    fields = _fields(shown, query)
    try:
        with external.seeded():
            module = timm.create_model(name, pretrained=False, num_classes=0, **fields)
    except Exception as error:  # timm's networks raise many kinds for a field they lack
        raise CheckpointError(f"--arch {shown}: timm cannot build it ({external.first_words(error)})") from None
    config = external.published_config(module)
    size = fields.get("img_size") or external.square_rgb(f"--arch {shown}", config["input_size"])
    classifiers = config.get("classifier") or ()
    names = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    said = "&".join(f"{key}={value}" for key, value in sorted(fields.items()))
    return NamedNetwork(f"{name}?{said}" if said else name, module.eval(), size, names)


def _near(name: str) -> str:
    import timm

    found = nearest(name, timm.list_models())
    return found if "did you mean" in found else "; `python -c 'import timm; print(timm.list_models())'` lists them"


def _fields(shown: str, query: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in _FIELDS:
            raise CheckpointError(f"--arch {shown}: unknown field '{printable(key, 40)}'{nearest(key[:40], _FIELDS)}")
        try:
            values[key] = _FIELDS[key](text)
        except ValueError:
            raise CheckpointError(f"--arch {shown}: {key} must be a number, not '{printable(text, 40)}'") from None
    return values
