"""Finding the backbone in a file: other networks are named, and the suggested options work when typed."""

import re
import shlex

import pytest
import torch

from backbench.errors import CheckpointError
from model_zoo import formats
from model_zoo.choice import Choice
from model_zoo.load import load
from model_zoo.recognise import recognise
from tests.builders.backbones import make_backbone

pytestmark = pytest.mark.slow  # writes and reads about a hundred checkpoints

TINY = make_backbone("resnet18")
MINE = TINY.state
OTHER = make_backbone("resnet18", seed=1).state
PARAMETERS = [name for name in MINE if "running" not in name and "num_batches" not in name]
H = torch.zeros(8, 8)


def under(prefix, state=MINE):
    return {prefix + name: tensor for name, tensor in state.items()}


def shadow(state=OTHER):
    """Return an average of the parameters only."""
    return {name: state[name] for name in PARAMETERS}


def put(path, value, beside=None):
    """Return {"a": {"b": value}} for `a.b`, with a list for a number."""
    *outer, last = path.split("/")
    found = [value] if last == "0" else {last: value}
    for key in reversed(outer):
        found = [found] if key == "0" else {key: found}
    return {**(beside or {}), **found}


def is_mine(recognised, state=MINE):
    found = recognised.found.state
    return all(torch.equal(found[name], state[name]) for name in state if not name.endswith("num_batches_tracked"))


def refusal(obj, choice=None):
    with pytest.raises(CheckpointError) as caught:
        recognise(obj, choice or Choice())
    text = str(caught.value)
    assert "\n" not in text
    return text


def typed(text):
    """Return the choices that an error offers, split as by a shell."""
    words = shlex.split(re.search(r": add (.*?)(?:; nearest|; known|$)", text)[1])
    choices, now = [], {}
    for word, value in zip(words, [*words[1:], None], strict=True):
        if word == "or":
            choices.append(now)
            now = {}
        elif word in ("--key", "--prefix"):
            now[word[2:]] = value
    return [Choice(**each) for each in [*choices, now]]


# ---------------------------------------------------------------- one network, at any place and in any wrapper

KEYS = ["", "state_dict", "model", "model_state_dict", "net", "module", "model_state", "student", "teacher", "network",
        "params", "weights", "backbone", "a/b/c/d", "models/0", "ema/state", "state_dict/model"]  # fmt: skip
WRAPS = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module.", "model.", "model.backbone.",
         "_fsdp_wrapped_module.", "_forward_module.module.", "net.module.", "backbone._orig_mod.", "model.encoder.module.",
         "_orig_mod.module.encoder_q.", "module.base_encoder._orig_mod.", "model.model."]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("wrap", WRAPS)
def test_the_only_network_loads(key, wrap):
    tensors = {**under(wrap), f"{wrap}fc.weight": H}
    obj = put(key, tensors, {"epoch": 3, "optimizer": {"state": {}}}) if key else tensors
    assert is_mine(recognise(obj))


@pytest.mark.parametrize("inner", ["_checkpoint_wrapped_module", "_orig_mod", "_fsdp_wrapped_module", "module"])
def test_wrappers_within_the_names(inner):
    names = {name: re.sub(r"^(layer[13]\.\d)\.", rf"\1.{inner}.", name) for name in MINE}
    assert is_mine(recognise({f"module.{names[name]}": tensor for name, tensor in MINE.items()}))


@pytest.mark.parametrize("extra", ["model.fc.weight", "model.projector.0.weight", "model.head.weight"])
def test_lightning_around_a_network_called_model(extra):
    obj = {"pytorch-lightning_version": "2", "state_dict": {**under("model.backbone."), extra: H}}
    assert is_mine(recognise(obj))


def test_averaged_model():
    module = TINY.build()
    averaged = torch.optim.swa_utils.AveragedModel(module)
    averaged.update_parameters(module)
    for obj in (averaged.state_dict(), {"model_ema": averaged.state_dict()}):
        found = recognise(obj)
        assert is_mine(found) and any("AveragedModel" in note for note in found.notes)


def test_the_counter_of_an_average_is_none_when_it_is_a_weight():
    obj = {**under("module."), "n_averaged": torch.zeros(1)}
    assert recognise(obj).found.leftover == ("n_averaged",)


# ---------------------------------------------------------------- a second network

