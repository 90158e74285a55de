"""Every launcher of cells' processes: exit codes in the order of the commands, and a slot for each."""

from __future__ import annotations

import importlib
import os
import pkgutil
import signal
import sys
import threading
import time

import pytest

from backbench import processes
from benchmarks import launchers

ALL = sorted(module.name for module in pkgutil.iter_modules(launchers.__path__))
# A launcher that submits jobs and returns has `submit` in place of `run`.
NAMES = [name for name in ALL if not hasattr(importlib.import_module(f"benchmarks.launchers.{name}"), "submit")]


def test_the_local_one_is_there():
    assert "local" in NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("jobs", [1, 3])
def test_exit_codes_come_in_the_commands_order(name, jobs):
    launcher = importlib.import_module(f"benchmarks.launchers.{name}")
    commands = [[sys.executable, "-S", "-c", f"import sys; sys.exit({code})"] for code in (0, 3, 1, 0, 2)]
    assert launcher.run(commands, jobs=jobs, gpus=0) == [0, 3, 1, 0, 2]
    assert launcher.run([], jobs=jobs, gpus=0) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_process_that_is_killed_is_no_success(name):
    launcher = importlib.import_module(f"benchmarks.launchers.{name}")
    kill = [sys.executable, "-S", "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    assert all(code not in (0, 130) for code in launcher.run([kill], jobs=1, gpus=0))


@pytest.mark.parametrize("name", NAMES)
def test_cells_are_no_ranks_of_a_job_that_is_left_in_the_environment(name, monkeypatch):
    launcher = importlib.import_module(f"benchmarks.launchers.{name}")
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(variable, "1")
    told = [
        sys.executable,
        "-S",
        "-c",
        "import os, sys; sys.exit(any('RANK' in n or 'WORLD' in n for n in os.environ))",
    ]
    assert launcher.run([told], jobs=1, gpus=0) == [0]


_SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(100)"]
_STUBBORN = [
    *(sys.executable, "-S", "-c"),
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(100)",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_wish_to_stop_ends_the_cells_and_keeps_the_codes(name, number, monkeypatch):
    """Running cells are stopped, waiting ones do not start, and finished ones keep their exit code."""
    monkeypatch.setattr(processes, "_GRACE_S", 0.5)
    launcher = importlib.import_module(f"benchmarks.launchers.{name}")
    done = [sys.executable, "-S", "-c", "pass"]
    before = {n: signal.getsignal(n) for n in processes.STOP_SIGNALS}
    threading.Timer(1.5, os.kill, (os.getpid(), number)).start()
    start = time.monotonic()
    assert launcher.run([done, _SLEEP, _STUBBORN, _SLEEP], jobs=2, gpus=0) == [0, 130, 130, 130]
    assert time.monotonic() - start < 20, "a hang"
    assert {n: signal.getsignal(n) for n in processes.STOP_SIGNALS} == before


@pytest.mark.parametrize("name", NAMES)
def test_what_nohup_ignores_stays_ignored(name):
    launcher = importlib.import_module(f"benchmarks.launchers.{name}")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGHUP)).start()
        nap = [sys.executable, "-S", "-c", "import time; time.sleep(0.5)"]
        assert launcher.run([nap], jobs=1, gpus=0) == [0]
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
