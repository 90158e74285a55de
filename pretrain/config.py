"""Fields of a pretraining recipe. Defaults are the paper's (section 7) if it states one."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, create_model, model_validator

from backbench.config import CHANGES_NO_NUMBER, Config, build, read_mapping
from backbench.errors import ConfigError, nearest
from pretrain import methods, recipes
from pretrain.method import Ema, Method, MethodConfig
from pretrain.networks import GROUPS, NormName

DEFAULT_METHOD = "msbreg"

Positive = Annotated[int, Field(gt=0)]
Probability = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Above0 = Annotated[float, Field(gt=0)]


class ModelConfig(Config):
    """Backbone and heads (section 7.2); 0 means the paper's size for this backbone."""

    backbone: Literal["resnet18", "resnet34", "resnet50"] = "resnet50"
    stem: Literal["7x7", "3x3", "3x3-nopool"] = "7x7"
    hidden: Annotated[int, Field(ge=0)] = 0
    outputs: Annotated[int, Field(ge=0)] = 0
    norm: NormName = "batch"

    def head_sizes(self) -> tuple[int, int]:
        """Return (hidden, outputs): 512 / 128 for ResNet-18 and 34, 2048 / 256 for ResNet-50."""
        hidden, outputs = (2048, 256) if self.backbone == "resnet50" else (512, 128)
        return self.hidden or hidden, self.outputs or outputs


OWN_LAYOUTS = ("imagefolder", "webdataset", "hf_parquet")


class DataConfig(Config):
    """Training images."""

    # a published data set, or the layout of your own folder (OWN_LAYOUTS)
    name: Literal["demo", "imagenet", "imagenet100", "stl10", "imagefolder", "webdataset", "hf_parquet"] = "imagenet"
    root: Annotated[str | None, CHANGES_NO_NUMBER] = None  # the data set's own folder; the demo needs none
    split: str = "train"  # all: every image below the root of an image folder, without labels
    size: Annotated[int, Field(ge=16, le=1024)] = 224  # side of a view in pixels
    small_size: Annotated[int, Field(ge=16, le=1024)] = 96  # side of a small view (multi-crop)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[Above0, Above0, Above0] = (0.229, 0.224, 0.225)
    workers: Annotated[int, Field(ge=0), CHANGES_NO_NUMBER] = 8
    max_corrupt: Annotated[int, Field(ge=0), CHANGES_NO_NUMBER] = 50  # unreadable images before a run stops


class ViewsConfig(Config):
    """Table 9. `byol` alternates BYOL's two distributions: blur 1, solarise 0 and blur 0.1, solarise 0.2."""

    preset: Literal["table9", "byol"] = "table9"
    scale: tuple[Above0, Above0] = (0.08, 1.0)
    small_scale: tuple[Above0, Above0] = (
        0.05,
        0.14,
    )  # of small views (SwAV, main_swav.py: --min_scale_crops 0.14 0.05)
    ratio: tuple[Above0, Above0] = (3 / 4, 4 / 3)
    flip: Probability = 0.5
    jitter: Probability = 0.8
    brightness: NonNegative = 0.4
    contrast: NonNegative = 0.4
    saturation: NonNegative = 0.2
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.1
    grayscale: Probability = 0.2
    blur: Probability = 1.0
    blur_sigma: tuple[Above0, Above0] = (0.1, 2.0)
    blur_kernel: Annotated[int, Field(ge=0)] = 0  # 0: 23 at 224 px, scaled with the size
    solarize: Probability = 0.2

    @model_validator(mode="after")
    def _fits(self) -> ViewsConfig:
        for name in ("scale", "small_scale", "ratio", "blur_sigma"):
            low, high = getattr(self, name)
            if low > high:
                raise ValueError(f"views.{name}: the first number must not be above the second")
        for name in ("scale", "small_scale"):
            if getattr(self, name)[1] > 1:
                raise ValueError(f"views.{name}: the second number must not be above 1, the image's whole area")
        if self.blur_kernel and self.blur_kernel % 2 == 0:
            raise ValueError("views.blur_kernel must be odd")
        return self


class OptimConfig(Config):
    """LARS, linear warm-up and cosine decay per step (section 7.1)."""

    name: Literal["lars", "sgd", "adam"] = "lars"
    base_lr: Above0 = 0.15
    # what base_lr is multiplied with: batch / 256 x views of the online network (section 7.1), batch / 256, or 1
    rate_rule: Literal["batch_views", "batch", "none"] = "batch_views"
    batch: Positive = 512  # images in the global batch
    epochs: Above0 = 300.0
    warmup_epochs: NonNegative = 10.0
    momentum: Probability = 0.9
    weight_decay: NonNegative = 1e-5
    decay_biases: bool = False  # weight decay on biases and norms too
    bias_rate: Above0 = 1.0  # of biases and norms, as a multiple of the weights' rate
    trust_coefficient: Above0 = 1e-3  # of LARS
    trust_clip: bool = False  # LARS never raises a layer's rate above the global one
    tau_base: Probability | None = None  # of a moving average (BYOL: 0.996 for 1000 epochs); default: the method's
    tau_final: Probability | None = None  # where tau ends (BYOL: 1; MoCo: where it starts); default: the method's