PAIRS = {
    "model_ema": {"model": MINE, "model_ema": under("module.", OTHER)},
    "state_dict_ema": {"state_dict": MINE, "state_dict_ema": OTHER},
    "ema": {"state_dict": under("module."), "ema": OTHER},
    "ema_state_dict of mmengine": {"meta": {}, "state_dict": under("backbone."),
                                   "ema_state_dict": under("module.backbone.", OTHER)},
    "best_state_dict": {"model_state_dict": MINE, "best_state_dict": OTHER},
    "swa_state_dict": {"net": MINE, "swa_state_dict": OTHER},
    "student and teacher": {"student": MINE, "teacher": OTHER},
    "two layouts": {"state_dict": under("module.encoder_q."), "model": OTHER},
    "lightning's averaging": {"state_dict": under("model."), "current_model_state": under("model.", OTHER)},
    "a callback": {"pytorch-lightning_version": "2", "state_dict": under("backbone."),
                   "callbacks": {"EMA{'decay': 0.9}": {"ema_state_dict": under("backbone.", OTHER)}}},
    "parameters alone": {"model": MINE, "ema": {"decay": 0.9, "shadow": shadow()}},
    "by name in an optimizer": {"model": MINE, "optimizer": {"ema": shadow()}},
    "in a list": {"models": [MINE, OTHER]},
    "beside the top": {**MINE, "ema": OTHER},
    "deep": {"model": MINE, "a": {"b": [{"c": {"d": OTHER}}]}},
    "prefixes": {"state_dict": {**under("online."), **under("offline.", OTHER)}},
    "prefixes and a head": {"model": {**under("net1."), **under("net2.", OTHER), "head.weight": H}},
    "compiled and not": {**MINE, **under("_orig_mod.", OTHER)},
    "another scheme": {"state_dict": MINE, "exported": formats.modules()["huggingface"].example(OTHER, TINY.arch)},
    "our own": {**formats.modules()["backbench"].example(MINE, TINY.arch), "ema": OTHER},
    "other precision": {"model": MINE, "half": {n: t.half() if t.is_floating_point() else t for n, t in MINE.items()}},
    "twins that are not on a list": {"state_dict": {**under("module.encoder_q."), **under("module.slow.", OTHER)}},
}  # fmt: skip


@pytest.mark.parametrize("kind", PAIRS)
def test_a_second_network_is_refused_and_the_words_choose(kind):
    text = refusal(PAIRS[kind])
    assert "contains two networks, " in text
    first, second = typed(text)
    found = recognise(PAIRS[kind], first)
    assert is_mine(found), first
    assert any("skipped" in note for note in found.notes), "the other network is named"
    state = recognise(PAIRS[kind], second).found.state
    assert not torch.equal(state["conv1.weight"], MINE["conv1.weight"]), second


def test_both_places_are_named():
    assert refusal(PAIRS["model_ema"]).startswith(
        "contains two networks, under 'model' and under 'model_ema' after 'module.': add --key model or --key model_ema"
    )


def test_three_networks():
    text = refusal({"a": MINE, "b": OTHER, "c": make_backbone("resnet18", seed=2).state})
    assert "contains three networks, under 'a' and under 'b' and under 'c': add --key a or --key b or --key c" in text


@pytest.mark.parametrize("kind", ["list", "by parameter", "shadow_params"])
def test_an_average_without_names_is_refused(kind):
    tensors = list(shadow().values())
    state = {i: {"exp_avg": tensor, "ema": tensor} for i, tensor in enumerate(tensors)}
    places = {
        "list": ("optimizer_states.0.ema", {"optimizer_states": [{"ema": tuple(tensors), "opt": {}}]}),
        "by parameter": ("optimizer.state.*.ema", {"optimizer": {"state": state}}),
        "shadow_params": ("ema.shadow_params", {"ema": {"decay": 0.9, "shadow_params": tensors}}),
    }  # fmt: skip
    place, beside = places[kind]
    text = refusal({"state_dict": MINE, **beside})
    assert f"without names, in the list '{place}': add --key state_dict to take the first" in text
    assert is_mine(recognise({"state_dict": MINE, **beside}, typed(text.replace(" to take the first", ""))[0]))


