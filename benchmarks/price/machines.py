"""Machines that a price is for: this one, by a short calibration kept in a file, and GPUs by their published peaks."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from backbench.data.decode import open_rgb
from backbench.files.atomic import atomic_write_text
from backbench.files.folders import cache_folder
from backbench.precision import autocast, exact_float32
from backbench.processes import usable_cores
from benchmarks.price.work import Work, forward_operations
from benchmarks.speed import processor_seconds
from model_zoo.backbone import Backbone

if TYPE_CHECKING:
    import torch

_V100 = 15.7e12  # float32 operations a second
_CORE = 20e9  # float64 operations a second of a processor core, in the steps of SVMs
_STEPS = 0.5  # of the rate of float64 products, in the same


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
    machines: float  # of SVMs in float64
    detectors: float  # of detectors in float32
    start_s: float  # until a cell's process computes
    starts: Mapping[str, float]  # the same for libraries that only some protocols import, by `Work.library`
    shared: float = 0.0  # processor cores that decoding and the network share; 0: the network has its own device
    threads: float = 1.0  # of the network, where they share
    is_measured: bool = False

    def seconds(self, work: Work, precision: str = "fp32") -> float:
        """Seconds of some work: decoding and the network run beside each other, the rest after them."""
        decoding, network, rest = self._parts(work, precision)
        together = (decoding + self.threads * network) / self.shared if self.shared else 0.0
        return max(decoding / self.cores, network, together) + rest

    def cpu_seconds(self, work: Work) -> float:
        """Seconds of one processor core for some work, on a machine without a GPU."""
        return sum(self._parts(work, "fp32"))

    def start(self, work: Work) -> float:
        """Seconds until a process with this work computes."""
        return self.start_s + self.starts.get(work.library, 0.0)

    def _parts(self, work: Work, precision: str) -> tuple[float, float, float]:
        """Seconds of decoding by one core, of the network, of the rest."""
        network = self.exact if precision == "fp32" else self.half
        decoding = work.views / self.views_s + work.crops / self.crops_s
        rest = work.products / self.products + work.machines / self.machines + work.detection / self.detectors
        return decoding, (work.forward + work.training) / network, rest


def _gpu(name: str, peak: float, half: float, cores: float) -> Machine:
    """A GPU: six tenths of the float32 peak in networks, eight in products, a fifth of the peak of half types.

    A supervised ResNet-50 reaches that fifth on an A100 (2,470 images a second with AMP). Detectors gain with the float32
    peak, at most threefold from a V100. Views a second and core are this project's own figures for ImageNet's JPEGs at 224 px.
    """
    return Machine(
        name=name,
        views_s=150.0,
        crops_s=130.0,
        cores=cores,
        exact=0.6 * peak,
        half=0.2 * half,
        products=0.8 * peak,
        machines=_CORE * cores,
        detectors=0.6 * min(peak, 3 * _V100),
        start_s=15.0,
        starts={},
    )


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
    """Measure this machine's rates, in about a minute."""
    import torch

    from benchmarks.measuring import default_workers

    device = torch.device(_device())
    with exact_float32(), torch.no_grad():
        exact = _network(backbone, size, device, "fp32")
        half = exact if device.type == "cpu" else _network(backbone, size, device, "bf16")
        products, doubles = (_products(device, kind) for kind in (torch.float32, torch.float64))
    views, crops = _decoding(size)
    start_s = _start(_IMPORTS)
    on_cpu = device.type == "cpu"
    return Machine(
        name="this machine" if on_cpu else torch.cuda.get_device_name(),
        views_s=views,
        crops_s=crops,
        cores=default_workers(),
        exact=exact,
        half=half,
        products=products,
        machines=_STEPS * doubles,
        detectors=exact,
        start_s=start_s,
        starts={name: max(0.0, _start(f"{_IMPORTS}; {code}") - start_s) for name, code in _LIBRARIES.items()},
        shared=usable_cores() if on_cpu else 0.0,
        threads=torch.get_num_threads(),
        is_measured=True,
    )


_IMPORTS = "import benchmarks.measuring, benchmarks.plan, torchvision, model_zoo.load, transfer.features"
_ENGINE = "from transfer.{} import engines; engine = engines.get('{}'); engine.missing() or engine.prepare()"
_LIBRARIES = {  # by `Work.library`: Python that imports it
    "scikit-learn": "import sklearn.svm, sklearn.metrics, sklearn.model_selection",
    "detectron2": _ENGINE.format("detection", "detectron2"),
    "mmdet": _ENGINE.format("detection", "mmdet"),
    "mmseg": _ENGINE.format("segmentation", "mmseg"),
}


def _start(code: str) -> float:
    """Processor seconds of a process that imports."""
    start = processor_seconds()
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    return processor_seconds() - start


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


def _products(device: object, kind: torch.dtype) -> float:
    import torch

    on = torch.device(str(device))
    side = 8192 if on.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=on, dtype=kind) for _ in range(2))
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
