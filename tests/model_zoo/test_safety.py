"""Files that attack their reader are refused with a sentence, and none of their code runs."""

import builtins
import collections
import io
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from backbones import initial

from backbench.errors import CheckpointError
from model_zoo import reading
from model_zoo.architecture import Architecture
from model_zoo.load import load


class Call:
    """An object that pickles as a call of `function`."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.fixture(scope="module")
def state():
    return initial(Architecture(name="resnet18", width=0.25))


@pytest.fixture
def trap(tmp_path):
    return tmp_path / "was-run"


def refusal(path):
    with pytest.raises(CheckpointError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def exploits(trap):
    return {
        "os.system": Call(os.system, f"touch {trap}"),
        "builtins.eval": Call(eval, f"open({str(trap)!r}, 'w')"),
        "builtins.exec": Call(exec, f"open({str(trap)!r}, 'w')"),
        "builtins.getattr": Call(builtins.getattr, os.path.join, "__globals__"),
        "torch.load": Call(torch.load, str(trap)),
        "torch.storage._load_from_bytes": Call(torch.storage._load_from_bytes, b"\x80\x02N."),
        "numpy.load": Call(np.load, str(trap)),
    }


NAMES = sorted(exploits("x"))


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle", "pickle in an archive"])
@pytest.mark.parametrize("name", NAMES)
def test_code_in_every_container(tmp_path, trap, state, name, container):
    obj, path = (
        {"state_dict": {"conv1.weight": state["conv1.weight"]}, "extra": exploits(trap)[name]},
        tmp_path / "m.pth",
    )
    if container in ("zip", "legacy"):
        torch.save(obj, path, _use_new_zipfile_serialization=container == "zip")
    else:
        data = pickle.dumps({"blobs": {}, "extra": exploits(trap)[name]})
        path.write_bytes(data)
        if container != "pickle":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("inner/model.pkl", data)
    text = refusal(path)
    assert "left unread, nothing was run" in text
    assert name.rpartition(".")[2] in text, "the unread object is named"
    assert not trap.exists()


def pickled_with_id(identity):
    """Return a pickle of one value with the persistent id `identity`, which may contain anything."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return identity if isinstance(value, collections.UserDict) else None

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"state_dict": collections.UserDict()})
    return buffer.getvalue()


def torch_zip(path, data, extra=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
        for name, content in extra:
            archive.writestr(name, content)


@pytest.mark.parametrize("place", ["id", "in the id", "in an id in the id"])
def test_persistent_ids_that_hold_code(tmp_path, trap, place):
    code = Call(os.system, f"touch {trap}")
    identity = {"id": code, "in the id": ("storage", code, "0", "cpu", 1),
                "in an id in the id": ("storage", ("storage", [code], "0"), "0", "cpu", 1)}[place]  # fmt: skip
    torch_zip(tmp_path / "m.pth", pickled_with_id(identity))
    assert "system" in refusal(tmp_path / "m.pth")
    assert not trap.exists()


@pytest.mark.parametrize("identity", [3, "storage", ("module", "x", "y"), ("storage",), ("storage", 1, 2, 3, 4)])
def test_persistent_ids_that_are_none(tmp_path, identity):
    torch_zip(tmp_path / "m.pth", pickled_with_id(identity))
    refusal(tmp_path / "m.pth")


def test_a_bomb_in_torchs_container(tmp_path):
    torch_zip(tmp_path / "m.pth", pickle.dumps({}, protocol=2), [("archive/data/0", bytes(20 << 20))])
    assert (tmp_path / "m.pth").stat().st_size < 1 << 20
    assert "refused, weights do not compress so much" in refusal(tmp_path / "m.pth")


def spoil(path, offset, new):
    """Write `new` into every entry of a zip archive's index, which torch's reader ignores."""
    data, at = bytearray(path.read_bytes()), 0
    while (at := data.find(b"PK\x01\x02", at)) >= 0:
        where = at + (46 + struct.unpack_from("<H", data, at + 28)[0] if offset == "extra" else offset)
        data[where : where + len(new)] = new
        at += 4
    path.write_bytes(data)


@pytest.fixture
def script(tmp_path):
    """Write a TorchScript program in an archive that Python's zipfile reads, one extra field per entry."""
    torch.jit.trace(torch.nn.ReLU(), torch.zeros(1)).save(tmp_path / "plain.pt")
    path = tmp_path / "m.pth"
    with zipfile.ZipFile(tmp_path / "plain.pt") as old, zipfile.ZipFile(path, "w") as new:
        for member in old.infolist():
            entry = zipfile.ZipInfo(member.filename)
            entry.extra = struct.pack("<HH", 0x6666, 0)
            new.writestr(entry, old.read(member))
    return path


@pytest.mark.parametrize(
    ("offset", "new"), [("extra", struct.pack("<HH", 1, 99)), (6, struct.pack("<H", 99)), (46, b"\xff\xff")]
)
def test_a_program_in_an_archive_that_only_torch_can_read(script, monkeypatch, offset, new):
    """Unreadable archives are refused: a damaged extra field, a future zip version, a name that is not text."""
    jit = []
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: jit.append(1))
    assert "is a TorchScript program" in refusal(script)
    if offset == 46:
        spoil(script, 8, struct.pack("<H", 0x800))  # names are UTF-8
    spoil(script, offset, new)
    assert "begins as a zip archive whose index cannot be read" in refusal(script)
    with pytest.raises(CheckpointError, match="begins as a zip archive"):
        reading.load_torch(script)
    assert jit == []