@pytest.mark.parametrize(
    "kind", ["momentum by name", "adam", "momentum list", "half with a master copy", "gradients", "head"]
)
def test_what_is_no_second_network(kind):
    mine, values = MINE, shadow()
    beside = {
        "momentum by name": {"optimizer": {"momentum_buffer": values}},
        "adam": {"optimizer": {"state": {i: {"exp_avg": t, "exp_avg_sq": t} for i, t in enumerate(values.values())}}},
        "momentum list": {"optimizer": {"buffers": list(values.values())}},
        "gradients": {"grads": values},
        "head": {"projector": {"conv1.weight": H, "bn1.running_mean": H}},
    }.get(kind, {})
    if kind == "half with a master copy":
        mine = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in MINE.items()}
        beside = {"optimizer": {"fp32_from_fp16": [[MINE[name] for name in PARAMETERS]]}}
    assert recognise({"model": mine, **beside}).layout == "torchvision"


@pytest.mark.parametrize("second", ["ema", "state_dict", "deep"])
def test_copies_that_are_equal_to_the_bit_are_one(second):
    copy = {name: tensor.clone() for name, tensor in MINE.items()}
    found = recognise({"model": MINE, second: {"x": copy} if second == "deep" else copy})
    assert is_mine(found) and any("stored 2 times, bitwise equal" in note for note in found.notes)
    copy["layer4.1.bn2.running_var"][0] *= 1 + 1e-6
    assert "contains two networks" in refusal({"model": MINE, second: {"x": copy} if second == "deep" else copy})


def test_one_dictionary_under_two_keys_is_one():
    assert is_mine(recognise({"model": MINE, "net": MINE}))


RULES = {
    "moco": {"state_dict": {**under("module.encoder_q."), **under("module.encoder_k.", OTHER)}},
    "pixpro": {"model": {**under("module.encoder."), **under("module.encoder_k.", OTHER)}},
    "dino": {"student": under("module.backbone.", OTHER), "teacher": under("backbone.")},
    "lightning": {"state_dict": {**under("backbone."), **under("momentum_backbone.", OTHER)}},
    "prefixed": {"model": under("module.encoder."), "contrast": {}, "model_ema": under("encoder.", OTHER)},
    "mmselfsup": {"meta": {}, "state_dict": {**under("backbone."), **under("encoder_k.module.0.", OTHER)}},
    "vissl": {"classy_state_dict": {"base_model": {"model": {"trunk": under("_feature_blocks."), "heads": {}}},
                                    "loss": {"moco_encoder": under("trunk._feature_blocks.", OTHER)}}},
}  # fmt: skip


@pytest.mark.parametrize("layout", RULES)
def test_a_published_rule_stands_and_says_what_it_passed_over(layout):
    found = recognise(RULES[layout])
    assert found.layout == layout and is_mine(found)
    assert [note for note in found.notes if note.startswith(f"skipped by the rule of layout '{layout}': the network ")]


def test_haikus_target_network():
    example = formats.modules()["haiku"].example
    obj, other = example(MINE, TINY.arch), example(OTHER, TINY.arch)["experiment_state"]
    obj["experiment_state"] |= {"target_params": other["online_params"], "target_state": other["online_state"]}
    found = recognise(obj)
    assert is_mine(found) and "'experiment_state.target_params'" in found.notes[0]
    obj["ema"] = other["online_params"]
    assert "under 'ema'" in refusal(obj)


def test_a_rule_does_not_cover_a_third_network():
    text = refusal({**RULES["dino"], "ema": make_backbone("resnet18", seed=2).state})
    assert "under 'teacher' after 'backbone.' and under 'ema'" in text


class ModelEMA:
    """Trainers pickle the averaged network inside an object of their own class."""

    def __init__(self, module):
        self.updates, self.module = 3, module


@pytest.mark.parametrize("kind", ["an object", "a module"])
def test_a_second_network_that_is_left_unread_is_refused(tmp_path, kind):
    averaged = make_backbone("resnet18", seed=1).build()
    path = tmp_path / "photos.pth"
    torch.save({"model": dict(MINE), "ema": ModelEMA(averaged) if kind == "an object" else averaged}, path)
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert "contains two networks, under 'model' and, left unread (" in str(caught.value)
    assert "), 'ema': add --key model to take the first" in str(caught.value)
    assert load(path, choice=Choice("model")).weights_sha256 == TINY.weights_sha256


def test_npids_memory_bank_is_no_network(tmp_path):
    bank = torch.nn.Linear(8, 8)
    torch.save({"state_dict": under("module."), "lemniscate": bank, "epoch": 1}, tmp_path / "npid.pth")
    assert load(tmp_path / "npid.pth").format == "prefixed"


