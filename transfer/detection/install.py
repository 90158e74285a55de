"""`python -m transfer.detection install`: install all engines on current PyTorch without a compiler.

Packages that can be imported are kept. Detectron2: a wheel made from the published source of v0.6 without its C++ operators;
Faster R-CNN and Mask R-CNN call none of them (ROIAlign and NMS come from torchvision). MMDet and MMSegmentation: mmengine,
mmcv-lite, mmdet and mmsegmentation are pure Python and installed without their requirements, since mmcv-lite would install a
second OpenCV over the first. The extra `detection` in pyproject.toml lists the requirements; missing ones are installed first.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from backbench.errors import BackbenchError
from backbench.progress import say

SOURCE = ("pb1-detectron2", "0.6", "5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29")
OPENMMLAB = {"mmengine": "mmengine==0.10.7", "mmcv": "mmcv-lite==2.1.0", "mmdet": "mmdet==3.3.0",
             "mmseg": "mmsegmentation==1.2.2"}  # fmt: skip
_OPERATORS = '''"""Replaces the compiled operators, which this build lacks."""


def __getattr__(name: str):
    raise ImportError(f"detectron2._C.{name}: this build of Detectron2 has no compiled operators")
'''


def missing_requirements() -> list[str]:
    """Return requirements of the extra `detection` that are not installed; none if backbench itself is not installed."""
    try:
        stated = importlib.metadata.requires("backbench") or []
    except importlib.metadata.PackageNotFoundError:
        return []
    wanted = [line.partition(";")[0].strip() for line in stated if re.search(r"extra == .detection.", line)]
    return [line for line in wanted if not _is_installed(re.split(r"[^\w.-]", line)[0])]


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def install() -> None:
    """Install missing parts of all engines.

    Raises:
        BackbenchError: no network, unexpected bytes, or pip failed.
    """
    if requirements := missing_requirements():
        _pip(*requirements)
    absent = [requirement for module, requirement in OPENMMLAB.items() if importlib.util.find_spec(module) is None]
    if importlib.util.find_spec("detectron2") is not None:
        say("detectron2: keeping the installed one")
    else:
        with tempfile.TemporaryDirectory() as folder:
            _pip("--no-deps", str(make_wheel(fetch_source(Path(folder)), Path(folder))))
    if absent:
        _pip("--no-deps", *absent)


def fetch_source(folder: Path) -> Path:
    """Download and verify Detectron2's published source. Return its path."""
    project, version, sha256 = SOURCE
    try:
        from pypi_simple import PyPISimple

        with PyPISimple() as index:
            packages = index.get_project_page(project).packages
            (package,) = (p for p in packages if p.version == version and p.package_type == "sdist")
            file = folder / package.filename
            index.download_package(package, path=file)
    except Exception as error:
        raise BackbenchError(f"cannot fetch {project} {version}: {error}; install detectron2 yourself") from None
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != sha256:
        raise BackbenchError(f"{file.name}: sha256 {found}, expected {sha256}: not installed")
    return file


def make_wheel(source: Path, folder: Path) -> Path:
    """Make a pure-Python wheel from the source, with a module in place of the operators. Return its path."""
    files: dict[str, bytes] = {"detectron2/_C.py": _OPERATORS.encode()}
    with tarfile.open(source) as archive:
        for member in archive:
            inside = PurePosixPath(*PurePosixPath(member.name).parts[1:])
            if member.isfile() and inside.parts[:1] == ("detectron2",):
                file = archive.extractfile(member)
                assert file is not None, "a regular file has contents"
                files[str(inside)] = file.read()
    version = f"{SOURCE[1]}+pure"
    info = f"detectron2-{version}.dist-info"
    files[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: detectron2\nVersion: {version}\n".encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: backbench\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    wheel = folder / f"detectron2-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return wheel


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "-q", *arguments]
    if subprocess.run(command, check=False).returncode:
        raise BackbenchError(f"pip install {' '.join(arguments)} failed; its message is above")
