"""Backbones other than our ResNets: any timm model, any importable function that returns an nn.Module.

They serve the frozen and the fine-tuning protocols by their features (N, C); what needs a ResNet's stages (the detection
engines, C5 maps, export, conversion) says so. Their code is not ours, so a record names it: timm's version, or the
libraries' versions and the hash of the files that define a function's network.
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
_TOLERANCE = 1e-3  # of features, as a share of the largest: rounding, not another function


class ExternalArchitecture(Config):
    """Who makes the network; part of a record's identity."""

    name: str
    library: str | None = None  # with its version
    source_sha256: str | None = None  # of the files that define it


@dataclass(frozen=True, kw_only=True)
class ExternalBackbone(Backbone):
    """A backbone whose network is kept as it was made; `build()` copies it. Its `arch` is an ExternalArchitecture."""

    module: nn.Module = field(repr=False, compare=False)
    features: int

    @property
    def is_resnet(self) -> bool:
        """Never: no stages, no engine."""
        return False

    @property
    def feature_dim(self) -> int:
        """C of the features."""
        return self.features

    def build(self) -> nn.Module:
        """A fresh module: `module(x)` -> features (N, C)."""
        return copy.deepcopy(self.module)


def is_function(source: str) -> bool:
    """Whether `source` reads as `module:function`, and no such file is there."""
    return _FUNCTION.fullmatch(source) is not None and not os.path.exists(source)  # noqa: PTH110 (which raises for long names)


# ---------------------------------------------------------------- timm


def timm_model(source: str) -> tuple[nn.Module, InputSpec, str]:
    """timm's model without its classifier, what it wants to see, and its name.

    Args:
        source: `timm:NAME` or `hf-hub:OWNER/NAME` with timm's pretrained weights, or `timm:NAME?pretrained=false` as timm
            initialises it (`&seed=1` from another seed).

    Raises:
        CheckpointError: timm knows no such model, has no weights at hand, or the model takes no RGB squares.
    """
    import timm

    name, _, query = source.removeprefix("timm:").partition("?")
    pretrained, seed = _options(source, query)
    try:
        with _seeded(seed):
            model = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:  # the hub's client has its own errors for every way to be offline
        what = "has no such weights at hand" if pretrained else "cannot make this model"
        hint = f"; untrained: timm:{name}?pretrained=false" if pretrained and timm.is_model(name) else ""
        raise CheckpointError(f"{source}: timm {what} ({_first(error)}){hint}") from None
    config = _published_config(model)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise CheckpointError(f"{source}: takes images of {channels} x {height} x {width}, not RGB squares")
    fields = {"size": height, "mean": list(config["mean"]), "std": list(config["std"])}
    return model, _input(source, fields), name if pretrained else f"{name} untrained"


def _published_config(model: nn.Module) -> dict[str, Any]:
    """What timm keeps beside a model: its input and where the weights come from."""
    config: Any = model.pretrained_cfg
    return dict(config)


def _options(source: str, query: str) -> tuple[bool, int]:
    """(pretrained, seed) of what follows the question mark."""
    given = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := set(given) - {"pretrained", "seed"}:
        raise CheckpointError(
            f"{source}: unknown option '{min(unknown)}'{nearest(min(unknown), ('pretrained', 'seed'))}"
        )
    pretrained, seed = given.get("pretrained", "true"), given.get("seed", "0")
    if pretrained not in ("true", "false") or not seed.isdigit():
        raise CheckpointError(f"{source}: write ?pretrained=false, and &seed=1 for another initialisation")
    if pretrained == "true" and "seed" in given:
        raise CheckpointError(f"{source}: a seed only decides an initialisation: add pretrained=false")
    return pretrained == "true", int(seed)


def of_timm(source: str, model: nn.Module, spec: InputSpec, name: str) -> ExternalBackbone:
    """A timm model that is no ResNet known here; its features are timm's own, pooled as the model does."""
    import timm

    config = _published_config(model)
    arch = ExternalArchitecture(name=str(config.get("architecture") or name), library=f"timm {timm.__version__}")
    note = (
        f"no ResNet known here: timm's own features; timm evaluates it at crop_pct {config.get('crop_pct')}, "
        f"{config.get('interpolation')}, the protocols here at 256/224, bilinear"
    )
    return _checked(source, model, arch, spec, name, "timm", (note,))


# ---------------------------------------------------------------- module:function


