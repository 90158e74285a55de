"""Machines that a price is for: this one, by a short calibration kept in a file, and GPUs by their published peaks."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from backbench.data.decode import open_rgb
from backbench.files.atomic import atomic_write_text
from backbench.files.folders import cache_folder
from backbench.precision import autocast, exact_float32
from benchmarks.price.work import Work, forward_operations
from benchmarks.speed import processor_seconds
from model_zoo.backbone import Backbone

_V100 = 15.7e12  # float32 operations a second
_CORE = 20e9  # float64 operations a second of a processor core


@dataclass(frozen=True)
class Machine:
    """Rates of one device and the processor cores beside it."""

    name: str
    views_s: float  # images a second and core: decoded, resized, cropped
    crops_s: float  # the same with a random crop
    cores: float  # for decoding
    exact: float  # operations a second of a network in float32, TF32 off
    half: float  # the same in bf16 or fp16
    products: float  # of matrix products in float32
    detectors: float  # seconds of one device for a second of eight V100
    start_s: float  # until a cell's process computes
    is_measured: bool = False

    def seconds(self, work: Work, precision: str = "fp32") -> float:
        """Seconds of some work: decoding and the network run beside each other, the rest after them."""
        decoding, network, rest = self._parts(work, precision)
        return max(decoding / self.cores, network) + rest

    def cpu_seconds(self, work: Work) -> float:
        """Seconds of one processor core for some work, on a machine without a GPU."""
        return sum(self._parts(work, "fp32"))

    def _parts(self, work: Work, precision: str) -> tuple[float, float, float]:
        """Seconds of decoding by one core, of the network, of the rest."""
        network = self.exact if precision == "fp32" else self.half
        decoding = work.views / self.views_s + work.crops / self.crops_s
        rest = work.products / self.products + work.machines / (_CORE * self.cores) + work.detection * self.detectors
        return decoding, (work.forward + work.training) / network, rest


def _gpu(name: str, peak: float, half: float, cores: float) -> Machine:
    """A GPU: six tenths of the float32 peak in networks, eight in products, a fifth of the peak of half types.

    A supervised ResNet-50 reaches that fifth on an A100 (2,470 images a second with AMP). Detectors gain with the float32
    peak, at most threefold. Views a second and core are this project's own figures for ImageNet's JPEGs at 224 px.
    """
    return Machine(name, 150.0, 130.0, cores, 0.6 * peak, 0.2 * half, 0.8 * peak, 8 / min(3.0, peak / _V100), 15.0)


NAMED = {
    "a100": _gpu("A100 80 GB", 19.5e12, 312e12, cores=16),  # NVIDIA's data sheets; 8 GPUs share 128 and 112 cores (DGX)
    "h100": _gpu("H100 SXM", 67e12, 989e12, cores=14),
}
NAMES = ("here", *NAMED)


def find(name: str, backbone: Backbone, size: int, *, again: bool = False) -> Machine:
    """A machine by name; `here` is calibrated for the backbone and size, once.

    Args:
        again: calibrate even if there is a calibration.
    """
    if name != "here":
        return NAMED[name]
    from benchmarks.speed.__main__ import machine as described

    about = described(_device())
    key = f"{about['device']}, {about['cores']} cores, {about['threads']} threads, {backbone.arch.name}, {size} px"
    file = cache_folder() / "calibration.json"
    known: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(OSError, ValueError, TypeError):
        known = dict(json.loads(file.read_text(encoding="utf-8")))
        if key in known and not again:
            return Machine(**known[key])
    found = calibrated(backbone, size)
    atomic_write_text(file, json.dumps({**known, key: asdict(found)}, indent=1) + "\n")
    return found


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def calibrated(backbone: Backbone, size: int) -> Machine:
    """Measure this machine's rates, in about half a minute."""
    import torch

    from benchmarks.measuring import default_workers

    device = torch.device(_device())
    start = processor_seconds()
    subprocess.run([sys.executable, "-c", _IMPORTS], check=True, capture_output=True)
    start_s = processor_seconds() - start
    with exact_float32(), torch.no_grad():
        exact = _network(backbone, size, device, "fp32")
        half = exact if device.type == "cpu" else _network(backbone, size, device, "bf16")
        products = _products(device)
    views, crops = _decoding(size)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "this machine"
    detectors = 8 * _V100 * 0.6 / exact
    return Machine(name, views, crops, default_workers(), exact, half, products, detectors, start_s, is_measured=True)


_IMPORTS = "import benchmarks.measuring, benchmarks.plan, torchvision, model_zoo.load, transfer.features"


def _rate(run: Callable[[], object], amount: float, device: str, at_least: float = 1.0) -> float:
    """Amount a second: the median of three rounds after one that warms up, of a third of `at_least` seconds or more.

    On the CPU the processor's time counts, divided by the threads: programs that run meanwhile do not.
    """
    once = _seconds(run, device)
    rounds = max(1, round(at_least / 3 / max(once, 1e-6)))
    taken = sorted(_seconds(lambda: [run() for _ in range(rounds)], device) for _ in range(3))
    return amount * rounds / taken[1]


def _seconds(run: Callable[[], object], device: str) -> float:
    import torch

    from benchmarks.speed import seconds

    if device != "cpu":
        return seconds(run, device)
    start = time.process_time()
    run()
    return (time.process_time() - start) / torch.get_num_threads()


def _network(backbone: Backbone, size: int, device: object, precision: str) -> float:
    import torch

    on = torch.device(str(device))
    network = backbone.build().eval().to(on).to(memory_format=torch.channels_last)
    batch = 128 if on.type == "cuda" or size <= 64 else 16
    x = torch.randn(batch, 3, size, size, device=on).to(memory_format=torch.channels_last)

    def run() -> None:
        with autocast(on, "fp32" if precision == "fp32" else "bf16"):
            network(x)

    return _rate(run, batch * forward_operations(backbone, size), on.type)


def _products(device: object) -> float:
    import torch

    on = torch.device(str(device))
    side = 8192 if on.type == "cuda" else 1024
    a, b = torch.randn(side, side, device=on), torch.randn(side, side, device=on)
    return _rate(lambda: a @ b, 2.0 * side**3, on.type)


def _decoding(size: int) -> tuple[float, float]:
    """Views and crops a second of one core, of rendered JPEGs of 500 x 375."""
    from backbench.data.transforms import evaluation_view
    from benchmarks.speed import Setup
    from benchmarks.speed._photographs import photographs
    from transfer.augment import crop_and_flip

    crop = crop_and_flip(size)
    with photographs(Setup("cpu"), 8) as paths:
        images = [path.read_bytes() for path in paths]
        views = _rate(lambda: [evaluation_view(open_rgb(x, "image"), size) for x in images], len(images), "cpu")
        crops = _rate(lambda: [crop(open_rgb(x, "image")) for x in images], len(images), "cpu")
    return views, crops
