"""k-nearest-neighbour classification of frozen features (MSBReg section 8.3, Tables 1 and 4).

Preset `npid`: L2-normalised pooled features, weights exp(cosine / 0.07), k up to 200 (zhirongw/lemniscate.pytorch test.py,
which uses the 128 outputs of its head instead, and only k 200).
Preset `wmse`: Table 1's 5-NN: unnormalised features, Euclidean distance, majority vote, the first class on a tie, and bicubic
resizing of STL-10 (htdt/self-supervised eval/knn.py, datasets/stl10.py). It differs from the source only on ImageNet-100: the
source resizes with ImageMagick, stores JPEG, and leaves out the 689 random training images of the incomplete last batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from backbench.config import CHANGES_NO_NUMBER
from backbench.data.splits import ImageSplit
from backbench.data.transforms import Interpolation
from backbench.distributed import is_main
from backbench.embeddings import knn_scores, neighbours
from backbench.errors import BackbenchError, DataError
from backbench.progress import say, track
from model_zoo.backbone import Backbone
from transfer import neighbour_pictures
from transfer.feature_spec import FeatureSpec
from transfer.features import extract, note_degenerate
from transfer.heads import items_of
from transfer.presets import Preset, When
from transfer.protocol import ForwardConfig, Metric, RunContext, Task, image_splits
from transfer.resident import resident

_SMOKE_IMAGES = 256


class Config(ForwardConfig):
    """Fields of the cell."""

    PRESETS: ClassVar[Mapping[str, Preset]] = {
        "npid": Preset({"k": [10, 20, 100, 200], "metric": "cosine", "temperature": 0.07, "headline_k": 20}),
        "wmse": Preset({"k": [5], "metric": "euclidean", "temperature": None, "headline_k": 5, "extra_columns": False,
                        "ties": "first"}, when=(When("data.name", "stl10", {"interpolation": "bicubic"}),)),
    }  # fmt: skip
    LATER: ClassVar[frozenset[str]] = frozenset({"ties", "interpolation"})

    preset: str = "npid"
    k: Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)] = (10, 20, 100, 200)
    headline_k: Annotated[int, Field(gt=0)] = 20
    metric: Literal["cosine", "euclidean"] = "cosine"
    temperature: Annotated[float, Field(gt=0)] | None = 0.07  # none: each neighbour has one vote
    ties: Literal["nearest", "first"] = (
        "nearest"  # on equal votes: the class of the nearest neighbour, or the first class
    )
    extra_columns: bool = True  # also T = 0.1 and the unweighted majority
    size: Annotated[int, Field(ge=16)] | None = None  # side of the centre crop in pixels; none: the backbone's
    resize: Annotated[int, Field(ge=16)] | None = None  # shorter side in pixels; none: 256/224 of the size
    interpolation: Interpolation = "bilinear"  # of the resizing
    chunk: Annotated[int, Field(gt=0), CHANGES_NO_NUMBER] = 65536  # bank rows compared at a time: limits the memory


def primary(config: Config) -> str:
    """Return the name of the headline metric."""
    return f"top1_k{config.headline_k}"


def smoke(config: Config) -> dict[str, Any]:
    """Return fields for a few images and for values of k that fit them."""
    kept = [k for k in config.k if k <= _SMOKE_IMAGES // 8] or [min(config.k[0], _SMOKE_IMAGES // 8)]
    headline = config.headline_k if config.headline_k in kept else kept[0]
    return {"data": {"limit": _SMOKE_IMAGES}, "k": kept, "headline_k": headline}


def run(backbone: Backbone, config: Config, ctx: RunContext[ImageSplit]) -> dict[str, Metric]:
    """Return `top1_k<k>` for every k; with extra columns also `top1_k<k>_T0.1` and `top1_k<k>_majority`."""
    train, test = ctx.splits["train"], ctx.splits["test"]
    if config.headline_k not in config.k:
        raise DataError(f"headline_k {config.headline_k} is not among k {list(config.k)}")
    if max(config.k) > len(train):
        raise DataError(f"k={max(config.k)} is more than the {len(train)} training images: set k to less")
    spec = FeatureSpec(
        size=config.size, resize=config.resize, interpolation=config.interpolation, precision=config.precision
    )
    bank = extract(backbone, train, ctx, spec=spec)
    query = extract(backbone, test, ctx, spec=spec)
    note_degenerate(bank, train, ctx)
    bank = resident(bank, ctx.device)  # otherwise its chunks go to the device
    assert train.labels is not None and test.labels is not None
    bank_labels = torch.as_tensor(train.labels, device=ctx.device)
    votes: dict[str, float | None] = {"": config.temperature}
    if config.extra_columns:
        votes |= {"_T0.1": 0.1, "_majority": None}
    correct = {(k, name): 0 for k in config.k for name in votes}
    headline = []

    def bar(starts: Sequence[int]) -> Iterable[int]:
        return track(starts, total=len(bank), label="neighbours among images", size=lambda _: config.chunk)

    similarity, index = neighbours(
        query.to(ctx.device), bank, max(config.k), metric=config.metric, chunk=config.chunk, watch=bar
    )
    for rows in torch.arange(len(query)).split(2048):
        near, labels = similarity[rows], bank_labels[index[rows]]
        truth = torch.as_tensor(test.labels[rows.numpy()], device=ctx.device)
        for k, name in correct:
            scores = knn_scores(
                near,
                labels,
                k=k,
                classes=len(train.classes),
                temperature=votes[name],
                ties=config.ties,
            )
            answer = scores.argmax(dim=1)
            correct[k, name] += int((answer == truth).sum())
            if (k, name) == (config.headline_k, ""):
                headline.append(answer.cpu())
    ctx.items |= items_of(torch.cat(headline)[:, None], torch.as_tensor(test.labels), len(test.classes))
    _show(train, test, similarity, index, ctx)
    return {f"top1_k{k}{name}": Metric(100.0 * n / len(query)) for (k, name), n in correct.items()}


def _show(
    train: ImageSplit, test: ImageSplit, similarity_NK: Tensor, index_NK: Tensor, ctx: RunContext[ImageSplit]
) -> None:
    """Keep a few test images with their nearest training images; an image that is gone costs the picture, not the number."""
    if not ctx.keeps_files or not is_main():
        return
    try:
        shown = neighbour_pictures.queries(train, test, similarity_NK, index_NK)
        neighbour_pictures.keep(train, test, shown, ctx.folder)
    except BackbenchError as error:
        say(f"no picture of neighbours: {error}")


TASK = Task(
    name="knn",
    version=1,
    Config=Config,
    primary=primary,
    smoke=smoke,
    splits=image_splits,
    run=run,
    deterministic=True,
)
