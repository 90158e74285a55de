"""Commands as jobs of a SLURM cluster, through submitit: one array, each job requeued when it is preempted or times out.

A job starts its command again after every requeue, so the command must continue from its own files. Signals:
https://slurm.schedmd.com/preempt.html, https://github.com/facebookincubator/submitit/blob/main/docs/checkpointing.md
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from backbench import job, processes
from backbench.config import Config, build
from backbench.errors import BackbenchError, ConfigError
from backbench.files import locks

_ROOT = Path(__file__).resolve().parent.parent
State = Literal["waiting", "running", "ended"]
_LINGER_S = 600.0  # a job told to stop waits this long for SLURM to end or requeue it
_MARGIN_S = 15.0  # part of the notice reserved for the requeue


class Slurm(Config):
    """Resources of a job: the `key=value` words of `--slurm`. `extra.NAME=VALUE` is any other option of sbatch."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: Annotated[int, Field(ge=1, le=4096)] = 1
    gpus: Annotated[int, Field(ge=0, le=64)] = 0  # of each node
    cpus: Annotated[int, Field(ge=1)] | None = None  # of each node
    memory: str | None = None  # of each node, as `64G`
    time: str = "4:00:00"  # as sbatch reads it: minutes, H:MM:SS, D-HH
    timeouts: Annotated[int, Field(ge=0)] = 100  # requeues of a job that used up its time
    notice: Annotated[int, Field(ge=30, le=3600)] = 120  # seconds between the signal and the end of the time
    extra: dict[str, str] = Field(default_factory=dict)

    @field_validator("time")
    @classmethod
    def _is_a_time(cls, text: str) -> str:
        if not minutes(text):
            raise ValueError("not a time of sbatch: give minutes, H:MM:SS or D-HH")
        return text


@dataclass(frozen=True, kw_only=True)
class Work:
    """A command of the array."""

    name: str  # for people
    argv: tuple[str, ...]  # the script and its words, without the interpreter
    processes: int = 1  # of each node: GPUs that share the command
    restarts: int = 0  # of torchrun, on several nodes
    failed: Callable[[str], None] | None = None  # called in the job with the reason; pickled by its name
    recorded: int | None = None  # exit code of a command that has recorded its failure: `failed` is not called


def parse(words: Sequence[str]) -> Slurm:
    """Parse `--slurm`, given once or several times, each with one or more `key=value`.

    Raises:
        ConfigError: an unknown key, with the nearest one, or a value that cannot be.
    """
    try:
        pairs = [pair for word in words for pair in shlex.split(word)]
    except ValueError as error:
        raise ConfigError(f"--slurm {' '.join(words)}: {error}") from None
    extra: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if key.startswith("extra."):
            if not re.fullmatch(r"[a-z][a-z-]*", key.removeprefix("extra.")) or not equals:
                raise ConfigError(f"--slurm {pair}: expected extra.NAME=VALUE with an option of sbatch as NAME")
            extra[key.removeprefix("extra.")] = value
    fields = [pair for pair in pairs if not pair.startswith("extra.")]
    return build(Slurm, {"extra": extra}, fields, where="--slurm")


