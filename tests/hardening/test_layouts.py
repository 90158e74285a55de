"""Odd, hostile and ambiguous checkpoints give a sound backbone, or one printable sentence that names the file."""

import json
import time
import unicodedata

import pytest
import torch
from safetensors.torch import save_file

from backbench.errors import CheckpointError
from model_zoo import formats
from model_zoo.__main__ import main
from model_zoo.backbone import FORMAT
from model_zoo.choice import Choice
from model_zoo.load import load
from tests.builders.backbones import make_backbone
from tests.builders.commands import HANG

TINY = make_backbone("resnet18")
MINE = TINY.state
OTHER = make_backbone("resnet18", seed=1).state
H = torch.zeros(8, 8)


def under(prefix, state=MINE):
    return {prefix + name: tensor for name, tensor in state.items()}


def is_printable(text):
    return all(c == " " or unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in text)


def sentence(path, choice=None):
    """Return the error of `load`, within a time limit; None if the file loads."""
    start = time.monotonic()
    try:
        load(path, choice=choice or Choice())
    except CheckpointError as error:
        text = str(error)
    else:
        text = None
    assert time.monotonic() - start < HANG
    if text is not None:
        assert is_printable(text) and len(text) < 3000, text[:200]
        assert text.startswith(str(path)), text[:200]
    return text


def saved(tmp_path, obj, name="photos.pth"):
    torch.save(obj, tmp_path / name)
    return tmp_path / name


# ---------------------------------------------------------------- statements in our own files

ARCH = {"name": "resnet18", "width": 0.125}
FIELDS = {
    "unknown name": ("arch", {**ARCH, "name": "resnet1900"}),
    "name is a list": ("arch", {**ARCH, "name": ["resnet18"]}),
    "name is a tensor": ("arch", {**ARCH, "name": torch.zeros(2)}),
    "name is very long": ("arch", {**ARCH, "name": "resnet" * 100_000}),
    "name clears the screen": ("arch", {**ARCH, "name": "\x1b[2J\n\u202e"}),
    "width NaN": ("arch", {**ARCH, "width": float("nan")}),
    "width infinite": ("arch", {**ARCH, "width": float("inf")}),
    "width negative": ("arch", {**ARCH, "width": -1.0}),
    "width 0": ("arch", {**ARCH, "width": 0.0}),
    "width huge": ("arch", {**ARCH, "width": 1e30}),
    "width huge and whole": ("arch", {**ARCH, "width": 10**400}),
    "width is a word": ("arch", {**ARCH, "width": "1"}),
    "width of another network": ("arch", {**ARCH, "width": 8.0}),
    "arch empty": ("arch", {}),
    "arch with a number as key": ("arch", {**ARCH, 3: 4}),
    "arch with bytes as key": ("arch", {**ARCH, b"name": 4}),
    "arch nested": ("arch", {**ARCH, "stem": {"a": {"b": {"c": 1}}}}),
    "arch with unknown key": ("arch", {**ARCH, "\x1bkey\n": 1}),
    "arch is a list": ("arch", [1]),
    "arch is None": ("arch", None),
    "std 0": ("input", {"std": [0.0, 1.0, 1.0]}),
    "std negative": ("input", {"std": [-1.0, 1.0, 1.0]}),
    "std NaN": ("input", {"std": [float("nan")] * 3}),
    "std a number": ("input", {"std": 0.5}),
    "std of two": ("input", {"std": [0.5, 0.5]}),
    "std of very many": ("input", {"std": [0.5] * 1_000_000}),
    "mean of words": ("input", {"mean": ["a", "b", "c"]}),
    "mean of truth values": ("input", {"mean": [True, True, False]}),
    "mean of tensors": ("input", {"mean": [torch.zeros(1)] * 3}),
    "mean infinite": ("input", {"mean": [float("inf")] * 3}),
    "size 0": ("input", {"size": 0}),
    "size negative": ("input", {"size": -224}),
    "size a fraction": ("input", {"size": 224.5}),
    "size huge": ("input", {"size": 10**30}),
    "size true": ("input", {"size": True}),
    "order unknown": ("input", {"order": "grb"}),
    "input is a word": ("input", "rgb"),
    "state_dict is a list": ("state_dict", [torch.zeros(2)]),
    "state_dict empty": ("state_dict", {}),
    "state_dict nested": ("state_dict", {"state_dict": dict(MINE)}),
    "state_dict with numbers as keys": ("state_dict", {1: torch.zeros(2), **MINE}),
    "format a list": ("format", [FORMAT]),
    "format of tomorrow": ("format", "backbench-999\x1b"),
    "format very long": ("format", "backbench-" + "9" * 100_000),
}  # fmt: skip


