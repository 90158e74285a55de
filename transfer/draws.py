"""Random draws of one training image, from (seed, epoch, index) alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch


@contextlib.contextmanager
def draws_of(seed: int, epoch: int, index: int) -> Iterator[None]:
    """Seed torch's generator for one image of one epoch, and restore it afterwards."""
    words = np.random.SeedSequence((seed, epoch, index)).generate_state(2, np.uint32)
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed also notes a call, with the stack as text, for every kind of accelerator that is not in use: most of
        # a millisecond per image.
        torch.default_generator.manual_seed(int(words[0]) << 32 | int(words[1]))
        yield
