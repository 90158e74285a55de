"""Checkpoints that try to run code, in every container, through every pickle opcode that calls or changes something."""

from __future__ import annotations

import os

import pytest
import torch

from backbench.errors import CheckpointError
from model_zoo.load import load
from tests.builders import hostile as h

_TOUCH = "touch {trap}"
_PYTHON = "open({trap!r}, 'w')"
# Function -> its arguments. `{trap}` is a file that must not exist afterwards.
GADGETS = {
    "os.system": (_TOUCH,),
    "posix.system": (_TOUCH,),
    "nt.system": (_TOUCH,),
    "os.popen": (_TOUCH,),
    "os.mkdir": ("{trap}",),
    "os.remove": ("{victim}",),
    "os.chmod": ("{victim}", b"M\xff\x01"),
    "os.execvp": ("touch", b"(" + h.text("touch") + h.text("x") + b"l"),
    "os.posix_spawn": ("/bin/touch", b"]", b"}"),
    "os.kill": (b"K\x01", b"K\x09"),
    "os._exit": (b"K\x07",),
    "sys.exit": (b"K\x07",),
    "subprocess.Popen": (b"(" + h.text("touch") + h.text("x") + b"l",),
    "subprocess.check_output": (_TOUCH,),
    "pty.spawn": ("/bin/true",),
    "shutil.rmtree": ("{folder}",),
    "shutil.copy": ("{victim}", "{trap}"),
    "pathlib.Path.touch": ("{trap}",),
    "builtins.eval": (_PYTHON,),
    "builtins.exec": (_PYTHON,),
    "builtins.compile": (_PYTHON, "x", "exec"),
    "builtins.open": ("{trap}", "w"),
    "builtins.__import__": ("antigravity",),
    "builtins.getattr": (h.glob("os.path"), "__globals__"),
    "builtins.setattr": (h.glob("backbench.files.atomic.atomic_save"), "__doc__", "changed"),
    "builtins.globals": (),
    "builtins.type": ("X", b")", b"}"),
    "builtins.map": (h.glob("os.system"), b"(" + h.text("touch x") + b"l"),
    "builtins.breakpoint": (),
    "builtins.input": ("?",),
    "__builtin__.apply": (h.glob("os.system"), b"(" + h.text("touch x") + b"t"),
    "__builtin__.execfile": ("{trap}",),
    "importlib.import_module": ("antigravity",),
    "runpy.run_path": ("{trap}",),
    "runpy._run_code": (_PYTHON, b"}"),
    "code.interact": (),
    "pdb.run": (_PYTHON,),
    "cProfile.run": (_PYTHON,),
    "timeit.timeit": (_PYTHON,),
    "functools.partial": (h.glob("os.system"), _TOUCH),
    "functools.reduce": (h.glob("builtins.getattr"), b"(" + h.glob("os.path") + h.text("__globals__") + b"l"),
    "operator.attrgetter": ("__globals__",),
    "operator.methodcaller": ("system", _TOUCH),
    "types.FunctionType": (h.glob("os.path"), b"}"),
    "types.CodeType": (b"K\x00", b"K\x00", b"K\x00"),
    "marshal.loads": (b"B\x01\x00\x00\x00N",),
    "pickle.loads": (b"B\x02\x00\x00\x00N.",),
    "pickle._loads": (b"B\x02\x00\x00\x00N.",),
    "_pickle.loads": (b"B\x02\x00\x00\x00N.",),
    "copyreg._reconstructor": (h.glob("os.system"), h.glob("builtins.object"), b"N"),
    "copyreg.__newobj__": (h.glob("os.system"), _TOUCH),
    "copyreg.__newobj_ex__": (h.glob("os.system"), b")", b"}"),
    "copyreg.add_extension": ("os", "system", b"K\x01"),
    "codecs.open": ("{trap}", "w"),
    "codecs.decode": ("abc", "rot13"),
    "_codecs.encode": ("abc", "rot13"),
    "io.open": ("{trap}", "w"),
    "io.FileIO": ("{trap}", "w"),
    "logging.FileHandler": ("{trap}",),
    "tempfile.mkstemp": (),
    "tarfile.open": ("{trap}", "w"),
    "zipfile.ZipFile": ("{trap}", "w"),
    "sqlite3.connect": ("{trap}",),
    "dbm.open": ("{trap}", "c"),
    "socket.create_connection": (b"(" + h.text("127.0.0.1") + b"K\x01t",),
    "urllib.request.urlopen": ("file://{victim}",),
    "webbrowser.open": ("http://127.0.0.1:1/",),
    "ctypes.CDLL": ("libc.so.6",),
    "ctypes.string_at": (b"K\x00",),
    "multiprocessing.Process": (),
    "threading.Thread": (),
    "signal.alarm": (b"K\x01",),
    "atexit.register": (h.glob("os.system"), _TOUCH),
    "gc.set_threshold": (b"K\x00",),
    "sys.setrecursionlimit": (b"K\x0a",),
    "warnings.simplefilter": ("error",),
    "numpy.load": ("{trap}",),
    "numpy.fromfile": ("{victim}",),
    "numpy.memmap": ("{trap}",),
    "numpy.savetxt": ("{trap}", b"]"),
    "numpy.testing._private.utils.runstring": (_PYTHON, b"}"),
    "numpy.f2py.diagnose.run_command": (_TOUCH,),
    "numpy.core.multiarray._reconstruct": (h.glob("os.system"), b")", _TOUCH),
    "torch.load": ("{trap}",),
    "torch.save": (b"N", "{trap}"),
    "torch.hub.load": ("x/y", "z"),
    "torch.hub.download_url_to_file": ("file://{victim}", "{trap}"),
    "torch.jit.load": ("{trap}",),
    "torch.ops.load_library": ("{trap}",),
    "torch.classes.load_library": ("{trap}",),
    "torch.storage._load_from_bytes": (b"B\x04\x00\x00\x00\x80\x02N.",),
    "torch.serialization.load": ("{trap}",),
    "torch.serialization.add_safe_globals": (b"(" + h.glob("os.system") + b"l",),
    "torch.utils.collect_env.run": (_TOUCH,),
    "torch.utils.data.DataLoader": (b"]",),
    "torch.utils.cpp_extension.load": ("x", b"]"),
    "torch._dynamo.guards.GuardBuilder.get": (_PYTHON,),
    "torch._inductor.codecache.compile_file": ("{victim}", "{trap}"),
    "torch.distributed.rpc.rpc_sync": ("x", h.glob("os.system")),
    "torch.multiprocessing.spawn": (h.glob("os.system"),),
    "torch.package.PackageImporter": ("{trap}",),
    "torch.fx.graph_module.reduce_graph_module": (b"}", _PYTHON),
    "torch._utils._rebuild_tensor_v2": (h.reduce("os.system", "touch x"), b"K\x00", b")", b")"),
    "torch._utils._rebuild_parameter": (h.reduce("os.system", "touch x"), b"\x89", b"}"),
    "torch._tensor._rebuild_from_type_v2": (h.glob("os.system"), h.glob("torch.Tensor"), b"(" + h.text("touch x") + b"t", b"N"),
    "model_zoo.load.load": ("random:resnet50",),
    "backbench.files.atomic.atomic_write_text": ("{trap}", "x"),
    "model_zoo.reading.read": ("{trap}",),
    "benchmarks.run_all.main": (),
    "setuptools.setup": (),
    "pip.main": (b"(" + h.text("download") + b"l",),
    "idlelib.pyshell.main": (),
    "lib2to3.pgen2.grammar.Grammar.loads": (b"B\x02\x00\x00\x00N.",),
    "trace.Trace.run": (_PYTHON,),
    "unittest.mock._importer": ("antigravity",),
    "pydoc.locate": ("antigravity",),
    "pkgutil.resolve_name": ("os:system",),
    "xmlrpc.client.ServerProxy": ("http://127.0.0.1:1/",),
    "yaml.unsafe_load": ("!!python/object/apply:os.system [touch x]",),
    "joblib.load": ("{trap}",),
    "dill.loads": (b"B\x02\x00\x00\x00N.",),
    "cloudpickle.loads": (b"B\x02\x00\x00\x00N.",),
    "pandas.read_pickle": ("{trap}",),
    "hydra.utils.instantiate": (b"}",),
    "mmengine.config.Config.fromfile": ("{trap}",),
}  # fmt: skip
WAYS = [h.reduce, h.stack_reduce, h.inst, h.obj, h.newobj, h.newobj_ex]


