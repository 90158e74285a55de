"""Pickles, tensors and arrays that announce or unfold to too much: the file's size bounds time and memory."""

from __future__ import annotations

import itertools
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from tests.builders import hostile as h
from tests.builders.backbones import make_backbone
from tests.builders.hostile import refusal, tensor

_FF = b"\xff" * 8
_1M = 1_000_000


def laughs(empty, pair, levels=60):
    """Return a value that contains the previous one twice, through the memo."""
    steps = [empty + b"q\x00"] + [pair(bytes([i - 1])) + b"q" + bytes([i]) for i in range(1, levels)]
    return h.pickled(*steps)


def nested(begin, end, depth=_1M):
    return h.pickled(begin * depth + end * depth)


PICKLES = {
    "BINBYTES8 of 2^63": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
    "BINBYTES8 of 4.6 GB": b"\x80\x04\x8e" + struct.pack("<Q", 4_600_000_000) + b".",
    "BINBYTES of 4 GB": b"\x80\x04B\xff\xff\xff\xff.",
    "BYTEARRAY8 of 4.6 GB": b"\x80\x05\x96" + struct.pack("<Q", 4_600_000_000) + b".",
    "BINUNICODE8 of 2^64": b"\x80\x04\x8d" + _FF + b".",
    "BINUNICODE of 4 GB": b"\x80\x04X\xff\xff\xff\xff.",
    "BINSTRING of 4 GB": b"\x80\x02T\xff\xff\xff\xff.",
    "LONG4 of 2 GB": b"\x80\x02\x8b\xff\xff\xff\x7f.",
    "LONG4 below 0": b"\x80\x02\x8b\xff\xff\xff\xff.",
    "a number of a megabyte": b"\x80\x02\x8b" + struct.pack("<I", _1M) + b"\x7f" * _1M + b".",
    "a number of a million digits": b"\x80\x02L" + b"9" * _1M + b"L\n.",
    "a FRAME of 2^64": b"\x80\x04\x95" + _FF + b"N.",
    "FRAMEs in FRAMEs": b"\x80\x04" + (b"\x95" + struct.pack("<Q", 4)) * 100 + b"N.",
    "a memo index of 2^32": h.pickled(b"Nr\xff\xff\xff\xff"),
    "a memo index of 20 digits": h.pickled(b"Np99999999999999999999\n"),
    "a memo that is not there": h.pickled(b"h\x07"),
    "an empty stack": b"\x80\x020000.",
    "no STOP": b"\x80\x02N",
    "nothing but PROTO": b"\x80\x02",
    "a protocol of the future": b"\x80\x63N.",
    "a million lists in lists": nested(b"]", b"a", _1M)[:-2] + b".",
    "a million tuples in tuples": h.pickled(b")" + b"\x85" * _1M),
    "a million dictionaries in dictionaries": h.pickled(b"}K\x01" * _1M + b"N" + b"s" * _1M),
    "a key that is a million tuples deep": h.pickled(b"}" + b")" + b"\x85" * _1M + b"Ns"),
    "a million marks": h.pickled(b"(" * _1M + b"t" * _1M),
    "3 million empty dictionaries": h.pickled(b"(" + b"}" * 3 * _1M + b"t"),
    "6 million None": h.pickled(b"(" + b"N" * 6 * _1M + b"t"),
    "lists that laugh": laughs(b"]", lambda one: b"](h" + one + b"h" + one + b"e"),
    "tuples that laugh": laughs(b")", lambda one: b"h" + one + b"h" + one + b"\x86"),
    "dictionaries that laugh": laughs(b"}", lambda one: b"}(K\x01h" + one + b"K\x02h" + one + b"u"),
    "keys that laugh": laughs(b")", lambda one: b"}h" + one + b"Ns0h" + one + b"h" + one + b"\x86"),
    "objects that laugh": laughs(h.newobj("a.B"), lambda one: h.newobj("a.B") + b"}(K\x01h" + one + b"K\x02h" + one + b"ub"),
    "sets that laugh": laughs(b"\x8f", lambda one: b"\x8f(h" + one + b"h" + one + b"\x90"),
    "a list that holds itself": h.pickled(b"]q\x00h\x00a"),
    "a dictionary that holds itself": h.pickled(b"}q\x00K\x01h\x00s"),
    "an object that holds itself": h.pickled(h.newobj("a.B") + b"q\x00h\x00b"),
    "two that hold each other": h.pickled(b"]q\x00]q\x01h\x00ah\x01a"),
    "a mapping whose state is itself": h.pickled(h.newobj("argparse.Namespace") + b"q\x00}" + h.text("a") + b"h\x00sb"),
    "keys of one hash": h.pickled(
        b"}(" + b"".join(b"\x8a\x0a" + (i * (2**61 - 1)).to_bytes(10, "little") + b"N" for i in range(50_000)) + b"u"
    ),
    "a dictionary of a million keys": h.pickled(
        b"}(" + b"".join(b"J" + struct.pack("<i", i) + b"N" for i in range(_1M)) + b"u"
    ),
    "an unhashable key": h.pickled(b"}]Ns"),
    "a key without its value": h.pickled(b"}(Nu"),
    "items for a number": h.pickled(b"K\x01(NNu"),
    "appended to a number": h.pickled(b"K\x01Na"),
    "called: a number": h.pickled(b"K\x01)R"),
    "called with no tuple": h.pickled(h.glob("os.system") + b"K\x01R"),
    "a name of a megabyte": h.pickled(h.reduce("a." + "x" * _1M)),
    "a name that is escape codes": h.pickled(h.reduce("a.\x1b[31m\x07b")),
    "a name that is not UTF-8": b"\x80\x02c\xff\xfe\n\xff\n.",
    "names of 100,000 kinds": h.pickled(b"(" + b"".join(h.glob(f"a.b{i}") for i in range(100_000)) + b"l"),
    "a text copied without end": h.pickled(
        h.text("x" * _1M) + b"q\x000" + b"".join(
            h.glob("_codecs.encode") + b"h\x00" + h.text("latin1") + b"\x86R0" for _ in range(2000)
        ) + b"N"
    ),
    "a list copied without end": h.pickled(
        b"](" + b"N" * 100_000 + b"eq\x000" + b"".join(h.glob("builtins.set") + b"h\x00\x85R0" for _ in range(2000)) + b"N"
    ),
    "an extension": h.pickled(b"\x82\x01"),
    "an extension of 2^32": h.pickled(b"\x84\xff\xff\xff\xff"),
    "a persistent id": h.pickled(b"NQ"),
    "a buffer elsewhere": b"\x80\x05\x97\x98.",
    "a text that is not UTF-8": h.pickled(b"X\x04\x00\x00\x00\xff\xfe\xed\xa0"),
    "a string without quotes": b"\x80\x02Sabc\n.",
    "an endless line": b"\x80\x02I" + b"1" * _1M,
    "protocol 0": b"(lp0\nI1\naI01\naL5L\naF1.5\naVx\np1\naS'y'\na.",
    "two STOPs": b"\x80\x02N.N.",
}  # fmt: skip


