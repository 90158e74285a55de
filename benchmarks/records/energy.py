"""Energy that processors and the GPU used between two moments, where the machine counts it.

Linux counts the processors' in `/sys/class/powercap` (RAPL; most systems let only root read it), NVIDIA's driver the GPU's
(read through `pynvml`, if installed). Both count everything that runs on the device, not only this process.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

POWERCAP = Path("/sys/class/powercap")


class Meter:
    """Counts from its creation on."""

    def __init__(self, device: torch.device, powercap: Path = POWERCAP) -> None:
        self.device, self.powercap = device, powercap
        self.cpu, self.gpu = _processors(powercap), _gpu(device)

    def joules(self) -> dict[str, float]:
        """Return the joules so far, `cpu` and `gpu`; only those that the machine counts."""
        used: dict[str, float] = {}
        now = _processors(self.powercap)
        if self.cpu and self.cpu.keys() == now.keys():
            # A counter that has passed its largest value starts again at 0.
            parts = [(count - self.cpu[name][0]) % (limit + 1) for name, (count, limit) in now.items()]
            used["cpu"] = round(sum(parts) / 1e6, 1)
        gpu = _gpu(self.device)
        if self.gpu is not None and gpu is not None:
            used["gpu"] = round((gpu - self.gpu) / 1e3, 1)
        return used


def _processors(powercap: Path) -> dict[str, tuple[int, int]]:
    """(microjoules, largest value) of every processor package; empty where they cannot be read."""
    found = {}
    with contextlib.suppress(OSError, ValueError):
        for zone in sorted(powercap.glob("*:*")):
            if (zone / "name").read_text().startswith("package"):  # cores and memory are parts of it
                count, limit = (int((zone / f).read_text()) for f in ("energy_uj", "max_energy_range_uj"))
                found[zone.name] = (count, limit)
        return found
    return {}


def _gpu(device: torch.device) -> int | None:
    """Millijoules since the driver started; None without a GPU, without `pynvml` or on a GPU that does not count."""
    if device.type != "cuda":
        return None
    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = str(torch.cuda.get_device_properties(device).uuid)
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
        return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle))
    except Exception:  # the module is absent, or has one of its many errors
        return None