# ---------------------------------------------------------------- --key and --prefix

UNKNOWN = {
    "key and prefix": ({"foo": {"bar": under("trunk.")}}, "--key foo.bar --prefix trunk."),
    "prefix": (under("trunk."), "--prefix trunk."),
    "dots in a key": ({"a.b": {"c.d": under("trunk.x.")}}, "--key a.b.c.d --prefix trunk.x."),
    "spaces in a key": ({"my net": under("trunk.")}, "--key 'my net' --prefix trunk."),
    "number": ({7: under("trunk.")}, "--key 7 --prefix trunk."),
    "empty key": ({"": under("trunk.")}, "--key '' --prefix trunk."),
    "escape code": ({"\x1b[31m": under("tr\x1bunk.")}, r"--key '\x1b[31m' --prefix 'tr\x1bunk.'"),
    "dash": ({"--out": under("-x.")}, "--key=--out --prefix=-x."),
    "other names": ({"w": {f"trunk.{n}": t for n, t in formats.modules()["huggingface"].example(MINE, TINY.arch).items()}},
                    "--key w --prefix trunk."),
    "bare beside a norm": ({**MINE, "proj.bn1.weight": H}, "--prefix ''"),
}  # fmt: skip


@pytest.mark.parametrize("kind", UNKNOWN)
def test_the_error_says_what_to_type_and_that_works(kind):
    obj, words = UNKNOWN[kind]
    text = refusal(obj)
    assert text.startswith("no known layout: ") and f": add {words};" in text
    assert "known layouts: backbench, " in text
    from model_zoo.__main__ import parser
    from model_zoo.choice import of_arguments

    assert is_mine(recognise(obj, of_arguments(parser().parse_args(["verify", "file", *shlex.split(words)]))))


def test_what_is_outside_the_prefix_is_counted_and_what_is_below_is_not_forgiven():
    obj = {"state_dict": {**under("model."), "criterion.weight": H, "ema.decay": H}}
    found = recognise(obj)
    assert len(found.found.leftover) == 2
    assert found.advice.endswith("add --key state_dict --prefix model.")
    chosen = recognise(obj, Choice("state_dict", "model."))
    assert is_mine(chosen) and not chosen.found.leftover
    assert "2 tensors outside the prefix 'model.' are skipped, as requested" in chosen.notes
    obj["state_dict"]["model.attention.weight"] = H
    assert recognise(obj, Choice("state_dict", "model.")).found.leftover == ("attention.weight",)
    assert not recognise(obj, Choice("state_dict", "model.")).advice


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        (Choice("statedict"), "has no 'statedict' (--key); tensors are under: 'state_dict' (126), 'ema.x' (126); "
                              "did you mean 'state_dict'?"),
        (Choice("state_dict.net.conv1.weight"), "is not a dictionary but a Tensor"),
        (Choice("epoch"), "'epoch' (--key) is not a dictionary but a int"),
        (Choice("ema.y"), "has no 'ema.y'"),
        (Choice(""), "has no ''"),
        (Choice("\x1b[2J"), r"has no '\x1b[2J'"),
        (Choice("x" * 5000), "has no 'xxx"),
        (Choice(".".join("a" * 2000)), "has no 'a.a."),
        (Choice(None, "student."), "begins with 'student.' (--prefix); prefixes of ResNet names: 'net.' (126), '' (126)"),
        (Choice("ema.x", "net."), "no tensor's name begins with 'net.'"),
        (Choice("ema"), "TAKEN"),
    ],
)  # fmt: skip
def test_wrong_words_say_what_there_is(choice, words):
    obj = {"state_dict": under("net."), "ema": {"x": OTHER}, "epoch": 3}
    if words == "TAKEN":
        assert is_mine(recognise(obj, choice), OTHER)
    else:
        assert words in refusal(obj, choice)


def test_a_prefix_in_two_places_asks_for_the_key():
    obj = {"a": under("net."), "b": under("net.", OTHER)}
    assert refusal(obj, Choice(None, "net.")).endswith(
        "in 2 places: add --key a --prefix net. or --key b --prefix net."
    )


@pytest.mark.parametrize("prefix", ["trunk", "trunk.", "_orig_mod.trunk."])
def test_a_dot_is_added_and_a_wrappers_name_may_be_said(prefix):
    assert is_mine(recognise({"w": under("_orig_mod.trunk.")}, Choice(None, prefix)))
