"""Where features lie while they are compared or learned from: on the GPU if they fit, else on the CPU, sent in parts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

_SHARE = 0.5  # of the GPU's free memory that features may take


def resident(x: Tensor, device: torch.device) -> Tensor:
    """Return `x` on the GPU if it takes at most half of the free memory there; otherwise `x` itself."""
    if device.type != "cuda" or x.nbytes > _SHARE * torch.cuda.mem_get_info(device)[0]:
        return x
    return x.to(device)


def to_host(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield every part on the CPU, in order. A GPU's parts come one behind, so that it computes during the copy."""
    waiting: tuple[Tensor, torch.cuda.Event] | None = None
    for part in parts:
        if not part.is_cuda:
            yield part
            continue
        host = torch.empty(part.shape, dtype=part.dtype, pin_memory=True)
        host.copy_(part, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        if waiting is not None:
            waiting[1].synchronize()
            yield waiting[0]
        waiting = host, copied
    if waiting is not None:
        waiting[1].synchronize()
        yield waiting[0]
