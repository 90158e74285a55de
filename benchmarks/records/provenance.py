"""Provenance of a number: commit, versions, device, memory, to trust or repeat it."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import resource
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

from backbench import distributed
from backbench.files.folders import configs_folder
from backbench.precision import tf32
from benchmarks.records.store import Provenance

_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn", "opencv-python-headless")
_ROOT = Path(__file__).resolve().parents[2]
# The parts of a checkout that can change a number; an --out folder in it cannot.
_DECIDES = (
    "backbench",
    "model_zoo",
    "pretrain",
    "transfer",
    "benchmarks",
    "configs",
    "pyproject.toml",
    "constraints.txt",
)
_RECORDS = ":(exclude)benchmarks/measured"


@functools.cache
def commit() -> tuple[str, bool]:
    """Return the checkout's commit and whether its code has uncommitted changes; ("unknown", True) outside git."""
    if configs_folder().parent.name == "backbench":  # installed: a repository around it is another one
        return "unknown", True
    try:
        head, status = (
            subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--", *_DECIDES, _RECORDS))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown", True
    return head, bool(status)


@functools.cache
def packages() -> dict[str, str]:
    """Return the versions of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def collect(device: torch.device, wall_s: float, energy_j: Mapping[str, float] | None = None) -> Provenance:
    """Return the provenance of a number that this process has just measured."""
    revision, dirty = commit()
    cuda = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated(device) if cuda else _peak_rss()
    return Provenance(
        commit=revision,
        dirty=dirty,
        packages=packages(),
        device=torch.cuda.get_device_name(device) if cuda else f"cpu ({platform.machine()})",
        wall_s=round(wall_s, 2),
        peak_memory=int(peak),
        argv=[_text(word) for word in (Path(sys.argv[0]).name, *sys.argv[1:])],
        threads=torch.get_num_threads(),
        processes=distributed.world_size(),
        tf32=tf32(),
        energy_j=dict(energy_j) if energy_j else None,
    )


def _text(word: str) -> str:
    """Return a word of the command as text, with ~ for the home folder; a file name may have bytes that are not text."""
    return word.replace(str(Path.home()), "~").encode("utf-8", "backslashreplace").decode()


def _peak_rss() -> int:
    """Return the peak resident memory in bytes; Linux counts KiB, macOS bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