@pytest.mark.parametrize("container", ["pickle", "zip", "legacy"])
@pytest.mark.parametrize("kind", PICKLES)
def test_pickles(tmp_path, kind, container):
    refusal(h.CONTAINERS[container](tmp_path / "m.pth", PICKLES[kind]))


_HUGE = 1 << 40
TENSORS = {
    "a storage of 4 TB": {"numel": _HUGE},
    "a storage of 2^62 numbers": {"numel": 1 << 62},
    "a shape of 4 TB": {"size": (_HUGE,)},
    "a shape whose product overflows": {"size": (1 << 32, 1 << 32), "stride": (0, 0)},
    "a shape of 64 axes": {"size": (2,) * 64, "stride": (0,) * 64},
    "stride 0": {"size": (1 << 31,), "stride": (0,)},
    "stride 0 on every axis": {"size": (1 << 15, 1 << 15), "stride": (0, 0)},
    "a stride beyond the end": {"size": (2,), "stride": (1 << 50,)},
    "an offset beyond the end": {"offset": 1 << 50},
    "a shape without strides": {"size": (1,), "stride": ()},
    "nothing, 2^60 wide": {"size": (0, 1 << 60), "stride": (1, 1)},
    "a storage that is none": {"kind": "torch.nn.Linear"},
    "a storage of another width": {"kind": "torch.DoubleStorage"},
    "a storage of quantised numbers": {"kind": "torch.QInt8Storage", "numel": 4},
    "a key that leads out": {"key": "../../../etc/passwd"},
}