@pytest.mark.parametrize("kind", FIELDS)
def test_fields_of_our_own_format(tmp_path, kind):
    part, value = FIELDS[kind]
    whole = {"format": FORMAT, "arch": ARCH, "input": {}, "state_dict": dict(MINE), part: value}
    text = sentence(saved(tmp_path, whole))
    if kind in ("format a list", "arch empty"):  # then it states nothing, and the tensors determine all
        assert text is None
    else:
        assert text


# ---------------------------------------------------------------- tensors of odd kinds

QUANTISED = torch.quantize_per_tensor(torch.ones(8), 0.1, 0, torch.qint8)
TENSORS = {
    "scalar stem": ("conv1.weight", torch.tensor(1.0)),
    "stem of five dimensions": ("conv1.weight", torch.zeros(8, 3, 7, 7, 1)),
    "empty stem": ("conv1.weight", torch.zeros(0, 3, 7, 7)),
    "stem without input": ("conv1.weight", torch.zeros(64, 0, 7, 7)),
    "flat stem": ("conv1.weight", torch.zeros(64 * 3 * 49)),
    "scalar block": ("layer1.0.conv1.weight", torch.tensor(1.0)),
    "empty block": ("layer1.0.conv1.weight", torch.zeros(0, 0, 0, 0)),
    "many dimensions": ("layer1.0.conv1.weight", torch.zeros([1] * 60)),
    "complex": ("bn1.weight", torch.ones(64, dtype=torch.complex64)),
    "truth values": ("bn1.weight", torch.ones(64, dtype=torch.bool)),
    "whole numbers": ("bn1.weight", torch.ones(64, dtype=torch.int32)),
    "quantised": ("bn1.weight", QUANTISED),
    "quantised and dropped": ("fc.weight", QUANTISED),
    "sparse": ("bn1.weight", torch.ones(64).to_sparse()),
    "sparse rows": ("layer1.0.conv1.weight", torch.ones(8, 8).to_sparse_csr()),
    "meta": ("bn1.weight", torch.ones(64, device="meta")),
    "meta counter": ("bn1.num_batches_tracked", torch.ones((), device="meta", dtype=torch.int64)),
    "complex counter": ("bn1.num_batches_tracked", torch.ones((), dtype=torch.complex64)),
    "counter NaN": ("bn1.num_batches_tracked", torch.tensor(float("nan"))),
    "no counter but a word": ("bn1.num_batches_tracked", "7"),
    "expanded": ("fc.weight", torch.zeros(1).expand(1000, 1000)),
    "float8": ("bn1.weight", torch.ones(64).to(torch.float8_e4m3fn)),
    "NaN": ("bn1.weight", torch.full((64,), torch.nan)),
    "beyond float32": ("bn1.weight", torch.full((64,), 1e200, dtype=torch.float64)),
    "a list": ("bn1.weight", [1.0] * 64),
    "a number": ("bn1.weight", 3),
    "None": ("bn1.weight", None),
    "subnormal": ("bn1.running_var", torch.full((64,), 1e-45)),
    "variance 0": ("bn1.running_var", torch.zeros(64)),
    "variance -0": ("bn1.running_var", -torch.zeros(64)),
    "variance below 0": ("bn1.running_var", torch.full((64,), -1e-30)),
}  # fmt: skip
SOUND = {
    "quantised and dropped",
    "expanded",
    "float8",
    "subnormal",
    "variance 0",
    "variance -0",
    "counter NaN",
    "complex counter",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["torchvision", "moco", "backbench", "obow"])
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_of_odd_kinds(tmp_path, kind, layout):
    name, value = TENSORS[kind]
    state = {**MINE, name: value}
    obj = {
        "torchvision": state,
        "moco": {"state_dict": under("module.encoder_q.", state)},
        "backbench": {"format": FORMAT, "arch": ARCH, "input": {}, "state_dict": state},
        "obow": {"network": state},
    }[layout]
    if layout == "backbench" and name == "fc.weight":
        pytest.skip("there is no head in our own format")
    try:
        path = saved(tmp_path, obj)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        pytest.skip(f"torch cannot save it ({error})")
    text = sentence(path)
    if kind in ("no counter but a word", "meta counter") and layout != "backbench":
        assert text is None, "it is not a tensor, so it counts as missing"
    elif kind not in ("quantised and dropped", "float8"):
        assert (text is None) == (kind in SOUND), text


