"""Log of a run: `metrics.jsonl`, TensorBoard, lines on the terminal."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from backbench import distributed, trackers
from backbench.diagnostics import DIAGNOSTICS
from backbench.embeddings import std_per_dimension
from backbench.errors import writing
from backbench.progress import duration, say
from backbench.spectra import effective_rank
from pretrain import checkpoint, monitor
from pretrain.config import PretrainConfig
from pretrain.plan import Plan


class Log:
    """Write `metrics.jsonl`, TensorBoard and terminal lines, on rank 0 only."""

    def __init__(self, out: Path, config: PretrainConfig, plan: Plan, *, start: int) -> None:
        self.config, self.plan, self.main = config, plan, distributed.is_main()
        self.started, self.last_time, self.last_step, self.first = time.monotonic(), time.monotonic(), start, start
        self.knn_steps = round(config.run.knn_every * plan.per_epoch)
        self.low, self.announced = 0, False  # collapsed logged steps in a row; True after the message
        if not self.main:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        checkpoint.cut_metrics(out / "metrics.jsonl", start)
        with writing(out):
            self.file = (out / "metrics.jsonl").open("a", encoding="utf-8")
            self.board = SummaryWriter(str(out / "tensorboard"), purge_step=start)
        effective = config.peak_lr()
        say(
            f"{config.method.name} on {config.model.backbone}: {plan.total} steps of {config.optim.batch} images x "
            f"{config.method.views} views, peak rate {effective:g} (base {config.optim.base_lr:g})"
            + (f", resumed after step {start}" if start else "")
        )

    def step(self, step: int, parts: dict[str, Tensor], p: Tensor, extra: dict[str, float]) -> None:
        """Record a step, if `due`: losses, spread of the first view's predictions over all ranks, rates, speed."""
        done = step + 1
        means = distributed.all_reduce_sum(torch.stack(list(parts.values()))) / distributed.world_size()
        p_BD = distributed.gather_rows(p[0])
        values = dict(zip(parts, means.tolist(), strict=True)) | extra
        values["std"] = float(std_per_dimension(p_BD))
        values["effective_rank"] = effective_rank(p_BD)
        if not self.main:
            return
        now = time.monotonic()
        speed = (done - self.last_step) * self.config.optim.batch / max(now - self.last_time, 1e-9)
        left = (self.plan.total - done) * (now - self.started) / (done - self.first)
        self.last_time, self.last_step = now, done
        self._write(step, values | {"images_per_s": speed, "base_lr": self.config.optim.base_lr})
        shown = "  ".join(f"{name} {values[name]:.3f}" for name in (*parts, "std"))
        shown += f"  linear {values['online_linear']:.1f}%" if "online_linear" in values else ""
        say(f"step {done}/{self.plan.total}  {shown}  {speed:.1f} images/s  {duration(left)} left")
        self._judge(values)

    def _judge(self, values: dict[str, float]) -> None:
        """Announce a collapse of the predictions, and its end."""
        message = monitor.verdict(values)
        self.low = self.low + 1 if message else 0
        if message and self.low == monitor.PATIENCE:
            say(message)
            self.announced = True
        elif message is None and self.announced:
            say(f"the predictions' spread is back at {values['std']:.3f}; the online kNN shows if the network learns")
            self.announced = False

    def due(self, done: int) -> bool:
        """Whether the step is recorded after which `done` are done."""
        return done % self.config.run.log_every == 0 or done == self.plan.total

    def due_knn(self, done: int) -> bool:
        """True if the online kNN follows after `done` steps; always False if it is off."""
        return bool(self.knn_steps) and (done % self.knn_steps == 0 or done == self.plan.total)

    def online(self, step: int, values: dict[str, float]) -> None:
        """Record the online 20-NN accuracy and the diagnostics of the features, as far as there are any."""
        if not self.main or not values:
            return
        self._write(step, values)
        scenes = "demo scenes, " if self.config.data.name == "demo" else ""
        knn = values.get("online_knn20")
        said = [] if knn is None else [f"online 20-NN {knn:.1f}% ({scenes}within the training split)"]
        said += [
            f"{name} {values[f'online_{name}']:.3g}{diagnostic.unit}"
            for name, diagnostic in DIAGNOSTICS.items()
            if f"online_{name}" in values
        ]
        say(f"step {step + 1}/{self.plan.total}  {'  '.join(said)}")

    def _write(self, step: int, values: dict[str, float]) -> None:
        epoch = (step + 1) / self.plan.per_epoch
        with writing(Path(self.file.name)):
            self.file.write(json.dumps({"step": step, "epoch": round(epoch, 4), **values}) + "\n")
            self.file.flush()
            for name, value in values.items():
                self.board.add_scalar(name, value, step)
        trackers.log({"epoch": epoch, **values}, step)

    def close(self) -> None:
        """Close the files."""
        if self.main:
            with writing(Path(self.file.name)):
                self.file.close()
                self.board.close()
