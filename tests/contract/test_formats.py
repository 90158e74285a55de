"""Every checkpoint layout is documented, matches only its own files, and is lossless."""

import re
import sys
import types
from typing import NamedTuple

import pytest
import torch
from backbones import initial

from backbench import plugins
from backbench.errors import CheckpointError, ConfigError
from backbench.files.hashes import tensors_sha256
from model_zoo import formats
from model_zoo.architecture import Architecture
from model_zoo.backbone import identity_tensors
from model_zoo.load import load

LAYOUTS = sorted(formats.modules())


def narrow(name):
    return Architecture(name=name, width=0.25)


def trained_state(name, seed=0):
    """Return a narrow network with statistics that a fresh one does not have."""
    torch.manual_seed(seed)
    state = initial(narrow(name), seed)
    for key in state:
        if key.endswith("running_mean"):
            state[key].normal_()
        if key.endswith("running_var"):
            state[key].uniform_(0.5, 2.0)
        if key.endswith("num_batches_tracked"):
            state[key].fill_(7)
    return state


@pytest.fixture(scope="module", params=["resnet18", "resnet50"])
def reference(request):
    return request.param, trained_state(request.param)


def test_the_layouts_that_are_documented_are_there():
    assert {"backbench", "moco", "moco_v3", "prefixed", "torchvision", "vissl", "haiku", "caffe2"} <= set(LAYOUTS)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_module_offers_what_the_registry_needs(layout):
    module = formats.modules()[layout]
    assert module.__doc__ and len(module.__doc__.strip()) > 20
    for name in ("matches", "extract", "example"):
        function = getattr(module, name)
        assert callable(function)
        assert function.__doc__


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_that_is_no_checkpoint_is_matched(layout):
    others = [{}, [], "text", 3, None, {"state_dict": {}}, {"model": None}, {"epoch": 3}, {"teacher": 1}, {"network": []},
              {"classy_state_dict": {"base_model": 3}}, {"experiment_state": None}, {"online_backbone": None}]  # fmt: skip
    assert [other for other in others if formats.modules()[layout].matches(other)] == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_example_is_matched_by_its_own_layout_alone(layout, reference):
    name, state = reference
    example = formats.modules()[layout].example(state, narrow(name))
    assert list(formats.matching(example)) == [layout]
    rivals = {other for other, module in formats.modules().items() if module.matches(example)} - {layout}
    assert rivals <= set(getattr(formats.modules()[layout], "MORE_SPECIFIC_THAN", ())), "each one gives way by name"


def test_layouts_give_way_to_layouts_that_exist_and_never_in_a_circle():
    over = {name: set(getattr(module, "MORE_SPECIFIC_THAN", ())) for name, module in formats.modules().items()}
    assert set().union(*over.values()) <= set(over)
    assert any(over.values())
    assert not [(one, other) for one, below in over.items() for other in below if one in over[other] or one == other]


PLUG_IN = """
from collections.abc import Mapping
from model_zoo.formats import take
{over}

def matches(obj):
    \"\"\"Ours.\"\"\"
    if isinstance(obj, Mapping) and "raise" in obj:
        raise KeyError("a fault of the plug-in")
    return isinstance(obj, Mapping) and "trained_by_us" in obj

def extract(obj):
    \"\"\"The tensors.\"\"\"
    return take(obj["state_dict"], "", ())

def example(state, arch):
    \"\"\"A file.\"\"\"
    return {{"trained_by_us": 1, "state_dict": dict(state)}}
"""


@pytest.mark.parametrize(
    "over", ["", "MORE_SPECIFIC_THAN = ('torchvision',)", "MORE_SPECIFIC_THAN = ('moco', 'torchvision')"]
)
def test_the_most_specific_layout_wins_and_a_tie_names_both(over, tmp_path, monkeypatch):
    (tmp_path / "formats").mkdir()
    (tmp_path / "formats" / f"ours{len(over)}.py").write_text(PLUG_IN.format(over=over))
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
    torch.save({"trained_by_us": 1, "state_dict": trained_state("resnet18")}, tmp_path / "a.pth")
    if over:
        assert load(tmp_path / "a.pth").format == f"ours{len(over)}"
        return
    with pytest.raises(
        CheckpointError, match=r"more than one layout, (ours0 and torchvision|torchvision and ours0): none"
    ):
        load(tmp_path / "a.pth")


def test_a_layout_outside_the_package_whose_check_raises_takes_nothing_down(tmp_path, monkeypatch, capsys):
    (tmp_path / "formats").mkdir()
    (tmp_path / "formats" / "faulty.py").write_text(PLUG_IN.format(over=""))
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
    torch.save({"raise": 1, "state_dict": trained_state("resnet18")}, tmp_path / "a.pth")
    assert load(tmp_path / "a.pth").format == "torchvision"
    assert "faulty.py: matches() raised KeyError" in capsys.readouterr().err


PICKLES = """
def matches(obj):
    return False

extract = example = matches

def state(arguments):
    if len(arguments) != 2:
        return NotImplemented
    return {answer}

PICKLED = {pickled}
"""
FIELDS = 'dict(zip(("state_dict", "rng"), arguments))'