# ---------------------------------------------------------------- names

NAMES = {
    "a huge block number": "layer1.999999999.conv1.weight",
    "a block number of 10,000 digits": f"layer1.{'9' * 10_000}.conv1.weight",
    "digits of another script": "layer1.٣.conv1.weight",
    "superscript digits": "layer1.².conv1.weight",
    "a negative block": "layer1.-1.conv1.weight",
    "a very long name": "x" * 5_000_000,
    "a long name of dots": "." * 1_000_000,
    "a long name of stems": "conv1." * 200_000,
    "a long name of layers": "layer1.1.conv1." * 100_000 + "weight",
    "an escape code": "\x1b[31mred",
    "a line end": "two\nlines",
    "text that turns round": "\u202egnp.exe",
    "half a character": "\ud83d",
    "a null": "a\0b",
    "empty": "",
    "a dot": ".",
    "a tuple": ("layer1", 0),
    "bytes": b"conv1.weight",
    "a number": 7,
    "None": None,
    "a fraction": 0.5,
    "true": True,
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
def test_names_beside_the_networks(tmp_path, kind):
    """A surplus tensor is named, whatever its name is."""
    text = sentence(saved(tmp_path, {"state_dict": {**MINE, NAMES[kind]: H}}))
    assert text and ("1 tensors left over" in text or "no known layout" in text)
    assert sentence(saved(tmp_path, {**under("module.encoder_q."), NAMES[kind]: H}))


@pytest.mark.parametrize("kind", NAMES)
def test_keys_above_the_networks(tmp_path, kind):
    """One network under an odd key loads; for two, the error names both, and the suggested options choose."""
    key = NAMES[kind]
    assert sentence(saved(tmp_path, {key: dict(MINE), "epoch": 3})) is None
    text = sentence(saved(tmp_path, {key: dict(MINE), "model_ema": OTHER}))
    assert text and "contains two networks, " in text


@pytest.mark.parametrize("kind", [k for k in NAMES if isinstance(NAMES[k], str) and len(NAMES[k]) < 100])
def test_prefixes_before_the_names(tmp_path, kind):
    path = saved(tmp_path, {"net": under(f"{NAMES[kind]}.{NAMES[kind]}.")})
    assert sentence(path) is None or "no known layout" in sentence(path)


# ---------------------------------------------------------------- containers


def _shared():
    inner = {"model": dict(MINE)}
    for _ in range(60):
        inner = {"a": inner, "b": inner}
    return inner


def _cycle():
    outer = {"model": dict(MINE)}
    outer["self"] = [outer]
    return outer


def _deep(levels):
    inner = dict(MINE)
    for _ in range(levels):
        inner = {"a": inner}
    return inner


CONTAINERS = {
    "nothing": {},
    "a list": [dict(MINE)],
    "a tuple": (dict(MINE), 3),
    "a tensor": torch.zeros(3),
    "a number": 3,
    "None": None,
    "an empty state_dict": {"state_dict": {}},
    "shared without end": _shared(),
    "held by itself": _cycle(),
    "deep": _deep(80),
    "very many numbers": {"model": dict(MINE), "losses": [float(i) for i in range(300_000)]},
    "very many pairs": {"model": dict(MINE), "losses": [(i, 0.5) for i in range(100_000)]},
    "very many keys": {f"k{i}": torch.zeros(1) for i in range(8_000)},
    "very many tensors": {"state_dict": {f"k{i}": torch.zeros(1) for i in range(12_000)}},
    "very many networks": {f"net{i}": {n: t + i for n, t in MINE.items() if ".conv" in n or "bn" in n} for i in range(60)},
    "very many prefixes": {f"net{i}.{n}": t for i in range(60) for n, t in MINE.items() if ".conv1" in n},
    "keys alone": {"online_backbone": None, "resnet": 3, "network": [], "teacher": "x", "blobs": {}, "meta": 3},
    "half of every layout": {"online_backbone": 3, "resnet": None, "state_dict": {"4.0.conv1.weight": H},
                             "experiment_state": {}},
    "two heads": {"fc": {"weight": H}, "head": {"weight": H}},
    "a network in two pieces": {"stem": {n: t for n, t in MINE.items() if n < "l"},
                                "body": {n: t for n, t in MINE.items() if n > "l"}},
    "two stages alone": {n: t for n, t in MINE.items() if n.startswith(("layer1.", "layer2."))},
    "bias for every convolution": {**MINE, **{n.replace("weight", "bias"): H for n in MINE if "conv" in n}},
}  # fmt: skip
LOADS = {"a list", "a tuple", "shared without end", "held by itself", "deep", "very many numbers", "very many pairs"}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_containers(tmp_path, kind):
    text = sentence(saved(tmp_path, CONTAINERS[kind]))
    if kind == "shared without end" and text:
        assert "unfold" in text or "values" in text
    else:
        assert (text is None) == (kind in LOADS), text


# ---------------------------------------------------------------- folders

PREPROCESSOR = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25], "size": 64}
CONFIG = {"model_type": "resnet", "hidden_act": "relu"}
HF = {name: tensor.contiguous() for name, tensor in formats.modules()["huggingface"].example(MINE, TINY.arch).items()}
INDEX = "model.safetensors.index.json"


