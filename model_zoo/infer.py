"""Infer an Architecture from names and shapes of tensors, or the kind of another network."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from backbench.errors import CheckpointError
from model_zoo.anatomy import BLOCKS
from model_zoo.architecture import BASIC

_ELSEWHERE = "`--ckpt module:function` takes any network for the frozen and fine-tuning protocols"
_BLOCK = re.compile(r"layer([1-4])\.(\d{1,4})\.")
_TRUNK = re.compile(r"(^|\.)(layer[1-4]|conv[1-3]|maxpool|attnpool)\.")
_RELATIVES = (  # tensors of other networks, and the kind of network; the first match is named
    (r"\.se\.conv\.weight$|\.eca\.", "an ECA-ResNet (channel attention in every block)"),
    (r"\.(se|se_module|se_layer|se_block)\.", "an SE-ResNet (squeeze-and-excitation in every block)"),
    (r"\.conv[12]\.(paths|attn)\.", "an SK-ResNet (selective kernels)"),
    (r"\.conv2\.(conv|bn0|fc1|bn1|fc2)\.", "a ResNeSt (split attention)"),
    (r"\.(convs|bns)\.\d+\.", "a Res2Net (scales within a block)"),
    (r"\.(ca|sa|cbam|ChannelGate|SpatialGate)\.", "a ResNet with CBAM's attention"),
    (r"\.(IN|BN)\.\w+$|(^|\.)IN\.\w+$", "an IBN-Net (instance norms)"),
    (r"\.filt$", "an anti-aliased ResNet (BlurPool)"),
    (r"(^|\.)maxpool\.\d+\.", "a ResNet-RS (a convolution in place of the max-pool)"),
    (r"(^|\.)attnpool\.", "CLIP's ResNet (attention pooling, averages in place of strides)"),
    (r"^(?!.*layer[1-4]\.)(.*\.)?conv[23]\.weight$", "a ResNet with a stem of three convolutions under unknown names"),
    (r"conv2_offset|\.conv_offset", "a ResNet with deformable convolutions"),
    (r"\.(non_local|nl|gcb|context_block\w*|gen_attention_block)\.", "a ResNet with attention between its blocks"),
    (r"(^|\.)gn[123]\.", "a ResNet with GroupNorm"),
    (r"\.prelu\.", "ArcFace's ResNet (PReLU, norms before the convolutions)"),
    (r"weight_(orig|u|g|mask)$|\.parametrizations\.", "a network under a reparametrisation (spectral or weight norm, pruning)"),
    (r"activation_post_process|_packed_params|\.scale$", "a network prepared for integers (quantisation)"),
    (r"\.lora_|adapter", "a network with adapters (LoRA)"),
)  # fmt: skip


def infer_architecture(
    state: Mapping[str, Tensor], stated: Mapping[str, Any], leftover: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the fields that the tensors' names and shapes imply; stated fields take precedence.

    Args:
        state: tensors by our names.
        stated: fields in the file or its sidecar.
        leftover: names of tensors that our ResNets do not have; they show which other network it is.

    Raises:
        CheckpointError: not a known architecture.
    """
    _refuse_relatives(state, leftover)
    blocks = _blocks(state)
    bottleneck = any(key.endswith(".conv3.weight") for key in state)
    names = [name for name, counts in BLOCKS.items() if list(counts) == blocks and (name not in BASIC) == bottleneck]
    if "name" in stated and not (isinstance(stated["name"], str) and stated["name"] in names):
        return {}  # the stated fields are used, and `check` names the tensors that contradict them
    if not names:
        kind = "bottleneck" if bottleneck else "basic"
        if whole := _cut_from(state, blocks, bottleneck):
            gone = " and ".join(f"layer{stage}" for stage, count in enumerate(blocks, start=1) if not count)
            raise CheckpointError(f"{gone} of a {whole} is missing; every protocol needs the whole network")
        if blocks[2] and not blocks[3]:
            raise CheckpointError(_cifar(state, kind, blocks[:3]))
        raise CheckpointError(f"{kind} blocks {blocks} per stage are not those of a known ResNet ({', '.join(BLOCKS)})")
    fields = {"name": names[0], **_widths(state, bottleneck), **_stem(state, stated, names[0])}
    if any(".downsample.2." in key for key in state):
        fields["avg_down"] = True  # the average before the convolution has no tensors
    return fields


def _blocks(state: Mapping[str, Tensor]) -> list[int]:
    """Return the number of blocks of each stage, from the highest block number."""
    found = [(int(match[1]), int(match[2])) for match in map(_BLOCK.match, state) if match]
    return [max((block + 1 for stage, block in found if stage == wanted), default=0) for wanted in range(1, 5)]


def _cut_from(state: Mapping[str, Tensor], blocks: list[int], bottleneck: bool) -> str | None:
    """Return the ResNet from which whole stages are missing, or None; CIFAR's, with a small stem, is not one."""
    stem = _shape(state, "conv1.weight")
    if not any(blocks) or (stem is not None and stem[2] == 3):
        return None
    same = [name for name in BLOCKS if (name not in BASIC) == bottleneck]
    return next((name for name in same if all(b in (0, c) for b, c in zip(blocks, BLOCKS[name], strict=True))), None)


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    """Return the shape of a convolution's weight, or None if it is missing (`check` names it)."""
    tensor = state.get(name)
    return tuple(tensor.shape) if isinstance(tensor, Tensor) and tensor.ndim == 4 and tensor.numel() else None