def test_a_bomb_in_an_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.pth", bytes(20 << 20))
    assert "refused, weights do not compress so much" in refusal(tmp_path / "m.zip")


def test_an_archive_that_lies_about_sizes(tmp_path):
    """The announced size is small; the reader never reads more."""
    path = tmp_path / "m.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.pth", bytes(10 << 20))
    data = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        where = data.index(mark) + at
        data[where : where + 4] = struct.pack("<I", 1000)
    path.write_bytes(data)
    assert "archive" in refusal(path)


@pytest.mark.parametrize("name", ["../evil.pth", "a/../../evil.pth", "/tmp/evil.pth", "C:/evil.pth", "..\\evil.pth"])
def test_names_that_lead_out_of_the_folder(tmp_path, name):
    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr(name, b"x")
    assert "leads out of its folder" in refusal(tmp_path / "m.zip")


def test_an_archive_of_one_checkpoint_is_read(tmp_path, state):
    """OBoW's archives are published like this, with a folder inside."""
    torch.save({"network": {**state, "fc.weight": torch.zeros(8, 128)}}, tmp_path / "inner.pth.tar")
    with zipfile.ZipFile(tmp_path / "obow.zip", "w") as archive:
        archive.writestr("ImageNetFull/README.txt", "words")
        archive.write(tmp_path / "inner.pth.tar", "ImageNetFull/tochvision_resnet50_student.pth.tar")
    backbone = load(tmp_path / "obow.zip")
    assert (backbone.format, backbone.name) == ("obow", "obow")
    assert torch.equal(backbone.state["conv1.weight"], state["conv1.weight"])
    with zipfile.ZipFile(tmp_path / "obow.zip", "a") as archive:
        archive.writestr("second.pth", b"x")
    assert "an archive with 2 checkpoints" in refusal(tmp_path / "obow.zip")


def test_oversized_headers_of_safetensors(tmp_path):
    path = tmp_path / "m.safetensors"
    for size in (1 << 62, (1 << 64) - 1, 200 << 20):
        path.write_bytes(struct.pack("<Q", size) + b'{"a":1}')
        assert "not a readable safetensors file" in refusal(path)
    header = b'{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0\0\0")
    assert "not a readable safetensors file" in refusal(path)


def test_arrays_that_announce_more_than_they_hold(tmp_path):
    class Huge:
        def __reduce__(self):
            state = (1, (1 << 40,), np.dtype("<f4"), False, b"\0\0\0\0")
            return np.zeros(1).__reduce__()[0], (np.ndarray, (0,), b"b"), state

    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": {"stem.conv1.weight": Huge()}}, protocol=2))
    assert "not a readable pickle" in refusal(tmp_path / "m.pkl")


def test_a_pickle_that_nests_without_end(tmp_path):
    (tmp_path / "m.pkl").write_bytes(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b".")
    refusal(tmp_path / "m.pkl")


def test_haikus_mappings_and_states_are_read_without_haiku(tmp_path, state):
    """The file has the names that dm-haiku and byol/byol_experiment.py pickle; none is imported."""
    from model_zoo import formats

    example = formats.modules()["haiku"].example(state, Architecture(name="resnet18", width=0.25))["experiment_state"]
    arrays = {k: {m: {n: np.asarray(t) for n, t in v.items()} for m, v in part.items()} for k, part in example.items()}

    class Named:
        def __init__(self, name, *arguments):
            self.name, self.arguments = name, arguments

    class Pickler(pickle._Pickler):
        def save(self, value, *rest, **more):
            if not isinstance(value, Named):
                return super().save(value, *rest, **more)
            module, _, name = value.name.rpartition(".")
            self.write(pickle.GLOBAL + f"{module}\n{name}\n".encode())
            super().save(value.arguments)
            self.write(pickle.NEWOBJ if name.startswith("_") else pickle.REDUCE)

    flat = "haiku._src.data_structures.FlatMapping"
    params, averages = (Named(flat, arrays[k]) for k in ("online_params", "online_state"))
    lars = Named("byol.utils.optimizers.LarsState", 1)
    inner = Named("byol.byol_experiment._ByolExperimentState", params, params, averages, averages, lars)
    with (tmp_path / "byol.pkl").open("wb") as file:
        Pickler(file, protocol=2).dump({"experiment_state": inner, "step": 3, "rng": np.zeros(2, np.uint32)})
    backbone = load(tmp_path / "byol.pkl")
    assert backbone.format == "haiku"
    assert all(torch.equal(backbone.state[k], state[k]) for k in state if not k.endswith("num_batches_tracked"))