class State(NamedTuple):
    """A NamedTuple of a trainer, pickled as its class and its fields."""

    weights: dict
    rng: object


def layout_with_pickled(folder, monkeypatch, name="ours", answer=FIELDS, pickled="{('mylab_train', 'State'): state}"):
    """Write a plug-in layout and a checkpoint with a `mylab_train.State`; return the checkpoint."""
    (folder / "formats").mkdir(exist_ok=True)
    (folder / "formats" / f"{name}.py").write_text(PICKLES.format(answer=answer, pickled=pickled))
    monkeypatch.setenv(plugins.VARIABLE, str(folder))
    monkeypatch.setattr(State, "__module__", "mylab_train")
    monkeypatch.setitem(sys.modules, "mylab_train", types.SimpleNamespace(State=State))
    torch.save(State(trained_state("resnet18"), types.SimpleNamespace(a=1)), folder / "a.pth")
    monkeypatch.delitem(sys.modules, "mylab_train")
    return folder / "a.pth"


def test_a_layout_outside_the_package_reads_its_own_pickled_class(tmp_path, monkeypatch):
    file = layout_with_pickled(tmp_path, monkeypatch)
    backbone = load(file)
    assert backbone.format == "torchvision"
    assert torch.equal(backbone.state["conv1.weight"], trained_state("resnet18")["conv1.weight"])
    assert not any("mylab" in note for note in backbone.notes)
    assert any("types.SimpleNamespace" in note for note in backbone.notes), "what PICKLED does not name stays inert"
    monkeypatch.delenv(plugins.VARIABLE)
    with pytest.raises(CheckpointError, match=r"mylab_train.State"):
        load(file)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ("open", "for 'mylab_train.State' in PICKLED returned builtin_function_or_method, not a plain value"),
        ("type('Mine', (dict,), {})()", "returned Mine, not a plain value"),
        ("arguments[0]['nothing']", "raised KeyError: 'nothing'; correct it"),
    ],
)
def test_an_operation_that_is_wrong_is_an_error_that_names_its_layout(answer, words, tmp_path, monkeypatch):
    file = layout_with_pickled(tmp_path, monkeypatch, answer=answer)
    with pytest.raises(CheckpointError, match=f"^{file}: the operation of layout 'ours' .*{re.escape(words)}"):
        load(file)


@pytest.mark.parametrize(
    "name",
    [("torch._utils", "_rebuild_tensor_v2"), ("torch", "FloatStorage"), ("__builtin__", "dict"), ("numpy", "dtype")],
)
def test_a_layout_cannot_replace_a_built_in_operation(name, tmp_path, monkeypatch):
    file = layout_with_pickled(tmp_path, monkeypatch, pickled=f"{{{name}: state}}")
    with pytest.raises(
        ConfigError, match=f"layout 'ours': PICKLED names '.*{name[1]}', which is read by a built-in rule"
    ):
        load(file)


@pytest.mark.parametrize("pickled", ["[]", "{'mylab_train.State': state}", "{('mylab_train', 'State'): 3}"])
def test_a_malformed_table_of_operations_is_named(pickled, tmp_path, monkeypatch):
    file = layout_with_pickled(tmp_path, monkeypatch, pickled=pickled)
    with pytest.raises(ConfigError, match=r"layout 'ours': PICKLED must map pairs \(module, class\) to functions"):
        load(file)


def test_two_layouts_with_different_operations_for_one_class_are_both_named(tmp_path, monkeypatch):
    layout_with_pickled(tmp_path, monkeypatch, name="other")
    file = layout_with_pickled(tmp_path, monkeypatch)
    with pytest.raises(
        ConfigError, match=r"layouts 'other' and 'ours': their PICKLED give 'mylab_train.State' different"
    ):
        load(file)
    layout_with_pickled(
        tmp_path, monkeypatch, name="other2", pickled="__import__('sys').modules['backbench_formats_ours'].PICKLED"
    )
    (tmp_path / "formats" / "other.py").unlink()
    assert load(file).format == "torchvision", "the same function in both is no conflict"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_example_loads_to_the_same_tensors(layout, reference, tmp_path):
    name, state = reference
    arch = narrow(name)
    wrapped = tmp_path / "wrapped.pth"
    torch.save(formats.modules()[layout].example(state, arch), wrapped)
    loaded = load(wrapped)
    assert loaded.format == layout
    stated = getattr(formats.modules()[layout], "ARCH", {})  # fields of every file of the layout
    assert loaded.arch == arch.model_copy(update=stated)
    assert set(loaded.state) == set(state)
    counted = {key: key.endswith("num_batches_tracked") for key in state}
    assert all(torch.equal(loaded.state[key], state[key]) for key in state if not counted[key])
    assert {int(loaded.state[key]) for key in state if counted[key]} <= {0, 7}, "0 if the layout has no counter"
    assert loaded.weights_sha256 == tensors_sha256(identity_tensors(state))


def test_other_weights_have_another_identity(tmp_path):
    file = tmp_path / "a.pth"
    state = trained_state("resnet18")
    torch.save(state, file)
    first = load(file).weights_sha256
    state["layer4.1.bn2.bias"][3] += 1e-6
    torch.save(state, file)
    assert load(file).weights_sha256 != first