def folder(tmp_path, **files):
    place = tmp_path / "snapshot"
    place.mkdir()
    for name, content in files.items():
        if isinstance(content, dict) and all(isinstance(value, torch.Tensor) for value in content.values()) and content:
            save_file(content, place / name)
        elif isinstance(content, bytes):
            (place / name).write_bytes(content)
        else:
            (place / name).write_text(json.dumps(content))
    return place


HALVES = [dict(list(HF.items())[::2]), dict(list(HF.items())[1::2])]
WEIGHT_MAP = {name: f"{i}.safetensors" for i in (0, 1) for name in HALVES[i]}
SNAPSHOTS = {
    "whole": {"config.json": CONFIG, "model.safetensors": HF, "preprocessor_config.json": PREPROCESSOR},
    "shards": {"config.json": CONFIG, INDEX: {"weight_map": WEIGHT_MAP}, "0.safetensors": HALVES[0], "1.safetensors": HALVES[1],
               "preprocessor_config.json": PREPROCESSOR},
    "size by edge": {"config.json": CONFIG, "model.safetensors": HF,
                     "preprocessor_config.json": {**PREPROCESSOR, "size": {"shortest_edge": 64}}},
    "byte order mark": {"config.json": b"\xef\xbb\xbf{}", "model.safetensors": HF, "preprocessor_config.json": PREPROCESSOR},
    "crop": {"config.json": CONFIG, "model.safetensors": HF,
             "preprocessor_config.json": {**PREPROCESSOR, "size": 73, "do_center_crop": True,
                                          "crop_size": {"height": 64, "width": 64}}},
    "timm's": {"config.json": {"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3,
                                                                             "input_size": [3, 64, 64]}},
               "model.safetensors": dict(MINE)},
    "a shard is missing": {"config.json": CONFIG, INDEX: {"weight_map": WEIGHT_MAP}, "0.safetensors": HALVES[0]},
    "a shard elsewhere": {"config.json": CONFIG, INDEX: {"weight_map": {"a": "../../etc/passwd"}}},
    "a shard of others": {"config.json": CONFIG, INDEX: {"weight_map": WEIGHT_MAP}, "0.safetensors": HALVES[0],
                          "1.safetensors": HALVES[0]},
    "an index that is a list": {"config.json": CONFIG, INDEX: [1, 2]},
    "an index without a map": {"config.json": CONFIG, INDEX: {"weight_map": 3}},
    "an index of numbers": {"config.json": CONFIG, INDEX: {"weight_map": {"a": 3}}},
    "no JSON": {"config.json": b"\xff\xfe\x00", "model.safetensors": HF},
    "deep JSON": {"config.json": b"[" * 100_000, "model.safetensors": HF},
    "a list for a configuration": {"config.json": [1], "model.safetensors": HF},
    "a transformer": {"config.json": {"model_type": "vit"}, "model.safetensors": HF},
    "another activation": {"config.json": {**CONFIG, "hidden_act": "gelu\x1b"}, "model.safetensors": HF},
    "another stride": {"config.json": {**CONFIG, "downsample_in_first_stage": True}, "model.safetensors": HF},
    "std 0": {"config.json": CONFIG, "model.safetensors": HF,
              "preprocessor_config.json": {**PREPROCESSOR, "image_std": [0, 0, 0]}},
    "std of words": {"config.json": CONFIG, "model.safetensors": HF,
                     "preprocessor_config.json": {**PREPROCESSOR, "image_std": ["a"]}},
    "no scaling": {"config.json": CONFIG, "model.safetensors": HF,
                   "preprocessor_config.json": {**PREPROCESSOR, "do_rescale": False}},
    "scaling by a word": {"config.json": CONFIG, "model.safetensors": HF,
                          "preprocessor_config.json": {**PREPROCESSOR, "rescale_factor": "x"}},
    "huge size": {"config.json": CONFIG, "model.safetensors": HF, "preprocessor_config.json": {**PREPROCESSOR, "size": 10**9}},
    "weights alone": {"model.safetensors": HF},
    "configuration alone": {"config.json": CONFIG},
    "nothing": {},
    "damaged weights": {"config.json": CONFIG, "model.safetensors": b"\x10\0\0\0\0\0\0\0{}"},
}  # fmt: skip
WHOLE = {"whole", "shards", "size by edge", "byte order mark", "crop", "timm's"}


