"""What every rank must know of every step: a loss that is not finite, a signal, unreadable images. No step waits for a GPU."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from backbench import distributed


def lag(device: torch.device) -> int:
    """Steps that flags stay on the device before they are read: a GPU works on a step while the next one is prepared."""
    return 1 if device.type == "cuda" else 0


@dataclass(frozen=True)
class Step:
    """A step as all ranks see it; `unreadable` is this rank's own."""

    number: int
    lr: float
    failed: bool  # its loss is not finite on some rank
    stop: bool  # a signal has asked some rank to stop
    corrupt: bool  # some rank could not read an image
    unreadable: list[str]


class Watch:
    """Notes each step and gives it back, the same on all ranks, `lag` steps later or when it is asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._noted: deque[tuple[int, float, list[str], Tensor, torch.cuda.Event | None]] = deque()

    def note(self, number: int, lr: float, loss: Tensor, *, stop: bool, unreadable: list[str]) -> None:
        """Start the exchange of a step's flags between the ranks."""
        on_gpu = self._device.type == "cuda"
        host = torch.tensor([0.0, stop, bool(unreadable)], pin_memory=on_gpu)
        flags = host.to(self._device, non_blocking=True)
        flags[0] = ~torch.isfinite(loss.detach())
        answer, event = distributed.any_rank(flags), None
        if on_gpu:  # copied on the GPU's own time into memory that it can write
            answer = torch.empty(3, dtype=torch.bool, pin_memory=True).copy_(answer, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._noted.append((number, lr, unreadable, answer, event))

    def settled(self, *, everything: bool) -> Iterator[Step]:
        """The steps whose flags are due, oldest first: those noted `lag` steps ago, or every one."""
        while len(self._noted) > (0 if everything else lag(self._device)):
            number, lr, unreadable, answer, event = self._noted.popleft()
            if event is not None:
                event.synchronize()
            failed, stop, corrupt = answer.tolist()
            yield Step(number, lr, failed, stop, corrupt, unreadable)