def _widths(state: Mapping[str, Tensor], bottleneck: bool) -> dict[str, Any]:
    """Return width, groups and base_width from the first block; `check` compares all other blocks."""
    one, two, three = (_shape(state, f"layer1.0.conv{index}.weight") for index in (1, 2, 3))
    last = three if bottleneck else two
    if last is None:
        return {}
    fields: dict[str, Any] = {"width": last[0] / (256 if bottleneck else 64)}
    if bottleneck and one and two and three and one[0] == two[0] == three[1] and two[2:] == (3, 3):
        inner, each = two[:2]
        if inner % each:
            raise CheckpointError(
                f"'layer1.0.conv2.weight' has shape {two}: {inner} planes are not divisible into groups of {each}"
            )
        base = each / fields["width"]
        if base != round(base):
            raise CheckpointError(
                f"blocks with {inner} inner and {last[0]} outer planes are not those of a ResNet, a Wide ResNet or a ResNeXt"
            )
        if inner != each or base > 64:  # narrower inner planes: no published network has them, so they must be stated
            fields |= {"groups": inner // each, "base_width": round(base)}
    return {key: value for key, value in fields.items() if value != {"width": 1.0, "groups": 1, "base_width": 64}[key]}


def _stem(state: Mapping[str, Tensor], stated: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the kind and the width of the stem."""
    deep = [_shape(state, f"conv1.{place}.weight") for place in (0, 3, 6)]
    plain = _shape(state, "conv1.weight")
    if (first := plain or deep[0]) is not None and first[1] != 3:
        raise CheckpointError(f"conv1 takes {first[1]} channels, not RGB (Sobel, LAB or grey input?)")
    if plain is not None and plain[2] == 3 and "stem" not in stated:
        raise CheckpointError(
            "conv1 is 3x3, and the weights do not show whether a max-pool follows: write `arch: {name: "
            f"{name}, stem: 3x3}}` (or 3x3-nopool) into a file beside it, with the checkpoint's name plus .yaml"
        )
    fields: dict[str, Any] = {}
    wide = [shape[0] for shape in (deep if any(deep) else [plain]) if shape is not None]
    if wide and wide[-1] != 64:
        fields["stem_width"] = wide[-1] / 64
    if any(deep) and plain is None:
        half, eighths = wide[-1] // 2, wide[-1] // 8
        kinds: dict[tuple[int, ...], str] = {(half, half): "deep", (3 * eighths, half): "deep-tiered"}
        if all(deep) and tuple(wide[:2]) not in kinds:
            raise CheckpointError(
                f"a stem of three convolutions with {', '.join(map(str, wide))} planes is unknown; known "
                "are those of ResNet-C and -D (32, 32, 64), timm's t (24, 32, 64), and their multiples"
            )
        fields["stem"] = kinds.get(tuple(wide[:2]), "deep")
    return fields


def _refuse_relatives(state: Mapping[str, Tensor], leftover: Iterable[str]) -> None:
    """Raise CheckpointError if the tensors are those of a relative of a ResNet; names the kind of network."""
    other = sorted(name for name in (*leftover, *state) if _TRUNK.search(name))
    for pattern, what in _RELATIVES:
        found = [name for name in other if re.search(pattern, name)]
        if found:
            raise CheckpointError(f"{what}: '{found[0]}' is not a tensor of a known ResNet; {_ELSEWHERE}")
    if (stem := state.get("conv1.weight")) is not None and isinstance(stem, Tensor) and stem.ndim == 5:
        raise CheckpointError(f"a network for video: conv1 has shape {tuple(stem.shape)}; {_ELSEWHERE}")
    biased = [name for name in state if re.search(r"(^|\.)conv[123](\.[036])?\.bias$", name)]
    if biased:
        raise CheckpointError(
            f"convolutions have biases ('{biased[0]}'): BatchNorm was folded into them, or it is another network; "
            "take the checkpoint from before the folding"
        )
    norms = [name.removesuffix(".weight") for name in state if re.search(r"(^|\.)bn[123]\.weight$", name)]
    if norms and not any(name.endswith("running_mean") for name in state):
        raise CheckpointError(
            f"norms without running statistics ('{norms[0]}'): GroupNorm, or BatchNorm without them, which "
            f"computes something else; {_ELSEWHERE}"
        )
    if _is_preactivation(state):
        raise CheckpointError(f"a pre-activation ResNet (v2): its norms are before the convolutions; {_ELSEWHERE}")


def _is_preactivation(state: Mapping[str, Tensor]) -> bool:
    """Return whether a block's first norm has the input channels of the first convolution, not its output channels."""
    for stage in (1, 2, 3, 4):
        shape, norm = _shape(state, f"layer{stage}.0.conv1.weight"), state.get(f"layer{stage}.0.bn1.weight")
        if shape and isinstance(norm, Tensor) and shape[0] != shape[1] == norm.numel():
            return True
    return False


def _cifar(state: Mapping[str, Tensor], kind: str, blocks: list[int]) -> str:
    """Return why CIFAR's ResNets (He et al. 2016, section 4.2) are refused."""
    stem = _shape(state, "conv1.weight")
    planes = f", {stem[0]} planes after conv1" if stem is not None else ""
    option_a = not any(".downsample." in name or ".shortcut." in name for name in state)
    shortcut = ", shortcuts without weights (option A)" if option_a else ""
    return (
        f"a CIFAR ResNet: three stages of {kind} blocks {blocks}{planes}{shortcut}, made for 32-pixel images; every "
        f"protocol here needs the four stages of {', '.join(BLOCKS)}; {_ELSEWHERE}"
    )
