"""Every way to start the cells' processes: exit codes in the order of the commands, and a slot for each."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import pytest

from benchmarks import launchers

NAMES = sorted(module.name for module in pkgutil.iter_modules(launchers.__path__))


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
