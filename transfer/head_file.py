"""The chosen head of a linear probe as a file, so that other protocols measure the same classifier.

`head.safetensors` has `weight` (classes, features), `bias` (classes) and the tensors of a BatchNorm before it, `norm.*`. Its
metadata say what must match before the head is used again: the backbone's weights, architecture and input, the protocol and its
version, the training images and the seed; also the classes in the order of the rows, and how the rate was chosen.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from backbench.config import digest
from backbench.data.splits import ImageSplit
from backbench.distributed import gather_words, is_main
from backbench.files.atomic import atomic_write
from backbench.files.hashes import file_sha256, tensors_sha256
from backbench.progress import say
from model_zoo.backbone import Backbone
from transfer.heads import Heads
from transfer.protocol import RunContext, TaskConfig

NAME = "head.safetensors"
_MUST_MATCH = ("task", "version", "protocol", "weights_sha256", "arch", "input", "train", "seed")


def keep(
    head: Heads, backbone: Backbone, config: TaskConfig, task: str, version: int, ctx: RunContext[ImageSplit]
) -> None:
    """Write a single head to the run's folder and name it among the run's artefacts; a context without a folder keeps none."""
    if not ctx.keeps_files or not is_main():
        return
    from safetensors.torch import save

    tensors = {name: tensor.contiguous() for name, tensor in _named(head).items()}
    told = {
        **_identity(backbone, config, task, version, ctx),
        "classes": json.dumps(ctx.splits["train"].classes),
        "rate": repr(head.rates[0]),
        "tuned": json.dumps(ctx.tuned),
        "tensors_sha256": tensors_sha256(tensors),
    }
    file = ctx.folder / NAME
    atomic_write(file, lambda handle: handle.write(save(tensors, metadata=told)))
    ctx.artefacts[NAME] = file_sha256(file)


def find(
    config: TaskConfig,
    backbone: Backbone,
    task: str,
    version: int,
    ctx: RunContext[ImageSplit],
    *,
    norm: Literal["none", "plain", "affine"],
    cells: int,
) -> tuple[Heads, str] | None:
    """Return the head that a run of the same backbone left beside this one, and its place; None if there is none.

    Everything in its metadata must match. A damaged file is named and passed over. All ranks take the same file.
    """
    wanted = _identity(backbone, config, task, version, ctx)
    place = ""
    if ctx.keeps_files and is_main():
        for file in sorted(ctx.folder.parent.parent.glob(f"*/seed*/{NAME}")):
            told = _read(file)
            if told is not None and {name: told[1].get(name) for name in _MUST_MATCH} == wanted:
                place = str(file)
                break
    if not (place := gather_words([place])[0]):
        return None
    found = _read(Path(place))
    if found is None:
        return None
    tensors, told_of = found
    classes, features = tensors["weight"].shape
    head = Heads(features, classes, [float(told_of["rate"])], ctx.seed, norm, cells=cells)
    head.linear[0].load_state_dict({name: tensors[name] for name in ("weight", "bias")})
    head.norms[0].load_state_dict(
        {name.removeprefix("norm."): tensor for name, tensor in tensors.items() if name.startswith("norm.")}
    )
    ctx.tuned |= json.loads(told_of["tuned"])
    return head, "/".join(Path(place).parts[-3:-1])


def _identity(
    backbone: Backbone, config: TaskConfig, task: str, version: int, ctx: RunContext[ImageSplit]
) -> dict[str, str]:
    return {
        "task": task,
        "version": str(version),
        "protocol": digest(config.identity()),
        "weights_sha256": backbone.weights_sha256,
        "arch": digest(backbone.arch),
        "input": digest(backbone.input),
        "train": ctx.splits["train"].manifest_sha256(),
        "seed": str(ctx.seed),
    }


def _named(head: Heads) -> dict[str, Tensor]:
    norm = {f"norm.{name}": tensor for name, tensor in head.norms[0].state_dict().items()}
    return {**head.linear[0].state_dict(), **norm}


def _read(file: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and metadata; None, with a message, if they are damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="pt") as opened:
            told: dict[str, Any] = dict(opened.metadata() or {})
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)
        if told.get("tensors_sha256") != tensors_sha256(tensors):
            raise ValueError("its numbers are not those that were written")
        if not {*_MUST_MATCH, "rate", "tuned"} <= set(told):
            raise ValueError("it does not say what it was trained on")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        say(f"not used, damaged: {file} ({' '.join(str(error).split())[:200]})")
        return None
    return tensors, told