@pytest.mark.parametrize("kind", SNAPSHOTS)
def test_folders(tmp_path, kind):
    place = folder(tmp_path, **SNAPSHOTS[kind])
    text = sentence(place)
    assert (text is None) == (kind in WHOLE), text
    if text is None:
        backbone = load(place)
        assert not backbone.arch.stride_in_1x1
        assert backbone.input.size == 64 and backbone.input.std == (0.25, 0.25, 0.25)
        assert torch.equal(backbone.state["conv1.weight"], MINE["conv1.weight"])


# ---------------------------------------------------------------- output of the commands

EVIL = "\x1b]0;owned\x07\x1b[2J\nline\u202e<b>|=cmd()"


@pytest.mark.parametrize("command", ["verify", "convert"])
@pytest.mark.parametrize("kind", ["dropped", "key", "file", "left over", "prefix"])
def test_strangers_words_reach_the_terminal_as_visible_characters(tmp_path, capsys, command, kind):
    obj = {
        "dropped": {"model": {**under("module."), f"module.head.{EVIL}": H}},
        "key": {EVIL: dict(MINE)},
        "file": dict(MINE),
        "left over": {**MINE, EVIL: H},
        "prefix": under(EVIL),
    }[kind]
    name = f"{EVIL.replace('/', '')}.pth" if kind == "file" else "photos.pth"
    path = saved(tmp_path, obj, name)
    try:
        main([command, str(path), *(["-o", str(tmp_path / f"{name}.out")] if command == "convert" else [])])
        told = ""
    except CheckpointError as error:
        told = str(error)
    out = capsys.readouterr()
    assert is_printable((out.out + out.err + told).replace("\n", " ")), out.out
    assert "line\u202e" not in out.out and not any(line.startswith("line") for line in out.out.splitlines())