class RunConfig(Config):
    """Settings of a run that do not change the method."""

    seed: Annotated[int, Field(ge=0)] = 0
    amp: Literal["none", "bf16", "fp16"] = "none"
    channels_last: bool = True
    compile: bool = False  # torch.compile: minutes of preparation and a C++ compiler; changes numbers by rounding
    views_per_pass: Annotated[int, Field(ge=0)] = 0  # 0: all K in one pass; less: accumulate gradients over views
    float64: bool = False  # for proofs of equality
    threads: Annotated[int, Field(ge=0)] = 0  # 0: torch's default
    log_every: Annotated[Positive, CHANGES_NO_NUMBER] = 50  # steps
    checkpoint_every: Annotated[Positive, CHANGES_NO_NUMBER] = 500  # steps
    knn_every: Annotated[NonNegative, CHANGES_NO_NUMBER] = 10.0  # epochs between online 20-NN accuracies; 0: never
    knn_images: Annotated[Positive, CHANGES_NO_NUMBER] = (
        5000  # at most, of the training split; 4/5 of them are the bank
    )
    linear_probe: Annotated[bool, CHANGES_NO_NUMBER] = True  # online, on the labelled images of every step


class PretrainConfig(Config):
    """A whole recipe. The function `recipe` builds it, with the named method's own fields under `method`."""

    method: MethodConfig
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    views: ViewsConfig = ViewsConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _fits(self) -> PretrainConfig:
        queries = len(self.method.queries())
        if self.run.views_per_pass and queries % self.run.views_per_pass:
            of_what = "method.views" if queries == self.method.views else "the views of the online network,"
            raise ValueError(f"run.views_per_pass {self.run.views_per_pass} must divide {of_what} {queries}")
        hidden, _ = self.model.head_sizes()
        if self.model.norm in ("group", "group_ws") and hidden % GROUPS:
            raise ValueError(
                f"model.hidden {hidden} does not divide into the {GROUPS} groups of model.norm={self.model.norm}"
            )
        if self.optim.batch < 2:
            raise ValueError("optim.batch must be at least 2: BatchNorm and the covariance need two images")
        if self.optim.warmup_epochs >= self.optim.epochs:
            raise ValueError("optim.warmup_epochs must be less than optim.epochs")
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return recipe, (self.model_dump(mode="json"),)  # the class exists in this process only

    def peak_lr(self) -> float:
        """Return the peak rate, by default `base_lr x batch / 256 x K` (section 7.1), K views of the online network."""
        if self.optim.rate_rule == "none":
            return self.optim.base_lr
        views = len(self.method.queries()) if self.optim.rate_rule == "batch_views" else 1
        return self.optim.base_lr * self.optim.batch / 256 * views


def recipe(values: Mapping[str, Any], overrides: Sequence[str] = (), *, where: str = "configuration") -> PretrainConfig:
    """Validate a recipe's fields with `a.b=c` overrides. `method.*` are the fields of the method it names.

    Raises:
        ConfigError: an unknown method (the nearest is named), or an invalid field.
    """
    stated = values.get("method", {})
    name = stated.get("name", DEFAULT_METHOD) if isinstance(stated, dict) else DEFAULT_METHOD
    for override in overrides:
        key, _, word = override.partition("=")
        name = word if key.strip() == "method.name" else name
    try:
        method = methods.get(str(name))
    except ConfigError as error:
        raise ConfigError(f"{where}: 'method.name': {error}") from None
    complete = dict(values) | ({"method": stated | {"name": name}} if isinstance(stated, dict) else {})
    config = build(fields_of(method), complete, overrides, where=where)
    if config.method.name != name:
        raise ConfigError(f"{where}: give the method as method.name={config.method.name}")
    for field in ("tau_base", "tau_final"):
        if getattr(config.optim, field) is not None and not isinstance(method.target, Ema):
            raise ConfigError(f"{where}: optim.{field}: {name} keeps no moving average; leave this field out")
    if config.run.views_per_pass and not method.accumulates:
        raise ConfigError(f"{where}: run.views_per_pass: {name} needs all views in one pass; leave this field at 0")
    return config


@functools.cache
def fields_of(method: Method) -> type[PretrainConfig]:
    """Return the recipe's model with the method's own fields and its defaults of `optim.tau_base` and `optim.tau_final`."""
    optim: type[OptimConfig] = OptimConfig
    if isinstance(method.target, Ema):
        base, final = (Probability, method.target.base), (Probability, method.target.final)
        optim = create_model("OptimConfig", __base__=OptimConfig, tau_base=base, tau_final=final)
    return create_model("PretrainConfig", __base__=PretrainConfig, method=(method.Config, ...), optim=(optim, optim()))


def load(file: str | None, overrides: list[str]) -> PretrainConfig:
    """Load a recipe by name or path, with overrides; the demo if no name is given.

    Raises:
        ConfigError: no such recipe (the nearest is named), an empty file, or an invalid field.
    """
    path = Path(file) if file is not None else recipes.FOLDER / "demo.yaml"
    if not path.is_file():
        path = recipes.FOLDER / f"{file}.yaml"
    if not path.is_file():
        raise ConfigError(f"no recipe '{file}'{nearest(str(file), recipes.names())}")
    values = read_mapping(path)
    if not values:
        raise ConfigError(f"{path}: the file has no fields; write at least one, or leave --config out for the demo")
    return recipe(values, overrides, where=path.name)
