"""A long run needs no more memory, open files or threads than a short one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from pretraining import tiny_recipe, write_photos

from pretrain import train as loop

STEPS = int(os.environ.get("BACKBENCH_HARDENING") == "all") * 800 + 200
PAGE = os.sysconf("SC_PAGE_SIZE")


def used() -> tuple[int, int, int]:
    """Return memory in bytes, open files and threads of this process."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE
    return resident, len(list(Path("/proc/self/fd").iterdir())), len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.timeout(1500)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux tells of a process in /proc")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.sample(0)
def test_a_thousand_steps_do_not_grow(tmp_path, monkeypatch, workers):
    """After the first fifth, memory may grow by less than 10 kB per step; a leaked image is larger."""
    epochs = f"optim.epochs={STEPS / 15}"
    sizes = ("optim.batch=2", "data.size=16", f"data.workers={workers}", "run.checkpoint_every=50")
    config = tiny_recipe(write_photos(tmp_path / "photos"), epochs, *sizes)
    seen: dict[int, tuple[int, int, int]] = {}
    step_as_it_is = loop.train_step

    def train_step(*args, step, **kwargs):
        seen[step] = used()
        return step_as_it_is(*args, step=step, **kwargs)

    monkeypatch.setattr(loop, "train_step", train_step)
    threads = torch.get_num_threads()
    loop.train(config, tmp_path / "run")
    torch.set_num_threads(threads)
    assert len(seen) == STEPS
    settled, last = seen[STEPS // 5], seen[STEPS - 1]
    assert last[1] <= settled[1] + 16, "open files: batches in transit from a worker need some"
    assert last[2] <= settled[2] + 2, "threads"
    assert (last[0] - settled[0]) / (STEPS * 4 / 5) < 10_000, [seen[s][0] for s in range(0, STEPS, STEPS // 10)]
