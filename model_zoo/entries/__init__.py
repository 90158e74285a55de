"""Zoo entries: one YAML file per backbone from the literature, with its published numbers and their sources."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Annotated
from urllib.parse import unquote, urlsplit

from pydantic import Field

from backbench import plugins
from backbench.config import Config, build, read_mapping
from backbench.errors import BackbenchError, ConfigError, nearest
from model_zoo.architecture import Architecture, InputSpec

_FOLDER = Path(__file__).resolve().parent


class PublishedNumber(Config):
    """A number from the literature, never ours. None: the source does not state the field."""

    cell: str  # the cell that measures the same thing
    metric: str
    value: Annotated[float, Field(allow_inf_nan=False)]
    preset: str | None = None  # of the cell's task, if the source follows one
    engine: str | None = None  # of a detection cell
    batch: Annotated[int, Field(gt=0)] | None = None  # of the evaluation, like the epochs
    epochs: Annotated[int, Field(gt=0)] | None = None
    frozen: bool | None = None  # whether the encoder was frozen
    data: str | None = None  # if the number is for another data set than the cell's
    variant: str | None = None  # of the pretraining: epochs, batch, views, weights of the losses
    source: str

    @property
    def setting(self) -> str:
        """The stated setting: `K=4; preset msbreg, batch 1024, encoder frozen`."""
        named = {name: getattr(self, name) for name in ("preset", "engine", "batch", "epochs", "data")}
        stated = [f"{name} {value}" for name, value in named.items() if value is not None]
        if self.frozen is not None:
            stated.append("encoder frozen" if self.frozen else "encoder fine-tuned")
        return "; ".join(filter(None, (self.variant, ", ".join(stated))))


class Recipe(Config):
    """The pretraining, as the source describes it."""

    epochs: Annotated[int, Field(gt=0)] | None = None
    batch: Annotated[int, Field(gt=0)] | None = None


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
HashPrefix = Annotated[str, Field(pattern=r"^[0-9a-f]{8,32}$")]
Url = Annotated[str, Field(pattern=r"^https?://\S+$")]


class Entry(Config):
    """A backbone from the literature, with the address of its weights or the reason why there are none."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]  # also the name of its file in the cache
    method: str
    arch: Architecture
    input: InputSpec = InputSpec()
    pretrained_on: str
    recipe: Recipe = Recipe()
    url: Url | None = None
    mirrors: tuple[Url, ...] = ()  # the same bytes elsewhere
    by_hand: str | None = None  # why a program cannot fetch the url; without a url: how to make the file
    no_weights: str | None = None  # why there are no weights
    see: tuple[str, ...] = ()  # entries of the same method with public weights
    train: str | None = (
        None  # words after `backbench pretrain --config`: the recipe that trains it, overrides if it differs
    )
    sha256: Sha256 | None = None  # None: unknown until the first download, then pinned in the cache
    sha256_prefix: HashPrefix | None = None  # the prefix that the authors publish
    md5_prefix: HashPrefix | None = None
    size_mb: Annotated[float, Field(gt=0)] | None = None
    format: str | None = None  # the layout in the source; None: not stated
    licence: str | None = None
    source: str | None = None  # source of these facts
    notes: tuple[str, ...] = ()  # facts that the weights do not show, and obstacles to reaching a number
    published: tuple[PublishedNumber, ...] = ()

    @property
    def has_weights(self) -> bool:
        """Whether a weights file exists, possibly one made by hand."""
        return self.no_weights is None

    @property
    def file(self) -> str:
        """The file name in the cache: the entry's name, since many authors use `resnet50.pth`."""
        return self.name + self.suffix

    @property
    def remote_file(self) -> str:
        """The published file name, as a browser saves it."""
        return unquote(PurePosixPath(urlsplit(self.url or "").path).name)

    @property
    def suffix(self) -> str:
        """The suffix, `.pth.tar` for `moco_v2_200ep_pretrain.pth.tar`; `.pth` if the url has none."""
        found = re.search(r"(\.pth)?\.(pth|pt|tar|ckpt|torch|pkl|zip|safetensors)$", self.remote_file)
        return found[0] if found else ".pth"


def all_entries() -> tuple[Entry, ...]:
    """Return every readable entry, sorted by name; a warning names the others."""
    found = _parts().found
    return tuple(found[name] for name in sorted(found))


def get(name: str) -> Entry:
    """Return an entry by name. Raises BackbenchError: unknown (with the nearest name), or its file is broken."""
    by_name = {entry.name: entry for entry in all_entries()}
    if name not in by_name:
        broken = _parts().broken
        raise BackbenchError(broken.get(name) or f"no zoo entry '{name}'{nearest(name, by_name)}")
    return by_name[name]


def _parts() -> plugins.Parts[Entry]:
    return plugins.read_files("entries", _FOLDER, _read)


def _read(path: Path) -> Entry:
    """Return the entry in a file. Raises ConfigError: it is invalid, or its name differs from the file's."""
    entry = build(Entry, read_mapping(path), where=f"entry {path}")
    if entry.name != path.stem:
        raise ConfigError(f"entry {path} has the name '{entry.name}'; name the file {entry.name}.yaml")
    return entry