def minutes(text: str) -> int:
    """Return the minutes, rounded up, of a time that sbatch reads (`M`, `M:S`, `H:M:S`, `D-H`, `D-H:M:S`); else 0."""
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isascii() and part.isdigit() for part in [*parts, *([days] if dash else [])]) or len(parts) > 3:
        return 0
    units = "hms"[: len(parts)] if dash else ("m", "ms", "hms")[len(parts) - 1]
    seconds = {"h": 3600, "m": 60, "s": 1}
    total = int(days or 0) * 86400 + sum(int(part) * seconds[unit] for part, unit in zip(parts, units, strict=True))
    return -(-total // 60)


def preview(works: Sequence[Work], wanted: Slurm, folder: Path, *, at_once: int = 0) -> str:
    """Return the file that `submit` would give to sbatch, and the command of each job. Needs no SLURM."""
    slurm = _submitit("slurm.slurm")
    fields = _fields(wanted, at_once, works)
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    text = slurm._make_sbatch_string(command=command, folder=folder, map_count=len(works), **fields)
    lines = [f"{number}: {work.name}: {shlex.join(_words(work, wanted))}" for number, work in enumerate(works)]
    return "\n".join([text.rstrip(), "", "# jobs of the array", *lines])


def submit(works: Sequence[Work], wanted: Slurm, folder: Path, *, at_once: int = 0) -> list[str]:
    """Submit the commands as one array, `at_once` of them at a time (0: as many as fit); returns the jobs' numbers.

    Args:
        folder: for the jobs' files and logs (`log_of`); every node must see it under this path.

    Raises:
        BackbenchError: no SLURM on this machine, no submitit, or sbatch refuses.
    """
    submitit = _submitit()
    missing = [name for name in ("sbatch", "srun", "scontrol") if shutil.which(name) is None]
    if missing:
        raise BackbenchError(f"--launcher slurm: {missing[0]} is not on PATH; run this on a login node of the cluster")
    if not works:
        return []
    executor = submitit.SlurmExecutor(folder=folder.resolve(), max_num_timeout=wanted.timeouts)
    try:
        executor.update_parameters(**_fields(wanted, at_once, works))
        with executor.batch():
            jobs = [executor.submit(_Job(work, wanted, folder.resolve())) for work in works]
    except (subprocess.CalledProcessError, submitit.core.utils.FailedJobError) as error:
        said = [line for line in str(error).splitlines() if line.strip()]
        why = said[-1].removeprefix("sbatch: error: ") if said else type(error).__name__
        raise BackbenchError(f"sbatch refused the jobs: {why}") from None
    return [str(one.job_id) for one in jobs]


def log_of(folder: Path, number: str) -> Path:
    """Return the file with everything that a job printed, in all its starts."""
    return folder.resolve() / f"{number}_0_log.out"


def state(folder: Path, number: str) -> State:
    """The state of a job as its files show it. A job that SLURM itself requeues, without a signal, counts as ended."""
    lock = folder.resolve() / f"{number}.lock"
    if locks.is_live(lock):
        return "running"
    return "ended" if locks.read(lock) and not _requeued(folder.resolve(), number).exists() else "waiting"


def _requeued(folder: Path, number: str) -> Path:
    return folder / f"{number}.requeued"


def queued(numbers: Sequence[str]) -> dict[str, str] | None:
    """Return state and reason (`PENDING Priority`) of each of these jobs in SLURM's queue; None without a SLURM to ask."""
    if shutil.which("squeue") is None:
        return None
    words = ["squeue", "-h", "-r", "-o", "%i %T %r", "--me"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        return None
    there = dict(line.split(maxsplit=1) for line in done.stdout.splitlines() if " " in line)
    return {number: there[number].strip() for number in numbers if number in there}


def _submitit(module: str = "") -> Any:
    try:
        import importlib

        return importlib.import_module(f"submitit.{module}".rstrip("."))
    except ImportError:
        raise BackbenchError("--launcher slurm: submitit is not installed; pip install 'backbench[slurm]'") from None


def _fields(wanted: Slurm, at_once: int, works: Sequence[Work]) -> dict[str, Any]:
    """The parameters of submitit's executor."""
    more: dict[str, Any] = {"requeue": True, **wanted.extra}
    if wanted.memory:
        more["mem"] = wanted.memory
    named = {name: getattr(wanted, name) for name in ("partition", "account", "qos", "constraint")}
    fields = {name: value for name, value in named.items() if value is not None}
    if wanted.gpus:
        fields["gpus_per_node"] = wanted.gpus
    if wanted.cpus:
        fields["cpus_per_task"] = wanted.cpus
        fields["srun_args"] = [f"--cpus-per-task={wanted.cpus}"]  # since 22.05 srun does not take it from sbatch
    return {
        **fields,
        "job_name": "backbench",
        "time": minutes(wanted.time),
        "nodes": wanted.nodes,
        "ntasks_per_node": 1,
        "signal_delay_s": wanted.notice,
        "array_parallelism": at_once or max(1, len(works)),
        "stderr_to_stdout": True,
        "setup": [f"export PYTHONPATH={shlex.quote(str(_ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"],
        "additional_parameters": more,
    }


def _words(work: Work, wanted: Slurm, environment: Mapping[str, str] | None = None) -> list[str]:
    """The command line of one node of a job."""
    if wanted.nodes == 1:
        return [sys.executable, *([job.__file__, str(work.processes)] if work.processes > 1 else []), *work.argv]
    # the node that runs the batch script, which every node of the job can reach: srun answers there
    told = environment or {"SLURM_LAUNCH_NODE_IPADDR": "HEAD", "SLURM_JOB_ID": "0"}
    number = told["SLURM_JOB_ID"]
    return [
        *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={wanted.nodes}"),
        *(f"--nproc-per-node={work.processes}", f"--max-restarts={work.restarts}", "--rdzv-backend=c10d"),
        f"--rdzv-endpoint={told['SLURM_LAUNCH_NODE_IPADDR']}:{20000 + int(number) % 10000}",
        *(f"--rdzv-id={number}-{told.get('SLURM_RESTART_COUNT', '0')}", *work.argv),
    ]


class _Job:
    """A command as submitit starts it on a node; called again after every requeue."""

    def __init__(self, work: Work, wanted: Slurm, folder: Path) -> None:
        self.work, self.wanted, self.folder = work, wanted, folder

    def checkpoint(self) -> Any:
        """Return what runs after a requeue: the same command."""
        return _submitit().helpers.DelayedSubmission(self)

    def __call__(self) -> None:
        """Run the command; end this process with its exit code, or when SLURM wants the node back."""
        with locks.held(self.folder / f"{self._number()}.lock") if _leads() else contextlib.nullcontext():
            self._run()

    def _run(self) -> None:
        requeue = signal.getsignal(signal.SIGUSR2)  # submitit's: writes the next start's file, requeues, exits
        asked: list[int] = []
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, lambda got, _frame: asked.append(got))
        _requeued(self.folder, self._number()).unlink(missing_ok=True)
        environment = {"HF_HUB_OFFLINE": "1", **processes.alone(os.environ)}  # everything was fetched at submission
        words = _words(self.work, self.wanted, environment)
        print(f"{self.work.name}: {shlex.join(words)}", flush=True)
        command = processes.start(words, environment, ignored=[signal.SIGUSR2])
        try:
            while (code := command.poll()) is None and not asked:
                processes.pause()
        finally:
            processes.end([command], grace=self.wanted.notice - _MARGIN_S)
        if not asked:
            if code:
                if code != self.work.recorded:
                    self._say_failed(f"ended with code {code}; a process that ran out of memory prints nothing")
                raise SystemExit(code if code > 0 else 128 - code)  # SLURM then lists the job as FAILED
            return
        self._leave(asked, requeue)
        raise SystemExit(processes.INTERRUPTED)

    def _leave(self, asked: list[int], requeue: Any) -> None:
        """Have the job requeued, or wait until SLURM ends it: a job that SLURM preempts it requeues itself, if it runs."""
        deadline = time.monotonic() + _LINGER_S
        while time.monotonic() < deadline:
            if signal.SIGUSR2 in asked and callable(requeue):
                try:
                    if _leads():
                        _requeued(self.folder, self._number()).touch()
                    requeue(signal.SIGUSR2, None)  # exits; returns on the nodes that do not lead the job
                except Exception as error:
                    _requeued(self.folder, self._number()).unlink(missing_ok=True)
                    self._say_failed(f"was not requeued: {error}")
                    raise
            asked.clear()
            processes.pause()

    def _say_failed(self, how: str) -> None:
        if self.work.failed is not None and _leads():
            number = self._number()
            self.work.failed(f"SLURM job {number} {how}; its output is in {log_of(self.folder, number)}")

    def _number(self) -> str:
        environment = os.environ
        if "SLURM_ARRAY_JOB_ID" in environment:
            return f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
        return environment["SLURM_JOB_ID"]


def _leads() -> bool:
    return os.environ.get("SLURM_PROCID", "0") == "0"
