"""Backbones other than our ResNets: any timm model, any importable function that returns an nn.Module.

Their features (N, C) serve the frozen and the fine-tuning protocols. Parts that need a ResNet's stages (the detection
engines, C5 maps, export, conversion) refuse them. Their code is not ours, so a record names it: timm's version, or the
libraries' versions and the hash of the files that define the network.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import torch
from torch import Tensor, nn

from backbench.config import Config
from backbench.config import build as build_config
from backbench.errors import CheckpointError, ConfigError, nearest
from backbench.files.hashes import tensors_sha256
from model_zoo import code_identity
from model_zoo.architecture import InputSpec
from model_zoo.backbone import Backbone

_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_TOLERANCE = 1e-3  # of features, relative to the largest: allows for rounding


class ExternalArchitecture(Config):
    """The code of the network; part of a record's identity."""

    name: str
    library: str | None = None  # with its version
    source_sha256: str | None = None  # of the files that define it


@dataclass(frozen=True, kw_only=True)
class ExternalBackbone(Backbone):
    """A backbone that keeps its network; `build()` copies it. Its `arch` is an ExternalArchitecture."""

    module: nn.Module = field(repr=False, compare=False)
    features: int

    @property
    def is_resnet(self) -> bool:
        """False: it has no stages, so no engine takes it."""
        return False

    @property
    def feature_dim(self) -> int:
        """C of the features."""
        return self.features

    def build(self) -> nn.Module:
        """Return a new module: `module(x)` -> features (N, C)."""
        return copy.deepcopy(self.module)


def is_function(source: str) -> bool:
    """Return whether `source` has the form `module:function`, and no file has that name."""
    return _FUNCTION.fullmatch(source) is not None and not os.path.exists(source)  # noqa: PTH110 (which raises for long names)


# ---------------------------------------------------------------- timm


def timm_model(source: str) -> tuple[nn.Module, InputSpec, str]:
    """Return a timm model without its classifier, its input, and its name.

    Args:
        source: `timm:NAME` or `hf-hub:OWNER/NAME` with timm's pretrained weights, or `timm:NAME?pretrained=false` for
            timm's initialisation (`&seed=1` for another seed).

    Raises:
        CheckpointError: timm has no such model or cannot get its weights, or the model does not take square RGB images.
    """
    import timm

    name, _, query = source.removeprefix("timm:").partition("?")
    pretrained, seed = _options(source, query)
    try:
        with seeded(seed):
            model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # the hub's client has many kinds of errors
        what = "cannot get these weights" if pretrained else "cannot build this model"
        hint = f"; untrained: timm:{name}?pretrained=false" if pretrained and timm.is_model(name) else ""
        raise CheckpointError(f"{source}: timm {what} ({first_words(error)}){hint}") from None
    config = published_config(model)
    fields = {
        "size": square_rgb(source, config["input_size"]),
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }
    return model, input_of(source, fields), name if pretrained else f"{name} untrained"


def square_rgb(source: str, size: tuple[int, int, int]) -> int:
    """Return the side of a network's images. Raises CheckpointError: they are not square RGB images."""
    channels, height, width = size
    if channels != 3 or height != width:
        raise CheckpointError(f"{source}: takes images of {channels} x {height} x {width}, not square RGB images")
    return height


def published_config(model: nn.Module) -> dict[str, Any]:
    """Return timm's description of a model: its input and the origin of its weights."""
    config: Any = model.pretrained_cfg
    return dict(config)


def _options(source: str, query: str) -> tuple[bool, int]:
    """Return (pretrained, seed) from the text after the question mark."""
    given = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := set(given) - {"pretrained", "seed"}:
        raise CheckpointError(
            f"{source}: unknown option '{min(unknown)}'{nearest(min(unknown), ('pretrained', 'seed'))}"
        )
    pretrained, seed = given.get("pretrained", "true"), given.get("seed", "0")
    if pretrained not in ("true", "false") or not seed.isdigit():
        raise CheckpointError(f"{source}: write ?pretrained=false, and &seed=1 for another initialisation")
    if pretrained == "true" and "seed" in given:
        raise CheckpointError(f"{source}: a seed only affects an initialisation: add pretrained=false")
    return pretrained == "true", int(seed)


def of_timm(source: str, model: nn.Module, spec: InputSpec, name: str) -> ExternalBackbone:
    """Return a timm model that is not one of our ResNets; its features are timm's own, pooled as the model does."""
    import timm

    config = published_config(model)
    arch = ExternalArchitecture(name=str(config.get("architecture") or name), library=f"timm {timm.__version__}")
    note = (
        f"not one of our ResNets: timm's own features; timm evaluates it at crop_pct {config.get('crop_pct')}, "
        f"{config.get('interpolation')}, the protocols here at 256/224, bilinear"
    )
    return checked(source, model, arch, spec, name, "timm", (note,))


# ---------------------------------------------------------------- module:function


