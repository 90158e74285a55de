"""Install without a compiler: the wheel is valid, wrong bytes are refused, installed packages are kept."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import io
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from backbench.errors import BackbenchError
from transfer.detection import install


@pytest.fixture
def source(tmp_path) -> Path:
    """An archive like the published one: one folder with the package and other files."""
    files = {
        "setup.py": b"raise SystemExit('never run')\n",
        "detectron2/__init__.py": b"__version__ = '0.6'\n",
        "detectron2/layers/__init__.py": b"from detectron2 import _C\n\n\ndef op():\n    return _C.nms_rotated\n",
        "detectron2/model_zoo/configs/base.yaml": b"VERSION: 2\n",
        "projects/other/__init__.py": b"",
    }
    path = tmp_path / "source.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package-0.6/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_the_wheel_holds_the_package_and_a_true_record(source, tmp_path):
    wheel = install.make_wheel(source, tmp_path)
    assert wheel.name == "detectron2-0.6+pure-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    info = "detectron2-0.6+pure.dist-info"
    assert set(contents) == {
        *("detectron2/__init__.py", "detectron2/_C.py", "detectron2/layers/__init__.py"),
        *("detectron2/model_zoo/configs/base.yaml", f"{info}/METADATA", f"{info}/WHEEL", f"{info}/RECORD"),
    }
    rows = [row.rsplit(",", 2) for row in contents[f"{info}/RECORD"].decode().splitlines()]
    assert {name for name, _, _ in rows} == set(contents)
    for name, digest, size in rows:
        if name.endswith("RECORD"):
            assert (digest, size) == ("", "")
            continue
        assert int(size) == len(contents[name])
        code = digest.removeprefix("sha256=").replace("-", "+").replace("_", "/") + "="
        assert code == base64.b64encode(hashlib.sha256(contents[name]).digest()).decode()


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this environment has no pip")
def test_pip_installs_the_wheel(source, tmp_path):
    wheel, target = install.make_wheel(source, tmp_path), tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--disable-pip-version-check", "--target", str(target), str(wheel)], check=True)
    code = (
        "import detectron2, detectron2.layers as layers; print(detectron2.__version__, detectron2.__file__)\n"
        "try:\n    layers.op()\nexcept ImportError as error:\n    print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(target)}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    first, second = found.stdout.splitlines()
    assert first == f"0.6 {target / 'detectron2' / '__init__.py'}"
    assert second == "detectron2._C.nms_rotated: this build of Detectron2 has no compiled operators"


class Index:
    """Replaces the package index."""

    def __init__(self, data: bytes, version: str = "0.6") -> None:
        self.data, self.version = data, version

    def __call__(self) -> Index:
        return self

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_error: object) -> None: ...

    def get_project_page(self, project: str) -> object:
        kinds = {"sdist": "package-0.6.tar.gz", "wheel": "package.whl"}
        package = type("Package", (), {"version": self.version})
        packages = []
        for kind, filename in kinds.items():
            packages.append(package())
            packages[-1].package_type, packages[-1].filename = kind, filename
        return type("Page", (), {"packages": packages})

    def download_package(self, package: object, path: Path) -> None:
        path.write_bytes(self.data)


@pytest.fixture
def index(monkeypatch):
    pypi_simple = pytest.importorskip("pypi_simple")
    return lambda found: monkeypatch.setattr(pypi_simple, "PyPISimple", found)


def test_other_bytes_than_the_published_ones_are_refused(index, tmp_path):
    index(Index(b"something else"))
    digest = hashlib.sha256(b"something else").hexdigest()
    with pytest.raises(
        BackbenchError, match=rf"package-0\.6\.tar\.gz: sha256 {digest}, expected 5d2e9e51.*not installed"
    ):
        install.fetch_source(tmp_path)


def test_the_published_bytes_are_taken(index, monkeypatch, tmp_path):
    index(Index(b"the source"))
    monkeypatch.setattr(install, "SOURCE", ("project", "0.6", hashlib.sha256(b"the source").hexdigest()))
    assert install.fetch_source(tmp_path).read_bytes() == b"the source"


def test_an_index_without_it_is_a_sentence(index, tmp_path):
    index(Index(b"", version="0.7"))
    with pytest.raises(BackbenchError, match=r"cannot fetch pb1-detectron2 0\.6: .*install detectron2 yourself"):
        install.fetch_source(tmp_path)


@pytest.fixture
def environment(monkeypatch):
    """An environment with these modules. Records pip's arguments and the number of source downloads."""
    asked: list[str] = []

    def of(*there: str) -> list[str]:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if name in there else None)
        monkeypatch.setattr(importlib.metadata, "requires", lambda _name: [])
        monkeypatch.setattr(install, "_pip", lambda *requirements: asked.extend(requirements))
        monkeypatch.setattr(install, "fetch_source", lambda folder: folder / "source")
        monkeypatch.setattr(install, "make_wheel", lambda source, folder: Path("made.whl"))
        return asked

    return of


def test_what_is_there_is_kept(environment, capsys):
    asked = environment("detectron2", "mmengine", "mmcv", "mmdet", "mmseg")
    install.install()
    assert asked == []
    assert "detectron2: keeping the installed one" in capsys.readouterr().err


def test_what_is_missing_is_installed(environment):
    asked = environment("mmengine", "mmcv")
    install.install()
    assert asked == ["--no-deps", "made.whl", "--no-deps", "mmdet==3.3.0", "mmsegmentation==1.2.2"]


def test_what_the_engines_need_comes_first_and_with_its_own_needs(environment, monkeypatch):
    asked = environment("detectron2", "mmengine", "mmcv")
    stated = ["numpy>=1", 'absent-one>=2.0; extra == "detection"', "pytest>=1; extra == 'detection'",
              'absent-two; extra == "speed"']  # fmt: skip
    monkeypatch.setattr(importlib.metadata, "requires", lambda _name: stated)
    install.install()
    assert asked == ["absent-one>=2.0", "--no-deps", "mmdet==3.3.0", "mmsegmentation==1.2.2"]


def test_outside_an_installed_package_nothing_is_known_to_be_missing(monkeypatch):
    def unknown(_name: str) -> None:
        raise importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(importlib.metadata, "requires", unknown)
    assert install.missing_requirements() == []


def test_without_the_means_to_fetch_it_is_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pypi_simple", None)
    with pytest.raises(BackbenchError, match=r"cannot fetch pb1-detectron2 0\.6: .*pypi_simple"):
        install.fetch_source(tmp_path)


def test_a_compiled_mmcv_is_not_overlaid(environment):
    asked = environment("detectron2", "mmcv")
    install.install()
    assert not [requirement for requirement in asked if requirement.startswith("mmcv")]


def test_a_failure_of_pip_is_a_sentence(monkeypatch):
    failed = subprocess.CompletedProcess([], 1)
    monkeypatch.setattr(subprocess, "run", lambda *_args, **_fields: failed)
    with pytest.raises(BackbenchError, match="pip install a b failed; its message is above"):
        install._pip("a", "b")