def of_function(source: str, name: str | None = None) -> ExternalBackbone:
    """The module that an importable function without arguments returns; the working folder is importable.

    It is called under a fixed seed of torch's generator: what it initialises is the same network in every process.

    An attribute `input_spec` of the returned module, a mapping of InputSpec's fields, says what it wants to see.

    Raises:
        CheckpointError: it cannot be imported or called, returns other weights each time, or does not return features
            (N, C) of finite numbers.
    """
    with _seeded():  # modules may draw weights as they are imported
        function = _imported(source)
    module, other = _called(source, function), _called(source, function)
    if _weights(module) != _weights(other):
        raise CheckpointError(
            f"{source}: called twice it returns other weights, so no result could be told to be of the same network; "
            "let it read them from a file, or draw them from torch's generator alone"
        )
    stated = getattr(module, "input_spec", None)
    if stated is not None and not isinstance(stated, Mapping):
        raise CheckpointError(f"{source}: its input_spec is not a mapping of {', '.join(InputSpec.model_fields)}")
    spec = _input(source, dict(stated or {}))
    assumed = f"no input_spec: RGB, {spec.size} px, ImageNet's mean and std assumed"
    library, source_sha256 = code_identity.of_network(function, module)
    arch = ExternalArchitecture(name=source, library=library, source_sha256=source_sha256)
    return _checked(source, module, arch, spec, name or source, "function", () if stated else (assumed,))


@contextlib.contextmanager
def _seeded(seed: int = 0) -> Iterator[None]:
    """torch's generator at `seed`, and afterwards where it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _called(source: str, function: Callable[[], Any]) -> nn.Module:
    try:
        with _seeded():
            module = function()
    except Exception as error:
        raise CheckpointError(f"{source}: calling it failed ({_first(error)})") from error
    if not isinstance(module, nn.Module):
        raise CheckpointError(f"{source}: returns a {type(module).__name__}, an nn.Module is needed")
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
        raise CheckpointError(f"{source}: importing {module_name} failed ({_first(error)})") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise CheckpointError(
            f"{source}: {module_name} has no function '{function_name}'{nearest(function_name, known)}"
        )
    return function


# ---------------------------------------------------------------- both


def probe(spec: InputSpec) -> Tensor:
    """Two normalised images (2, 3, size, size), always the same."""
    return torch.randn(2, 3, spec.size, spec.size, generator=torch.Generator().manual_seed(0))


def of_network(label: str, module: nn.Module, arch: ExternalArchitecture, spec: InputSpec) -> ExternalBackbone:
    """A network in memory that returns features (N, C).

    Raises:
        CheckpointError: it does not, or not the same ones each time.
    """
    return _checked(label, module, arch, spec, label, "module", ())


def _checked(
    source: str,
    module: nn.Module,
    arch: ExternalArchitecture,
    spec: InputSpec,
    name: str,
    kind: str,
    notes: tuple[str, ...],
) -> ExternalBackbone:
    """The backbone, after checking that its features are (N, C), finite, repeatable and of each image alone.

    Raises:
        CheckpointError: one sentence that says which of these they are not.
    """
    module = module.cpu().eval()
    x = probe(spec)
    try:
        run = functools.partial(copy.deepcopy(module), x)  # no state of the pass stays in what is measured
        with torch.no_grad():
            first, again, alone = run(), run(), copy.deepcopy(module)(x[:1])
    except Exception as error:
        raise CheckpointError(f"{source}: fails on images {tuple(x.shape)} ({_first(error)})") from error
    if not isinstance(first, Tensor):
        raise CheckpointError(f"{source}: gives a {type(first).__name__}, features (N, C) are needed")
    if first.ndim != 2 or len(first) != len(x):
        pool = ": pool the maps" if first.ndim == 4 else ""
        raise CheckpointError(
            f"{source}: gives {tuple(first.shape)} for {len(x)} images, features (N, C) are needed{pool}"
        )
    if not bool(torch.isfinite(first).all()):
        raise CheckpointError(f"{source}: features are NaN or infinite")
    scale = float(first.abs().max())
    for other, why in (
        (again, "the same images twice give other features"),
        (alone, "they depend on the other images"),
    ):
        if not torch.allclose(first[: len(other)], other, rtol=0, atol=_TOLERANCE * scale):
            raise CheckpointError(f"{source}: in evaluation mode {why}: no frozen features")
    state = {key: value.detach() for key, value in module.state_dict().items() if isinstance(value, Tensor)}
    fields = {"module": module, "features": first.shape[1]}
    return ExternalBackbone(name, arch, state, spec, source, kind, notes, **fields)  # type: ignore[arg-type]


def _input(source: str, fields: dict[str, Any]) -> InputSpec:
    try:
        return build_config(InputSpec, fields, where="input")
    except ConfigError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _first(error: Exception) -> str:
    """Kind and text of another library's error, on one line, cut short."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