def of_function(source: str, name: str | None = None) -> ExternalBackbone:
    """Return the network that an importable function without arguments returns; the working folder is importable.

    The function is called with a fixed seed of torch's generator, so it initialises the same network in every process.

    The attribute `input_spec` of the returned module, a mapping of InputSpec's fields, states its input.

    Raises:
        CheckpointError: it cannot be imported or called, returns different weights each time, or its network does not
            return finite features (N, C).
    """
    with seeded():  # modules may draw weights during their import
        function = _imported(source)
    module, other = _called(source, function), _called(source, function)
    if _weights(module) != _weights(other):
        raise CheckpointError(
            f"{source}: two calls return different weights, so results could not be compared; "
            "read them from a file, or draw them from torch's generator only"
        )
    stated = getattr(module, "input_spec", None)
    if stated is not None and not isinstance(stated, Mapping):
        raise CheckpointError(f"{source}: its input_spec is not a mapping of {', '.join(InputSpec.model_fields)}")
    spec = input_of(source, dict(stated or {}))
    assumed = f"no input_spec: RGB, {spec.size} px, ImageNet's mean and std assumed"
    library, source_sha256 = code_identity.of_network(function, module)
    arch = ExternalArchitecture(name=source, library=library, source_sha256=source_sha256)
    return checked(source, module, arch, spec, name or source, "function", () if stated else (assumed,))


@contextlib.contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Seed torch's generator, and restore it afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _called(source: str, function: Callable[[], Any]) -> nn.Module:
    try:
        with seeded():
            module = function()
    except Exception as error:
        raise CheckpointError(f"{source}: calling it failed ({first_words(error)})") from error
    if not isinstance(module, nn.Module):
        raise CheckpointError(f"{source}: returns a {type(module).__name__}, not an nn.Module")
    return module


def _weights(module: nn.Module) -> str:
    return tensors_sha256({key: value for key, value in module.state_dict().items() if isinstance(value, Tensor)})


def _imported(source: str) -> Callable[[], Any]:
    module_name, _, function_name = source.partition(":")
    if not {"", os.getcwd()} & set(sys.path):  # noqa: PTH109 (a word of sys.path)
        sys.path.append(os.getcwd())  # noqa: PTH109
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise CheckpointError(f"{source}: no such file, and no module '{error.name}' to import") from None
    except Exception as error:
        raise CheckpointError(f"{source}: importing {module_name} failed ({first_words(error)})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise CheckpointError(
            f"{source}: {module_name} has no function '{function_name}'{nearest(function_name, known)}"
        )
    return function


# ---------------------------------------------------------------- both


def probe(spec: InputSpec) -> Tensor:
    """Return two normalised images (2, 3, size, size), always the same."""
    return torch.randn(2, 3, spec.size, spec.size, generator=torch.Generator().manual_seed(0))


def of_network(label: str, module: nn.Module, arch: ExternalArchitecture, spec: InputSpec) -> ExternalBackbone:
    """Return a backbone from a network in memory that returns features (N, C).

    Raises:
        CheckpointError: it returns something else, or different features each time.
    """
    return checked(label, module, arch, spec, label, "module", ())


def checked(
    source: str,
    module: nn.Module,
    arch: ExternalArchitecture,
    spec: InputSpec,
    name: str,
    kind: str,
    notes: tuple[str, ...],
) -> ExternalBackbone:
    """Return the backbone, after checking that its features are (N, C), finite, repeatable and independent per image.

    Raises:
        CheckpointError: one sentence that says which check failed.
    """
    module = module.cpu().eval()
    x = probe(spec)
    try:
        run = functools.partial(copy.deepcopy(module), x)  # copies, so that no state of a pass remains
        with torch.no_grad():
            first, again, alone = run(), run(), copy.deepcopy(module)(x[:1])
    except Exception as error:
        raise CheckpointError(f"{source}: fails on images {tuple(x.shape)} ({first_words(error)})") from error
    if not isinstance(first, Tensor):
        raise CheckpointError(f"{source}: returns a {type(first).__name__}, features (N, C) are needed")
    if first.ndim != 2 or len(first) != len(x):
        pool = ": pool the maps" if first.ndim == 4 else ""
        raise CheckpointError(
            f"{source}: returns {tuple(first.shape)} for {len(x)} images, features (N, C) are needed{pool}"
        )
    if not bool(torch.isfinite(first).all()):
        raise CheckpointError(f"{source}: features are NaN or infinite")
    scale = float(first.abs().max())
    for other, why in (
        (again, "the same images give different features each time"),
        (alone, "features depend on the other images"),
    ):
        if not torch.allclose(first[: len(other)], other, rtol=0, atol=_TOLERANCE * scale):
            raise CheckpointError(f"{source}: in evaluation mode {why}: no frozen features")
    state = {key: value.detach() for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    fields = {"module": module, "features": first.shape[1]}
    return ExternalBackbone(name, arch, state, spec, source, kind, notes, **fields)  # type: ignore[arg-type]


def input_of(source: str, fields: dict[str, Any]) -> InputSpec:
    try:
        return build_config(InputSpec, fields, where="input")
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from None


def first_words(error: Exception) -> str:
    """Return kind and text of another library's error, on one line, shortened."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
