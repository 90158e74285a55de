"""Read untrusted checkpoint files: contents of good ones, errors of broken ones."""

from __future__ import annotations

import argparse
import collections
import io
import os
import pathlib
import pickle

import numpy as np
import pytest
import torch

from backbench.errors import CheckpointError
from model_zoo import reading
from model_zoo.reading import load_torch

WEIGHTS = {"conv.weight": torch.arange(12.0).reshape(3, 4), "bn.num_batches_tracked": torch.tensor(7)}
both_containers = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])


def save(path, value, zipped=True):
    torch.save(value, path, _use_new_zipfile_serialization=zipped)
    return path


def assert_weights(read):
    assert set(read) == set(WEIGHTS)
    for name, value in WEIGHTS.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name], value)


@both_containers
def test_plain_weights(tmp_path, zipped):
    assert_weights(load_torch(save(tmp_path / "x.pth", WEIGHTS, zipped)))


def test_what_is_no_checkpoint_is_named(tmp_path):
    whole = save(tmp_path / "zip.pth", WEIGHTS).read_bytes()
    legacy = save(tmp_path / "legacy.pth", WEIGHTS, zipped=False).read_bytes()
    garbage = np.random.default_rng(0).bytes(2000)
    cases = {
        "empty.pth": (b"", "the file is empty"),
        "page.pth": (b"\n  <!DOCTYPE html><html>sign in</html>", "is a web page"),
        "xml.pth": (b"<?xml version='1.0'?><Error/>", "is a web page"),
        "half.pth": (whole[: len(whole) // 2], "truncated"),
        "almost.pth": (whole[:-1], "truncated"),
        "head.pth": (whole[:10], "truncated"),
        "half_legacy.pth": (legacy[: len(legacy) // 2], "truncated"),
        "almost_legacy.pth": (legacy[:-1], "truncated"),
        "garbage.pth": (garbage, "not a readable torch checkpoint"),
        "text.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "not a readable torch checkpoint"),
        "one.pth": (b"\x80", "not a readable pickle; truncated"),
    }
    for name, (data, words) in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(CheckpointError) as error:
            load_torch(tmp_path / name)
        assert words in str(error.value), name
        assert name in str(error.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.pth: no such file"):
        load_torch(tmp_path / "gone.pth")
    with pytest.raises(CheckpointError, match="is a folder"):
        load_torch(tmp_path)


class Reduces:
    """Pickles to a call of `function(*arguments)`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@both_containers
@pytest.mark.parametrize("inside", [False, True], ids=["alone", "beside weights"])
@pytest.mark.parametrize("way", ["system", "eval", "exec", "getattr", "open", "import"])
def test_code_becomes_a_named_stub_and_is_not_run(tmp_path, zipped, inside, way):
    marker = tmp_path / "marker"
    python = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    function, name, arguments = {
        "system": (os.system, "system", (f"touch {marker}",)),
        "eval": (eval, "eval", (python,)),
        "exec": (exec, "exec", (python,)),
        "getattr": (getattr, "getattr", (marker, "touch")),
        "open": (os.open, "open", (str(marker), os.O_CREAT)),
        "import": (__import__, "__import__", ("antigravity",)),
    }[way]
    attack = Reduces(function, *arguments)
    file = save(tmp_path / "x.pth", {"state_dict": WEIGHTS, "extra": attack} if inside else attack, zipped)
    contents = reading.read(file)
    assert name in contents.notes[0]
    assert "left unread, nothing was run" in contents.notes[0]
    assert len(contents.notes) == (1 if way == "getattr" else 2), (
        "the message differs between an attack and a harmless object"
    )
    assert not marker.exists()
    stub = contents.value["extra"] if inside else contents.value
    assert isinstance(stub, reading.Inert)
    if inside:
        assert_weights(contents.value["state_dict"])
    if way in ("system", "eval", "exec", "open"):  # the file is armed: torch's own trusting loader runs it
        torch.load(file, weights_only=False)
        assert marker.exists()


class Unfolds(torch.nn.Module):
    """A TorchScript archive with a `__setstate__` that prints when it is loaded."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.weight * x

    @torch.jit.export
    def __getstate__(self):
        return (self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        print("code of the file was run")
        self.weight = state[0]
        self.training = state[1]


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_refused_and_not_run(tmp_path, capfd):
    torch.jit.script(Unfolds()).save(str(tmp_path / "x.pth"))
    capfd.readouterr()
    refused = False
    try:
        load_torch(tmp_path / "x.pth")
    except CheckpointError as error:
        refused = "x.pth" in str(error)
    assert "code of the file was run" not in capfd.readouterr().out
    assert refused


HARMLESS = {
    "namespace": argparse.Namespace(lr=0.1, gpus=[0, 1], nested={"a": argparse.Namespace()}),
    "numpy scalars": {"best": np.float64(71.5), "epoch": np.int64(3), "flag": np.bool_(True)},
    "numpy array": np.arange(6).reshape(2, 3),
    "defaultdict": collections.defaultdict(list, {"loss": [1.0, 2.0]}),
    "path": pathlib.Path("/data/imagenet"),
    "pure path": pathlib.PurePosixPath("a/b"),
    "ordered": collections.OrderedDict(a=1),
    "builtins": [slice(1, 2), range(3), complex(1, 2), {1, 2}, bytearray(b"x")],
}


@both_containers
@pytest.mark.parametrize("kind", HARMLESS)
def test_weights_beside_harmless_objects_are_intact(tmp_path, zipped, kind):
    file = save(tmp_path / "x.pth", {"before": HARMLESS[kind], "state_dict": WEIGHTS, "epoch": 3}, zipped)
    read = load_torch(file)
    assert_weights(read["state_dict"])
    assert read["epoch"] == 3


@both_containers
def test_weights_in_an_ordered_dict_with_parameters_and_shared_storage(tmp_path, zipped):
    base = torch.arange(10.0)
    state = collections.OrderedDict(a=torch.nn.Parameter(base[:4]), b=base[2:6], c=base.reshape(2, 5).T)
    read = load_torch(save(tmp_path / "x.pth", {"args": argparse.Namespace(a=1), "model": state}, zipped))["model"]
    for name, value in state.items():
        assert torch.equal(read[name], value)


@both_containers
def test_a_harmless_object_does_nothing(tmp_path, zipped):
    read = load_torch(save(tmp_path / "x.pth", {"args": argparse.Namespace(lr=0.1), "w": WEIGHTS}, zipped))
    assert read["args"] == reading.Inert("argparse.Namespace")
    assert not hasattr(read["args"], "lr")


# ---------------------------------------------------------------- beside the tensors, around the tensors


class Attributes(dict):
    """A subclass of dict, like EasyDict, AttributeDict and ConfigDict."""


class Settings:
    """An object with a state, like those of OmegaConf and yacs."""

    def __init__(self, **values):
        self.__dict__.update(values)


class Named(collections.namedtuple("Named", ["a", "b"])):
    """A subclass of tuple."""


def partial_of(value):
    import functools

    return functools.partial(max, value)


BESIDE = {
    "an object": (Settings(lr=0.1, deep=Settings(x=[1])), "Settings"),
    "a dictionary of a class": (Attributes(lr=0.1), "Attributes"),
    "a Namespace with a dtype": (argparse.Namespace(dtype=torch.float32, device=torch.device("cpu")), "argparse.Namespace"),
    "a partial": (partial_of(3), "functools.partial"),
    "a function": (os.path.join, "posixpath.join"),
    "a class": (Settings, "Settings"),
    "a named tuple": (Named(1, 2), "Named"),
    "an optimizer": (torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1), "torch.optim.sgd.SGD"),
    "a scheduler": (
        torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1), 1), "StepLR"
    ),
    "a module": (torch.nn.Linear(2, 2), "torch.nn.modules.linear.Linear"),
    "a generator's state": (np.random.RandomState(0), "numpy"),
    "a deque": (collections.deque([1, 2]), "collections.deque"),
    "an object as a key": ({Settings(): 1}, "Settings"),
    "an exception": (ValueError("x"), "builtins.ValueError"),
}  # fmt: skip


@both_containers
@pytest.mark.parametrize("kind", BESIDE)
def test_whatever_lies_beside_the_tensors_is_named_and_left_unread(tmp_path, zipped, kind):
    value, name = BESIDE[kind]
    contents = reading.read(save(tmp_path / "x.pth", {"hyper_parameters": value, "state_dict": WEIGHTS}, zipped))
    assert_weights(contents.value["state_dict"])
    assert name in contents.notes[0]
    assert contents.notes[0].endswith("left unread, nothing was run")
    assert len(contents.notes) == 1


def test_plain_values_need_no_note(tmp_path):
    value = {
        "w": WEIGHTS,
        "epoch": 3,
        "best": np.float64(71.5),
        "meta": collections.OrderedDict(a=[1]),
        "size": torch.Size([3]),
    }
    contents = reading.read(save(tmp_path / "x.pth", value))
    assert contents.notes == ()
    assert (contents.value["best"], contents.value["size"]) == (71.5, (3,))


@both_containers
@pytest.mark.parametrize(
    "wrap",
    [
        Attributes,
        lambda w: argparse.Namespace(state_dict=w),
        lambda w: collections.defaultdict(list, w),
        lambda w: Settings(state_dict=w),
        lambda w: Attributes(state_dict=Attributes(w)),
    ],
    ids=["a dictionary of a class", "a Namespace", "a defaultdict", "an object", "nested"],
)
def test_tensors_in_mappings_of_other_classes_are_read(tmp_path, zipped, wrap):
    read = load_torch(save(tmp_path / "x.pth", wrap(WEIGHTS), zipped))
    assert_weights(read.get("state_dict", read))


@both_containers
@pytest.mark.parametrize("key", [None, "model"])
def test_a_pickled_network_is_told_how_to_be_saved(tmp_path, zipped, key):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    file = save(tmp_path / "x.pth", {"model": model, "epoch": 1} if key else model, zipped)
    with pytest.raises(CheckpointError) as error:
        load_torch(file)
    said = (
        "torch.save(checkpoint['model'].state_dict(), 'weights.pth')"
        if key
        else "torch.save(model.state_dict(), 'weights.pth')"
    )
    assert "a pickled network (torch.nn.modules.container.Sequential)" in str(error.value)
    assert str(error.value).endswith(f"save its state_dict() instead: {said}")


def test_one_flipped_byte_is_refused_and_the_entry_named(tmp_path):
    """One damaged number: torch reads another value and reports nothing."""
    file = save(tmp_path / "last.ckpt", {"online": {"w": torch.ones(1000)}})
    data = bytearray(file.read_bytes())
    at = data.index(torch.ones(1000).numpy().tobytes()) + 403
    data[at] ^= 0x40
    file.write_bytes(data)
    assert not torch.equal(torch.load(file)["online"]["w"], torch.ones(1000))
    with pytest.raises(CheckpointError, match=r"last\.ckpt: its entry 'last/data/0' is damaged"):
        load_torch(file)


def test_versions_of_modules_are_kept(tmp_path):
    state = torch.nn.BatchNorm2d(2).state_dict()
    read = load_torch(save(tmp_path / "x.pth", {"model": state}))["model"]
    assert read._metadata == state._metadata
    assert read._metadata[""] == {"version": 2}


def test_a_torch_file_of_arrays_alone_gives_their_numbers(tmp_path):
    read = load_torch(save(tmp_path / "x.pth", {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}))
    assert torch.equal(read["w"], torch.arange(6.0).reshape(2, 3))


@both_containers
def test_every_type_of_number(tmp_path, zipped):
    names = (
        "float64 float32 float16 bfloat16 int64 int32 int16 int8 uint8 uint16 uint32 uint64 bool complex64 complex128"
    )
    state = {
        name: torch.ones(3, 2).to(getattr(torch, name)) for name in [*names.split(), "float8_e4m3fn", "float8_e5m2"]
    }
    read = load_torch(save(tmp_path / "x.pth", state, zipped))
    for name, value in state.items():
        assert read[name].dtype == value.dtype
        assert torch.equal(read[name].to(torch.complex128), value.to(torch.complex128)), name


def test_numbers_of_the_other_byte_order(tmp_path):
    import io
    import zipfile

    buffer = io.BytesIO()
    torch.save({"w": torch.arange(5.0)}, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(tmp_path / "x.pth", "w") as new:
        for member in old.infolist():
            data = old.read(member)
            if member.filename.endswith("byteorder"):
                data = b"big"
            elif "/data/" in member.filename:
                data = np.frombuffer(data, "<f4").astype(">f4").tobytes()
            new.writestr(member.filename, data)
    assert torch.equal(load_torch(tmp_path / "x.pth")["w"], torch.arange(5.0))


def test_safetensors_are_known_by_their_content(tmp_path):
    from safetensors.torch import save_file

    for names in range(1, 40):  # some of these header lengths begin with the byte of a web page or a pickle
        save_file({f"w{i}" + "x" * names: torch.ones(2) for i in range(names)}, tmp_path / "weights")
        read = reading.read(tmp_path / "weights").value
        assert len(read) == names
    (tmp_path / "weights").rename(tmp_path / "weights.bin")
    assert all(torch.equal(t, torch.ones(2)) for t in load_torch(tmp_path / "weights.bin").values())


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_tensors_that_were_pickled_without_torch_save(tmp_path, protocol):
    x = torch.arange(20, dtype=torch.float16).view(4, 5)
    tensors = {"turned": x.t(), "part": x[1:, 2], "parameter": torch.nn.Parameter(x.float()), "none": x[:0]}
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"state_dict": collections.OrderedDict(tensors)}, protocol))
    found = reading.read(tmp_path / "m.pkl")
    assert found.notes == ()
    assert all(torch.equal(found.value["state_dict"][name], tensor) for name, tensor in tensors.items())


class _Bytes:
    """An object of another type in place of a tensor's numbers."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.data,)


def _older(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def test_code_in_the_bytes_of_a_pickled_tensor_is_not_run(tmp_path):
    armed = _older({"a": torch.zeros(3), "b": _Run(tmp_path / "trap")})
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"a": _Bytes(armed)}))
    with pytest.raises(CheckpointError, match=r"m\.pkl: the bytes of a tensor's storage cannot be read"):
        reading.read(tmp_path / "m.pkl")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("cut", [40, 200, -8, -1])
def test_a_pickled_tensor_whose_bytes_are_cut_is_refused(tmp_path, cut):
    data = _older(torch.zeros(100).untyped_storage())
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"a": _Bytes(data[:cut])}))
    with pytest.raises(CheckpointError, match=r"m\.pkl: "):
        reading.read(tmp_path / "m.pkl")


class _Run:
    def __init__(self, trap: pathlib.Path) -> None:
        self.trap = trap

    def __reduce__(self):
        return os.system, (f"touch {self.trap}",)