@pytest.mark.parametrize("container", ["zip", "legacy"])
@pytest.mark.parametrize("kind", TENSORS)
def test_tensors_that_lie(tmp_path, kind, container):
    data = h.pickled(h.dictionary(state_dict=b"(" + h.text("conv1.weight") + tensor(**TENSORS[kind]) + b"d"))
    path = tmp_path / "m.pth"
    if container == "zip":
        h.torch_zip(path, data, [("archive/data/0", bytes(4))])
    else:
        h.legacy(path, data, ["0"], struct.pack("<q", TENSORS[kind].get("numel", 1)) + bytes(4))
    refusal(path)


@pytest.fixture(scope="module")
def state():
    return dict(make_backbone("resnet18").state)


def test_a_network_of_one_number(tmp_path):
    """All tensors of a wide ResNet-152 as views of a few numbers: 5.5 GB if they are copied."""
    shapes = {n: t.shape for n, t in make_meta("resnet152", 8).items()}
    torch.save({n: torch.zeros(()).expand(shape) for n, shape in shapes.items()}, tmp_path / "m.pth")
    assert (tmp_path / "m.pth").stat().st_size < 2 << 20
    assert "views of the same few numbers" in refusal(tmp_path / "m.pth")


def make_meta(name, width):
    from model_zoo.architecture import Architecture
    from model_zoo.resnet import Trunk

    with torch.device("meta"):
        return Trunk(Architecture(name=name, width=width)).state_dict()


@pytest.mark.parametrize(
    "kind", ["sparse", "csr", "meta", "quantised", "nested", "complex", "integer", "a list", "a number"]
)
def test_tensors_of_other_kinds(tmp_path, state, kind):
    one = state["layer1.0.conv1.weight"]
    with torch.no_grad():
        other = {
            "sparse": lambda: one.to_sparse(),
            "csr": lambda: one.flatten(1).to_sparse_csr(),
            "meta": lambda: one.to("meta"),
            "quantised": lambda: torch.quantize_per_tensor(one, 0.1, 0, torch.qint8),
            "complex": lambda: one.to(torch.complex64),
            "nested": lambda: torch.nested.nested_tensor([one, one]),
            "integer": lambda: one.to(torch.int32),
            "a list": lambda: one.tolist(),
            "a number": lambda: 3,
        }[kind]()
    torch.save({**state, "layer1.0.conv1.weight": other}, tmp_path / "m.pth")
    assert "layer1.0.conv1.weight" in refusal(tmp_path / "m.pth")


def npy(header, data=b"", version=b"\x01\x00"):
    size = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    return b"\x93NUMPY" + version + size + header + data


_PLAIN = "{'descr': '<f4', 'fortran_order': False, 'shape': (%s), }"
NPYS = {
    "more announced": npy((_PLAIN % "1000000000000,").encode(), bytes(4)),
    "less announced": npy((_PLAIN % "1,").encode(), bytes(400)),
    "a product that overflows": npy((_PLAIN % "4294967296, 4294967296").encode(), bytes(4)),
    "a shape of 9 KB": npy((_PLAIN % ("1, " * 3000)).encode(), bytes(4)),
    "a number of 9,000 digits": npy((_PLAIN % ("9" * 9000 + ",")).encode(), bytes(4)),
    "a deep header": npy(b"(" * 9000 + b")" * 9000),
    "a deep header of 60 KB": npy(b"[" * 60_000),
    "a header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
    "a header that calls": npy(b"{'descr': __import__('os').system('touch x')}"),
    "a negative shape": npy((_PLAIN % "-1,").encode(), bytes(4)),
    "objects": npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"\x80\x02N."),
    "text": npy(b"{'descr': '<U4', 'fortran_order': False, 'shape': (1,), }", bytes(16)),
    "records": npy(b"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", bytes(4)),
    "long doubles": npy(b"{'descr': '<f16', 'fortran_order': False, 'shape': (1,), }", bytes(16)),
    "no magic": b"hello",
    "nothing": b"",
    "only a magic": b"\x93NUMPY",
}  # fmt: skip