@pytest.fixture
def scene(tmp_path):
    victim = tmp_path / "outside" / "victim"
    victim.parent.mkdir()
    victim.write_text("mine")
    victim.chmod(0o600)
    return {"trap": str(tmp_path / "outside" / "was-run"), "victim": str(victim), "folder": str(victim.parent)}


def outcome(path):
    """Return a backbone's notes or the error; anything else, or a trace of executed code, fails the test."""
    with h.bounded(), h.watched(path.parent):
        try:
            return "; ".join(load(path).notes)
        except CheckpointError as error:
            assert str(error).startswith(f"{path}: ")
            assert "\n" not in str(error)
            return str(error)


@pytest.fixture(autouse=True, scope="module")
def warm(tmp_path_factory):
    """Import everything that reading a file needs before the test watches for changes."""
    path = tmp_path_factory.mktemp("warm") / "m.pth"
    h.torch_zip(path, h.pickled(b"}"))
    with pytest.raises(CheckpointError):
        load(path)


def test_the_gadgets_are_armed(tmp_path):
    """Python's unpickler runs them, so these files are real attacks."""
    import pickle

    for way in (h.reduce, h.stack_reduce, h.inst, h.obj):
        trap = tmp_path / way.__name__
        pickle.loads(h.pickled(way("os.mkdir", str(trap)), protocol=4))
        assert trap.exists()


