"""The doctor checks an engine by using it, and gives advice if it does not work."""

from __future__ import annotations

import builtins
import importlib.util
import json
import sys
from types import ModuleType, SimpleNamespace

import pytest

from transfer.detection import __main__ as cli
from transfer.detection import doctor, engines
from transfer.segmentation import engines as segmentation_engines


def an_engine(**fields: object) -> SimpleNamespace:
    """A working engine, with `fields` replaced."""
    works = {
        "missing": lambda: None,
        "prepare": lambda: None,
        "version": lambda: "engine 1.0",
        "compiled": lambda: False,
        "try_operators": lambda: None,
    }
    return SimpleNamespace(**{**works, **fields})


def refuse(sentence: str):
    def call() -> None:
        raise ImportError(sentence)

    return call


@pytest.fixture
def only(monkeypatch):
    """Replace the real engines with these."""

    def of(**there: SimpleNamespace) -> None:
        monkeypatch.setattr(engines, "names", lambda: sorted(there))
        monkeypatch.setattr(engines, "get", there.__getitem__)
        monkeypatch.setattr(segmentation_engines, "names", lambda: [])

    return of


def test_usable_engines_exit_with_zero(only, capsys):
    only(one=an_engine(), two=an_engine(compiled=lambda: True))
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert "one: usable; engine 1.0\n  operators: served by torchvision" in said
    assert "two: usable; engine 1.0\n  operators: compiled" in said


@pytest.mark.parametrize(
    ("broken", "advice"),
    [
        (an_engine(missing=lambda: "it is not installed: do this"), "it is not installed: do this"),
        (an_engine(prepare=refuse("no module\n called x")), "ImportError: no module called x; install keeps"),
        (
            an_engine(try_operators=refuse("nms")),
            "ImportError: nms; install keeps what is installed, so first pip uninstall",
        ),
    ],
    ids=["absent", "does not import", "does not work"],
)
def test_an_unusable_engine_is_said_with_advice(only, capsys, broken, advice):
    only(good=an_engine(), bad=broken)
    assert cli.main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["engines"]["good"] == {"usable": True, "version": "engine 1.0", "compiled": False, "advice": ""}
    assert not found["engines"]["bad"]["usable"]
    assert found["engines"]["bad"]["advice"].startswith(advice)
    assert cli.main(["doctor"]) == 1
    assert "bad: NOT usable" in capsys.readouterr().out


@pytest.mark.slow
def test_every_engine_is_examined():
    found = doctor.examine()["engines"]
    rooms = {name: room for room in (engines, segmentation_engines) for name in room.names()}
    assert set(found) == set(rooms) >= {"detectron2", "mmdet", "mmseg"}
    for name, engine in found.items():
        lacking = rooms[name].get(name).missing()
        if lacking is not None:
            assert engine == {"usable": False, "version": "not installed", "compiled": False, "advice": lacking}
        else:
            assert engine["usable"], engine["advice"]


@pytest.mark.parametrize(
    ("room", "name", "module"),
    [(engines, "detectron2", "fvcore"), (engines, "mmdet", "terminaltables"), (segmentation_engines, "mmseg", "ftfy")],
    ids=["detectron2", "mmdet", "mmseg"],
)
def test_an_engine_without_what_it_needs_is_not_there(monkeypatch, room, name, module):
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == module else there(asked))
    said = room.get(name).missing()
    assert module in said and said.endswith("not installed: python -m transfer.detection install")


def packages(monkeypatch, **versions: str) -> None:
    there = [SimpleNamespace(metadata={"Name": name.replace("_", "-")}, version=v) for name, v in versions.items()]
    monkeypatch.setattr("importlib.metadata.distributions", lambda: there)


def test_one_opencv_that_imports_is_healthy(monkeypatch):
    packages(monkeypatch, opencv_python_headless="4.11", numpy="2")
    assert doctor._cv2() == {"healthy": True, "version": "opencv-python-headless 4.11", "advice": ""}


def test_two_opencvs_in_one_folder_are_named(monkeypatch):
    packages(monkeypatch, opencv_python_headless="4.11", opencv_python="4.10")
    found = doctor._cv2()
    assert found["version"] == "opencv-python 4.10, opencv-python-headless 4.11"
    assert "share the folder cv2" in found["advice"] and "pip uninstall" in found["advice"]


def test_an_opencv_that_does_not_import_is_said(monkeypatch, only, capsys):
    packages(monkeypatch, opencv_python="4.10")
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    real = builtins.__import__

    def without(name: str, *args: object, **fields: object) -> object:
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")
        return real(name, *args, **fields)

    monkeypatch.setattr(builtins, "__import__", without)
    only(one=an_engine())
    assert cli.main(["doctor"]) == 1, "MMDetection cannot be imported either"
    said = capsys.readouterr().out
    assert "cv2: does NOT import; opencv-python 4.10" in said
    assert "libGL.so.1: cannot open shared object file; pip install --force-reinstall opencv-python-headless" in said
    assert "one: NOT usable" in said and "see cv2 below" in said, "every engine has its line"


def test_an_empty_folder_in_opencvs_place_is_said(monkeypatch, only, capsys):
    packages(monkeypatch)
    monkeypatch.setitem(sys.modules, "cv2", ModuleType("cv2"))
    only(one=an_engine())
    assert cli.main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["cv2"]["healthy"] and "AttributeError" in found["cv2"]["advice"]


def test_what_is_installed_is_said(only, capsys):
    import torch
    import torchvision

    only(one=an_engine())
    cli.main(["doctor", "--json"])
    versions = json.loads(capsys.readouterr().out)["versions"]
    assert versions["torch"] == torch.__version__ and versions["torchvision"] == torchvision.__version__