@pytest.mark.parametrize("alone", [False, True], ids=["npz", "npy"])
@pytest.mark.parametrize("kind", NPYS)
def test_arrays(tmp_path, kind, alone):
    path = tmp_path / ("m.npy" if alone else "m.npz")
    path.write_bytes(NPYS[kind])
    if not alone:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("conv1.weight.npy", NPYS[kind])
    refusal(path)


_TINY = '{"a":{"dtype":"F32","shape":[%s],"data_offsets":[%s]}}'
HEADERS = {
    "half of it": b'{"a":',
    "a list": b"[]",
    "deep": b'{"a":' + b"[" * 100_000,
    "more announced": (_TINY % (9, "0,36")).encode(),
    "a product that overflows": (_TINY % ("4294967296,4294967296", "0,4")).encode(),
    "a gap": (_TINY % (1, "2,6")).encode(),
    "an end before the begin": (_TINY % (1, "4,0")).encode(),
    "an unknown type": (_TINY % (1, "0,4")).replace("F32", "X1").encode(),
    "no shape": b'{"a":{"dtype":"F32","data_offsets":[0,4]}}',
    "not UTF-8": b'{"\xff\xfe":1}',
    "a number of 5,000 digits": b'{"a":' + b"9" * 5000 + b"}",
    "metadata that is not text": b'{"__metadata__":{"a":1}}',
    "an array of ints": b'{"a":[1,2]}',
    "surrogates": b'{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
    "the same name twice": (_TINY % (1, "0,4"))[:-1].encode() + b"," + (_TINY % (1, "0,4"))[1:].encode(),
}


@pytest.mark.parametrize("name", ["m.safetensors", "m.pth"])
@pytest.mark.parametrize("kind", HEADERS)
def test_safetensors(tmp_path, kind, name):
    header = HEADERS[kind]
    (tmp_path / name).write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    refusal(tmp_path / name)


@pytest.mark.parametrize("wrap", ["torch", "pickle"])
def test_arrays_of_a_shared_buffer(tmp_path, wrap):
    """5,000 arrays share a megabyte of numbers, and each would copy it."""
    numbers = h.reduce("numpy.dtype", "f4", b"\x89", b"\x88") + b"q\x010"
    numbers += b"B" + struct.pack("<I", _1M) + bytes(_1M) + b"q\x020"
    shape = b"J" + struct.pack("<i", _1M // 4) + b"\x85"
    one = h.glob("numpy.core.numeric._frombuffer") + b"(h\x02h\x01" + shape + h.text("C") + b"tR"
    data = h.pickled(numbers, b"(", *itertools.chain(*((h.text(f"a{i}"), one) for i in range(5000))), b"d")
    path = h.CONTAINERS["zip" if wrap == "torch" else "pickle"](tmp_path / "m.pth", data)
    assert "views of the same few numbers" in refusal(path)


def test_what_ordinary_pickles_hold_is_read_as_python_reads_it(tmp_path):
    """For every protocol, plain values equal those of Python's unpickler."""
    from model_zoo import reading

    values = [
        None,
        True,
        0,
        -1,
        255,
        256,
        65535,
        65536,
        2**31,
        -(2**31),
        2**63,
        -(2**70),
        1.5,
        float("inf"),
        "",
        "é\n\\",
        "x" * 300,
        b"",
        b"\x00\xff" * 200,
        (),
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 3, 4),
        [],
        [1] * 1500,
        {},
        {"a": {"b": [1, (2,)]}},
        set(),
        {1, 2},
        frozenset({3}),
        {(1, "a"): 2, 5: 6, None: 7, 1.5: 8},
    ]
    values += [values[-3], {"shared": values[-5]}]
    for protocol in range(6):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(values, protocol=protocol))
        assert reading.read(path).value == values, protocol
    assert np.isnan(_read(tmp_path, float("nan")))


def _read(folder, value):
    from model_zoo import reading

    (folder / "x.pkl").write_bytes(pickle.dumps(value))
    return reading.read(folder / "x.pkl").value