@pytest.mark.parametrize("container", h.CONTAINERS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_every_way_to_call(tmp_path, scene, container, way):
    attack = way("os.mkdir", scene["trap"])
    data = h.pickled(h.dictionary(state_dict=b"}", extra=attack), protocol=4)
    said = outcome(h.CONTAINERS[container](tmp_path / "m.pth", data))
    assert not os.path.lexists(scene["trap"])
    if container != "npz":
        assert "os.mkdir" in said


@pytest.mark.parametrize("gadget", GADGETS)
def test_every_gadget(tmp_path, scene, gadget):
    words = tuple(w.format(**scene) if isinstance(w, str) else w for w in GADGETS[gadget])
    inner = h.reduce(gadget, *words)
    places = (
        inner,
        h.dictionary(state_dict=inner),
        b"(" + inner + b"N" + inner + b"d",
        inner + b"Q",
        b"]" + inner + b"a",
    )
    for number, (name, place) in enumerate((c, p) for c in h.CONTAINERS for p in places):
        path = h.CONTAINERS[name](tmp_path / f"m{number}.pth", h.pickled(place, protocol=4))
        outcome(path)
        path.unlink()
    assert not os.path.lexists(scene["trap"])


BUILDS = {
    "a function's defaults": ("torch._utils._rebuild_tensor_v2", h.dictionary(__defaults__=b"N", evil=b"K\x01")),
    "slots of a function": ("torch._utils._rebuild_parameter", b"N" + h.dictionary(__code__=b"N") + b"\x86"),
    "a class": ("collections.OrderedDict", h.dictionary(evil=b"K\x01")),
    "torch.Size": ("torch.Size", h.dictionary(evil=b"K\x01")),
    "a storage class": ("torch.FloatStorage", h.dictionary(dtype=b"N")),
    "our reader": ("model_zoo.reading.read", h.dictionary(__defaults__=b"N", __doc__=b"N")),
    "our error": ("backbench.errors.CheckpointError", h.dictionary(kind=h.text("evil"))),
    "our operations": ("model_zoo.reading.pickles.operations.OPERATIONS", h.dictionary(evil=b"K\x01")),
    "numpy.dtype": ("numpy.dtype", h.dictionary(evil=b"K\x01")),
    "numpy.ndarray": ("numpy.ndarray", b"(K\x01)NNNt"),
    "builtins.dict": ("builtins.dict", h.dictionary(evil=b"K\x01")),
    "the module os": ("sys.modules", h.dictionary(os=b"N")),
}


@pytest.mark.parametrize("container", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("kind", BUILDS)
def test_a_state_changes_nothing_of_ours(tmp_path, scene, container, kind):
    import collections
    import sys

    from backbench import errors
    from model_zoo import reading
    from model_zoo.reading.pickles import operations

    name, state = BUILDS[kind]
    watched = [
        torch._utils._rebuild_tensor_v2,
        torch._utils._rebuild_parameter,
        reading.read,
        *operations.OPERATIONS.values(),
    ]
    before = (
        [(f.__defaults__, dict(f.__dict__), f.__code__) for f in watched],
        len(operations.OPERATIONS),
        len(sys.modules),
    )
    outcome(h.CONTAINERS[container](tmp_path / "m.pth", h.pickled(h.build(name, state))))
    after = (
        [(f.__defaults__, dict(f.__dict__), f.__code__) for f in watched],
        len(operations.OPERATIONS),
        len(sys.modules),
    )
    assert after == before
    assert errors.CheckpointError.kind == "checkpoint error"
    for owner in (collections.OrderedDict, torch.Size, torch.FloatStorage):
        assert not hasattr(owner, "evil")
